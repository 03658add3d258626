"""What may leave a node and what may come in (trust rules, section 4), and how much of it."""

from __future__ import annotations

import pytest

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.filters.noise import Noise, NoiseSettings
from cachebus.filters.policy import Policy, PolicySettings, names
from cachebus.presentation import name_from_text
from cachebus.wire.message import pack
from tests.core_bed import NOW, address, answer, rrset


def policy(**settings: object) -> Policy:
    return Policy(PolicySettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "owner",
    [
        "www.test", "localhost", "a.localhost", "printer.local", "x.invalid", "abc.onion", "host.internal",
        "nas.home.arpa", "_dns.resolver.arpa", "ipv4only.arpa", "1.0.0.10.in-addr.arpa", "9.16.172.in-addr.arpa",
        "5.31.172.in-addr.arpa", "1.1.168.192.in-addr.arpa", "1.0.0.127.in-addr.arpa", "7.2.0.192.in-addr.arpa",
        "1.64.100.in-addr.arpa",
        "1." + "0." * 31 + "ip6.arpa", "a.b.d.f.ip6.arpa", "1.8.e.f.ip6.arpa", "x.alt",
    ],
)  # fmt: skip
def test_special_use_names_stay(owner: str) -> None:
    given = answer(rrset(owner, "TXT", '"x"'))
    assert policy().refuse_to_share(given) is Refusal.SPECIAL_USE_NAME
    assert policy().refuse_to_accept(given) is Refusal.SPECIAL_USE_NAME
    assert policy(private_names=True).refuse_to_share(given) is None


@pytest.mark.parametrize("denied", [".", "x", "xy", "a.x", "example.com"])
@pytest.mark.parametrize("owner", [".", "x", "y", "xy", "zy", "a.x", "b.a.x", "a.xx", "example.com", "a.example.com"])
def test_deny_is_at_or_below_however_short_the_names(denied: str, owner: str) -> None:
    below = denied == "." or owner == denied or owner.endswith(f".{denied}")
    given = answer(RRset(name_from_text(owner), 16, 300, pack(16, 300, [b"\1x"])))
    assert policy(deny=names([denied])).refuse_to_accept(given) is (Refusal.DENIED if below else None)


@pytest.mark.parametrize("owner", ["www.example.com", "example.net", "latest", "mytest.com", "1.32.172.in-addr.arpa"])
def test_public_names_go(owner: str) -> None:
    assert policy().refuse_to_share(answer(rrset(owner, "TXT", '"x"'))) is None


@pytest.mark.parametrize(
    ("rrtype", "text"),
    [
        ("A", "10.0.0.1"), ("A", "172.16.0.1"), ("A", "172.31.255.255"), ("A", "192.168.1.1"), ("A", "127.0.0.1"),
        ("A", "169.254.1.1"), ("A", "0.0.0.0"), ("AAAA", "::1"), ("AAAA", "fd00::1"), ("AAAA", "fe80::1"),
        ("AAAA", "::ffff:10.1.1.1"), ("AAAA", "::ffff:192.168.0.1"), ("AAAA", "fc00::"),
    ],
)  # fmt: skip
def test_private_addresses_of_public_names_stay(rrtype: str, text: str) -> None:
    given = answer(rrset("www.example.com", rrtype, text))
    assert policy().refuse_to_share(given) is Refusal.PRIVATE_ADDRESS
    public = {"A": "192.0.2.1", "AAAA": "2001:db8::1"}[rrtype]
    assert policy().refuse_to_share(answer(rrset("www.example.com", rrtype, public, text))) is Refusal.PRIVATE_ADDRESS
    allowing = policy(allow=names(["example.com"]))
    assert allowing.refuse_to_share(given) is None


@pytest.mark.parametrize(
    ("rrtype", "text"),
    [
        ("A", "172.15.0.1"), ("A", "172.32.0.1"), ("A", "192.167.1.1"), ("A", "169.253.1.1"), ("A", "198.51.100.1"),
        ("A", "203.0.113.1"), ("A", "11.0.0.1"), ("AAAA", "2001:db8::1"), ("AAAA", "::ffff:8.8.8.8"),
        ("AAAA", "64:ff9b::1"),
    ],
)  # fmt: skip
def test_public_and_documentation_addresses_go(rrtype: str, text: str) -> None:
    assert policy().refuse_to_share(answer(rrset("www.example.com", rrtype, text))) is None


