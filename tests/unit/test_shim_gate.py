"""Access lists, the rate limit, and what a client meets at the door: cookies, TC, BADCOOKIE, silence."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network
from random import Random

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from cachebus.errors import ConfigError
from cachebus.shim import limits
from cachebus.shim.access import AccessList, Network, packed_address
from cachebus.shim.cookies import COOKIE
from cachebus.shim.front import FrontSettings
from cachebus.shim.gate import Gate, Turned
from cachebus.shim.limits import RateLimit, RateLimiter, Verdict
from cachebus.shim.query import Channel, Drop, parse_query

CLIENT = "192.0.2.9"
NOW = 1_800_000_000.0


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


# Access


def test_loopback_of_both_families() -> None:
    access = AccessList(networks("127.0.0.0/8", "::1/128"))
    served = ("127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1")
    others = ("126.255.255.255", "128.0.0.0", "::2", "::", "::127.0.0.1", "fe80::1%eth0", "", "localhost", "127.1")
    assert [address for address in (*served, *others) if access.allows(address)] == list(served)


def test_deny_wins_whatever_is_wider() -> None:
    access = AccessList(networks("10.0.0.0/8", "10.1.2.0/24"), networks("10.1.0.0/16", "10.255.255.255", "::/0"))
    for address, served in {
        "10.0.255.255": True, "10.1.0.0": False, "10.1.2.3": False, "10.1.255.255": False, "10.2.0.0": True,
        "10.255.255.254": True, "10.255.255.255": False, "11.0.0.0": False, "2001:db8::1": False,
    }.items():  # fmt: skip
        assert access.allows(address) is served, address


def test_everybody_and_nobody() -> None:
    everybody, nobody = AccessList(networks("0.0.0.0/0", "::/0")), AccessList(())
    for address in ("0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"):
        assert everybody.allows(address)
        assert not nobody.allows(address)


@pytest.mark.parametrize("seed", range(20))
def test_many_networks_against_the_slow_way(seed: int) -> None:
    rng = Random(seed)

    def network() -> Network:
        size = rng.randrange(10)
        first = rng.randrange(256) >> size << size
        return (
            ip_network((f"10.0.0.{first}" if first < 256 else "10.0.0.0", 32 - min(size, 8)), strict=False)
            if rng.random() < 0.5
            else ip_network((f"fd00::{first:x}", 128 - size))
        )

    allow, deny = [network() for _ in range(rng.randrange(12))], [network() for _ in range(rng.randrange(12))]
    access = AccessList(allow, deny)
    for number in range(256):
        for address in (IPv4Address(f"10.0.0.{number}"), IPv6Address(f"fd00::{number:x}")):
            inside = [any(address in one for one in side if one.version == address.version) for side in (allow, deny)]
            assert access.allows(str(address)) is (inside[0] and not inside[1]), (address, allow, deny)


def test_packed_addresses() -> None:
    assert packed_address("::ffff:192.0.2.1") == packed_address("192.0.2.1") == bytes((192, 0, 2, 1))
    assert len(packed_address("fe80::1%eth0")) == len(packed_address("::192.0.2.1")) == 16


# Rate limit


def limiter(**changes: object) -> RateLimiter:
    return RateLimiter(RateLimit(**{"rate": 10.0, "burst": 5, "exempt": (), **changes}))  # type: ignore[arg-type]


def passes(bucket: RateLimiter, client: str, now: float, count: int, *, verified: bool = False) -> int:
    return sum(bucket.judge(client, now, verified=verified) is Verdict.PASS for _ in range(count))


def test_a_burst_and_then_the_rate() -> None:
    bucket = limiter()
    assert passes(bucket, CLIENT, NOW, 100) == 5
    assert passes(bucket, CLIENT, NOW + 0.1, 100) == 1
    assert sum(passes(bucket, CLIENT, NOW + 1 + step / 50, 1) for step in range(500)) == pytest.approx(105, abs=1)
    assert passes(bucket, CLIENT, NOW + 3600, 100) == 5, "never more than a burst"


def test_networks_not_addresses() -> None:
    bucket = limiter()
    assert sum(passes(bucket, f"192.0.2.{host}", NOW, 1) for host in range(256)) == 5
    assert passes(bucket, "192.0.3.1", NOW, 100) == 5
    assert sum(passes(bucket, f"2001:db8:0:{host:x}::1", NOW, 1) for host in range(256)) == 5
    assert passes(bucket, "2001:db8:0:100::1", NOW, 100) == 5
    single = limiter(ipv4_prefix=32)
    assert [passes(single, f"192.0.2.{host}", NOW, 100) for host in range(3)] == [5, 5, 5]


def test_who_proved_its_address_has_a_bucket_of_its_own() -> None:
    bucket = limiter()
    assert passes(bucket, CLIENT, NOW, 100) == 5
    assert passes(bucket, CLIENT, NOW, 100, verified=True) == 50
    assert passes(bucket, CLIENT, NOW + 1, 1000, verified=True) == 50
    assert passes(limiter(verified=0), CLIENT, NOW, 1000, verified=True) == 1000


def test_exempt_networks() -> None:
    bucket = limiter(exempt=networks("192.0.2.0/25"))
    assert passes(bucket, "192.0.2.127", NOW, 1000) == 1000
    assert passes(bucket, "192.0.2.128", NOW, 1000) == 5


@pytest.mark.parametrize(("slip", "slipped"), [(0, 0), (1, 95), (2, 47), (10, 9)])
def test_slip(slip: int, slipped: int) -> None:
    bucket = limiter(slip=slip)
    verdicts = [bucket.judge(CLIENT, NOW, verified=False) for _ in range(100)]
    assert verdicts.count(Verdict.SLIP) == slipped
    assert verdicts.count(Verdict.PASS) == 5


def test_the_clock_may_go_back() -> None:
    bucket = limiter()
    assert passes(bucket, CLIENT, NOW, 100) == 5
    assert passes(bucket, CLIENT, NOW - 10, 100) == 5
    assert passes(bucket, CLIENT, NOW - 86400, 100) == 5


def test_a_flood_of_networks_takes_no_memory_and_frees_nobody_who_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SETS", 64)
    bucket = limiter(rate=0.1, burst=20)
    assert passes(bucket, CLIENT, NOW, 1000) == 20
    size = len(bucket._keys)
    for number in range(5000):
        bucket.judge(f"10.{number >> 8}.{number & 255}.1", NOW + 1, verified=False)
    assert len(bucket._keys) == size == 64 * limits.WAYS
    assert bucket.evicted > 0
    assert passes(bucket, CLIENT, NOW + 2, 1000) == 0


def test_all_is_forgotten_in_time() -> None:
    bucket = limiter(rate=0.1, burst=10_000)
    assert passes(bucket, CLIENT, NOW, 20_000) == 10_000
    assert passes(bucket, CLIENT, NOW + limits.KEY_LIFE - 1, 20_000) < 10_000
    salt = bucket._salt
    assert passes(bucket, CLIENT, NOW + limits.KEY_LIFE + 1, 20_000) == 10_000
    assert bucket._salt != salt


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.0}, {"burst": 0}, {"slip": -1}, {"ipv4_prefix": 33}, {"ipv6_prefix": 8}, {"verified": -1}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"rate_limit.{next(iter(wrong))} is not between"):
        RateLimit(**wrong)  # type: ignore[arg-type]


# The gate


def gate(**changes: object) -> Gate:
    limit = RateLimit(rate=1.0, burst=2, verified=2, slip=1, exempt=())
    settings: dict[str, object] = {"rate_limit": limit, **changes}
    return Gate(networks("0.0.0.0/0"), FrontSettings(**settings))  # type: ignore[arg-type]


def message(cookie: bytes | None = None, *, question: bool = True, edns: bool = True) -> dns.message.Message:
    options = [] if cookie is None else [dns.edns.GenericOption(COOKIE, cookie)]
    query = dns.message.make_query("www.example.", "A", use_edns=0 if edns else False, options=options)
    if not question:
        query.question = []
    return query


def take(door: Gate, query: dns.message.Message, channel: Channel = Channel.UDP, now: float = NOW) -> bytes | Turned:
    parsed = parse_query(query.to_wire())
    assert not isinstance(parsed, Drop)
    return door.take(parsed, CLIENT, channel, now)


def reply(taken: bytes | Turned) -> dns.message.Message:
    assert isinstance(taken, Turned)
    assert taken.reply is not None
    return dns.message.from_wire(taken.reply, raise_on_truncation=False)


def cookie_in(answer: dns.message.Message) -> bytes:
    (option,) = answer.options
    assert option.otype == COOKIE
    return bytes(option.to_wire() or b"")


def test_a_client_cookie_gets_a_server_cookie_and_no_badcookie_while_there_is_room() -> None:
    door = gate(rate_limit=None)
    assert door.limiter is None
    given = take(door, message(bytes(8)))
    assert isinstance(given, bytes)
    assert given[:4] == b"\0\x0a\0\x18"
    assert take(door, message(given[4:])) == given
    assert take(door, message(bytes(24))) == given, "the same client cookie at the same time"
    assert take(door, message()) == b""
    assert door.statistics()["cookie_first"] == 1
    assert door.statistics()["cookie_valid"] == 1
    assert door.statistics()["cookie_invalid"] == 1


def test_only_the_first_cookie_counts_and_other_options_pass() -> None:
    options = [dns.edns.GenericOption(65001, b"xyz"), *(dns.edns.GenericOption(COOKIE, bytes(n)) for n in (8, 3))]
    query = dns.message.make_query("www.example.", "A", use_edns=0, options=options)
    assert isinstance(take(gate(), query), bytes)


@pytest.mark.parametrize("length", [0, 7, 9, 15, 41])
def test_a_malformed_cookie_is_formerr_unless_cookies_are_off(length: int) -> None:
    answer = reply(take(gate(), message(bytes(length))))
    assert answer.rcode() == dns.rcode.FORMERR
    assert answer.edns == 0
    assert take(gate(cookies=None), message(bytes(length))) == b""


def test_over_the_limit_without_a_cookie_it_is_tc_and_tcp_is_let_in() -> None:
    door = gate()
    assert [take(door, message()) for _ in range(2)] == [b"", b""]
    answer = reply(take(door, message()))
    assert answer.flags & dns.flags.TC
    assert answer.rcode() == 0
    assert not answer.answer
    assert take(door, message(), Channel.TCP) == b""
    assert door.statistics()["limited_slipped"] == 1


def test_over_the_limit_with_a_client_cookie_it_is_badcookie_and_the_next_try_passes() -> None:
    door = gate()
    for _ in range(2):
        take(door, message())
    answer = reply(take(door, message(bytes(8))))
    assert answer.rcode() == dns.rcode.BADCOOKIE
    assert isinstance(take(door, message(cookie_in(answer))), bytes)


def test_over_its_own_limit_a_proven_client_gets_tc_and_a_stream_is_refused() -> None:
    door = gate()
    given = take(door, message(bytes(8)))
    assert isinstance(given, bytes)
    for _ in range(4):
        assert isinstance(take(door, message(given[4:])), bytes)
    assert reply(take(door, message(given[4:]))).flags & dns.flags.TC
    assert reply(take(door, message(), Channel.TLS)).rcode() == dns.rcode.REFUSED
    assert door.statistics()["limited_refused"] == 1


def test_over_the_limit_errors_get_silence() -> None:
    door = gate()
    broken = message(question=False)
    for _ in range(2):
        assert take(door, broken) == b""
    assert take(door, broken) == Turned(None)
    assert door.statistics()["limited_dropped"] == 1


@pytest.mark.parametrize(("cookie", "rcode"), [(8, 0), (24, dns.rcode.BADCOOKIE), (5, dns.rcode.FORMERR)])
def test_a_cookie_may_be_asked_for_without_a_question(cookie: int, rcode: int) -> None:
    answer = reply(take(gate(), message(bytes(cookie), question=False)))
    assert answer.rcode() == rcode
    assert not answer.question
    if not rcode:
        again = reply(take(gate(), message(cookie_in(answer), question=False)))
        assert again.rcode() == dns.rcode.BADCOOKIE, "of another server"


def test_a_reply_over_the_limit_is_hardly_larger_than_the_question() -> None:
    door = gate()
    for _ in range(2):
        take(door, message())
    for query in (message(), message(bytes(8)), message(edns=False)):
        taken = take(door, query)
        assert isinstance(taken, Turned)
        assert taken.reply is not None
        assert len(taken.reply) <= len(query.to_wire()) + 16