def test_allow_lifts_the_rule_at_or_below_and_restricts_nothing_else() -> None:
    allowing = policy(allow=names(["example.test."]))
    assert allowing.refuse_to_share(address("example.test")) is None
    assert allowing.refuse_to_share(address("www.example.test")) is None
    assert allowing.refuse_to_share(address("other.test")) is Refusal.SPECIAL_USE_NAME
    assert allowing.refuse_to_share(address("badexample.test")) is Refusal.SPECIAL_USE_NAME
    assert allowing.refuse_to_share(address("www.example.com")) is None


def test_deny_wins() -> None:
    denying = policy(allow=names(["test"]), deny=names(["secret.test", "example.com"]))
    assert denying.refuse_to_share(address("a.secret.test")) is Refusal.DENIED
    assert denying.refuse_to_accept(address("secret.test")) is Refusal.DENIED
    assert denying.refuse_to_share(address("open.test")) is None
    chain = answer(rrset("www.example.net", "CNAME", "x.example.com."), rrset("x.example.com", "A", "192.0.2.1"))
    assert denying.refuse_to_share(chain) is Refusal.DENIED
    # The verdict is remembered by parent: a name ruled on by itself must not be judged by its sibling's.
    assert denying.refuse_to_share(address("sibling.test")) is None
    assert denying.refuse_to_share(address("secret.test")) is Refusal.DENIED


def test_the_root_and_single_labels() -> None:
    assert policy().refuse_to_share(answer(rrset(".", "TXT", '"x"'))) is None
    assert policy().refuse_to_share(answer(rrset("com", "TXT", '"x"'))) is None
    assert policy().refuse_to_share(answer(rrset("test", "TXT", '"x"'))) is Refusal.SPECIAL_USE_NAME


def test_min_ttl_is_the_senders() -> None:
    assert policy().refuse_to_share(address(ttl=29)) is Refusal.TTL_BELOW_MINIMUM
    assert policy().refuse_to_share(address(ttl=30)) is None
    assert policy().refuse_to_accept(address(ttl=1)) is None


@pytest.mark.parametrize(("rrtype", "text"), [("NS", "a.test."), ("DS", "1 13 2 aa"), ("SOA", "a. b. 1 2 3 4 5")])
def test_infrastructure_only_when_asked_for(rrtype: str, text: str) -> None:
    if rrtype == "DS":
        text = "1 13 2 " + "aa" * 32
    given = answer(rrset("example.com", rrtype, text))
    assert policy().refuse_to_share(given) is Refusal.QTYPE
    assert policy(infrastructure=True).refuse_to_share(given) is None


def noise(**settings: float) -> Noise:
    return Noise(NoiseSettings(**settings))


def test_the_same_answer_goes_once_until_half_of_its_ttl_has_passed() -> None:
    control = noise()
    given = address(ttl=100)
    assert control.refuse(given, NOW) is None
    assert control.refuse(given, NOW + 49) is Refusal.ALREADY_SHARED
    assert control.refuse(given._replace(learned=NOW + 51), NOW + 51) is None


def test_other_data_or_better_evidence_goes_at_once() -> None:
    control = noise()
    assert control.refuse(address(last=1), NOW) is None
    assert control.refuse(address(last=2), NOW) is None
    assert control.refuse(address(last=2, evidence=Evidence.CONFIRMED), NOW) is None
    assert control.refuse(address(last=2), NOW) is Refusal.ALREADY_SHARED


def test_what_did_not_leave_the_node_goes_the_next_time() -> None:
    control = noise()
    assert control.refuse(address(last=1), NOW) is None
    assert control.refuse(address(last=2), NOW + 1) is None
    control.unsent(address(last=2, learned=NOW + 5))  # another one, of which nothing is remembered
    assert control.refuse(address(last=2), NOW + 2) is Refusal.ALREADY_SHARED
    control.unsent(address(last=2))
    assert control.refuse(address(last=2), NOW + 2) is None


def test_a_reload_keeps_what_was_seen_and_sent_and_unchanged_rates() -> None:
    before, after = noise(node_rate=10, zone_rate=100), noise(node_rate=10, zone_rate=5, second_sighting=600)
    assert _flood(before, "n{}.example.com", 100, NOW) == 20
    after.inherit(before)
    assert after.refuse(address("n0.example.com"), NOW) is Refusal.ALREADY_SHARED
    assert _flood(after, "m{}.example.com", 100, NOW + 1) == 0  # seen once
    assert _flood(after, "n{}.example.com", 20, NOW + 301) == 0
    fast = noise(node_rate=20)
    fast.inherit(before)
    assert _flood(fast, "o{}.example.com", 100, NOW) == 40


def test_second_sighting() -> None:
    control = noise(second_sighting=600)
    assert control.refuse(address(learned=NOW), NOW) is Refusal.FIRST_SIGHTING
    assert control.refuse(address(learned=NOW + 601), NOW + 601) is Refusal.FIRST_SIGHTING
    assert control.refuse(address(learned=NOW + 700), NOW + 700) is None


def test_evidence_that_rises_is_no_second_sighting() -> None:
    control = noise(second_sighting=600)
    assert control.refuse(address(), NOW) is Refusal.FIRST_SIGHTING
    assert control.refuse(address(evidence=Evidence.CONFIRMED), NOW + 1) is Refusal.FIRST_SIGHTING
    assert control.refuse(address(learned=NOW + 9), NOW + 9) is None
    assert control.refuse(address(learned=NOW + 9, evidence=Evidence.CONFIRMED), NOW + 10) is None


def test_order_and_what_is_left_of_a_ttl_make_no_other_answer() -> None:
    control = noise()
    texts = ("192.0.2.1", "192.0.2.2")
    assert control.refuse(answer(rrset("www.example.com", "A", *texts)), NOW) is None
    turned = answer(rrset("www.example.com", "A", *reversed(texts), ttl=299))
    assert control.refuse(turned, NOW + 1) is Refusal.ALREADY_SHARED


def test_damping_while_cold() -> None:
    control = Noise(NoiseSettings(damping=60), started=NOW)
    assert control.refuse(address("a.example.com"), NOW + 1) is Refusal.FIRST_SIGHTING
    assert control.refuse(address("a.example.com", learned=NOW + 30), NOW + 30) is None
    assert control.refuse(address("b.example.com"), NOW + 59) is Refusal.FIRST_SIGHTING
    assert control.refuse(address("c.example.com"), NOW + 60) is None


def _flood(control: Noise, owner: str, count: int, at: float) -> int:
    def given(number: int) -> Answer:
        return address(owner.format(number))

    return sum(control.refuse(given(number), at) is None for number in range(count))


def test_rates() -> None:
    control = noise(node_rate=10)
    assert _flood(control, "n{}.example.com", 100, NOW) == 20
    assert _flood(control, "m{}.example.com", 100, NOW + 1) == 10
    zoned = noise(zone_rate=5)
    assert _flood(zoned, "n{}.example.com", 100, NOW) == 10
    assert _flood(zoned, "n{}.example.net", 100, NOW) == 10


def test_noise_memory_is_bounded() -> None:
    control = Noise(NoiseSettings(), remember=10)
    for number in range(100):
        control.refuse(address(f"n{number}.example.com"), NOW)
    again = sum(
        control.refuse(address(f"n{number}.example.com"), NOW) is Refusal.ALREADY_SHARED for number in range(100)
    )
    assert again <= 20


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("1 . alpn=h2 ipv4hint=192.0.2.1,10.0.0.1", Refusal.PRIVATE_ADDRESS),
        ("1 . ipv6hint=2001:db8::1,fd00::1", Refusal.PRIVATE_ADDRESS),
        ("1 . alpn=h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1", None),
        ("0 svc.example.net.", None),
    ],
)
def test_address_hints_are_addresses(text: str, refusal: Refusal | None) -> None:
    assert policy().refuse_to_accept(answer(rrset("www.example.com", "HTTPS", text))) is refusal
