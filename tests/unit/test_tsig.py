"""TSIG against dnspython, a captured message, and every way to get it wrong (trust rules 6.1 and 6.2)."""

from __future__ import annotations

import base64
from pathlib import Path

import dns.exception
import dns.message
import dns.rrset
import pytest

from cachebus.answer import Refusal
from cachebus.errors import ConfigError
from cachebus.wire.tsig import ALGORITHMS, MAX_FUDGE, MAX_STRETCHES, Key, ReplayMemory, Signer, Verified, Verifier
from tests.core_bed import KEY_NAME, NOW, SECRET, key, keyring

CAPTURED = Path(__file__).parent.parent / "data" / "unbound-pr1250-signed.hex"
CAPTURED_AT = 1795238462.731
MESSAGE = bytes.fromhex("1234 8400 0001 0001 0000 0000") + (
    b"\x03www\x07example\x04test\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc0\0\x02\x01"
)


def signed(message: bytes = MESSAGE, now: float = NOW, with_key: Key | None = None) -> bytes:
    return Signer(with_key or key()).sign(message, now)[0]


def verify(data: bytes, now: float = NOW, *keys: Key, start: float | None = None) -> Verified | Refusal:
    return Verifier(keys or (key(),), start=start).verify(data, now)


def test_the_captured_message_of_unbound_verifies() -> None:
    data = bytes.fromhex(CAPTURED.read_text().splitlines()[1])
    made = Key.make("cachebus.test.", "hmac-sha256", base64.b64decode("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="))
    found = verify(data, CAPTURED_AT, made)
    assert isinstance(found, Verified)
    assert (found.end, found.signed) == (48, 1795238462)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ours_is_accepted_by_dnspython_and_theirs_by_us(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    ring = keyring(algorithm=algorithm)
    read = dns.message.from_wire(signed(with_key=key(algorithm=algorithm)), keyring=ring)
    assert read.had_tsig
    assert read.answer[0].to_text() == "www.example.test. 300 IN A 192.0.2.1"
    theirs = dns.message.make_response(dns.message.make_query("www.example.test", "A"))
    theirs.answer.append(dns.rrset.from_text("www.example.test.", 60, "IN", "A", "192.0.2.1"))
    theirs.use_tsig(ring, KEY_NAME)
    assert isinstance(verify(theirs.to_wire(), NOW, key(algorithm=algorithm)), Verified)


def test_the_key_name_is_case_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    theirs = dns.message.make_response(dns.message.make_query("www.example.test", "A"))
    theirs.use_tsig(keyring("CLUSTER-2026"), "CLUSTER-2026")
    assert isinstance(verify(theirs.to_wire()), Verified)


def test_the_key_name_may_be_compressed() -> None:
    under = key("key.example.test")
    data = signed(with_key=under)
    at = data.index(b"\x03key\x07example", 30)
    compressed = data[: at + 4] + b"\xc0\x10" + data[at + 4 + 14 :]
    assert isinstance(verify(compressed, NOW, under), Verified)


def test_another_original_id() -> None:
    data = signed()
    forwarded = b"\xab\xcd" + data[2:]
    assert isinstance(verify(forwarded), Verified)


def test_any_altered_byte_is_refused() -> None:
    data = signed()
    for at in range(2, len(data)):
        altered = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert isinstance(verify(altered), Refusal), at
    # The ID is not covered, its original is (RFC 8945 section 4.3.3).
    assert isinstance(verify(b"\0\0" + data[2:]), Verified)


@pytest.mark.parametrize(
    ("refusal", "data"),
    [
        (Refusal.BAD_MAC, signed(with_key=key(secret=b"x" * 32))),
        (Refusal.UNKNOWN_KEY, signed(with_key=key("other-2026"))),
        (Refusal.WRONG_ALGORITHM, signed(with_key=key(algorithm="hmac-sha512"))),
        (Refusal.BAD_TIME, signed(now=NOW - MAX_FUDGE - 1)),
        (Refusal.BAD_TIME, signed(now=NOW + MAX_FUDGE + 1)),
        (Refusal.TRAILING_BYTES, signed() + b"\0"),
        (Refusal.UNSIGNED, MESSAGE),
        (Refusal.UNSIGNED, bytes(12)),
        (Refusal.MALFORMED, b""),
        (Refusal.MALFORMED, signed()[:-1]),
    ],
    ids=["secret", "name", "algorithm", "old", "future", "trailing", "unsigned", "empty message", "nothing", "cut"],
)
def test_each_fault_has_its_reason(refusal: Refusal, data: bytes) -> None:
    assert verify(data) is refusal


def _record(data: bytes) -> int:
    return data.index(b"\x0ccluster-2026", 12)


def test_a_truncated_mac_is_refused() -> None:
    data = signed()
    at = _record(data)
    rdata = data[at + 24 :]
    mac_at = 13 + 10
    short = rdata[: mac_at - 2] + b"\0\x10" + rdata[mac_at : mac_at + 16] + rdata[mac_at + 32 :]
    cut = data[: at + 22] + len(short).to_bytes(2, "big") + short
    assert verify(cut) is Refusal.TRUNCATED_MAC


@pytest.mark.parametrize(("offset", "value"), [(16, 1), (17, 1), (18, 9)], ids=["class", "class low", "ttl"])
def test_class_and_ttl_of_the_record(offset: int, value: int) -> None:
    data = bytearray(signed())
    data[_record(bytes(data)) + offset] = value
    assert verify(bytes(data)) is Refusal.TSIG_FORM


def test_error_and_other_length_must_be_zero() -> None:
    for back in (3, 1):
        data = bytearray(signed())
        data[-back] = 1
        assert verify(bytes(data)) is Refusal.TSIG_FORM


def test_tsig_must_be_the_last_record() -> None:
    data = signed()
    more = data[:10] + b"\0\2" + data[12:] + b"\0\0\x01\0\x01\0\0\0\0\0\x04\x01\x02\x03\x04"
    assert verify(more) is Refusal.UNSIGNED


def test_several_keys_for_a_rollover() -> None:
    old, new = key("cluster-2025", secret=b"o" * 32), key()
    for used in (old, new):
        found = verify(signed(with_key=used), NOW, new, old)
        assert isinstance(found, Verified)
        assert found.key.text == used.text


def test_a_replay_is_a_duplicate() -> None:
    verifier = Verifier((key(),), start=None)
    data = signed()
    assert isinstance(verifier.verify(data, NOW), Verified)
    assert verifier.verify(data, NOW + 1) is Refusal.DUPLICATE
    assert verifier.verify(data, NOW + MAX_FUDGE - 1) is Refusal.DUPLICATE
    assert verifier.verify(data, NOW + 2 * MAX_FUDGE) is Refusal.BAD_TIME


def test_a_replay_across_a_restart_is_refused() -> None:
    data = signed(now=NOW - 5)
    after = Verifier((key(),), start=NOW)
    assert after.verify(data, NOW + 1) is Refusal.BEFORE_START
    assert after.verify(data, NOW + MAX_FUDGE - 6) is Refusal.BEFORE_START
    # What was signed in the second of the start may have been taken before it.
    assert after.verify(signed(now=NOW), NOW) is Refusal.BEFORE_START
    assert isinstance(after.verify(signed(now=NOW + 1), NOW + 1), Verified)


def test_a_clock_step_back_does_not_lift_the_start() -> None:
    after = Verifier((key(),), start=NOW)
    assert after.verify(signed(now=NOW - 250), NOW - 240) is Refusal.BEFORE_START


def test_a_clock_that_was_a_day_ahead_at_the_start_refuses_for_the_fudge_only() -> None:
    """Counted by a clock that nobody sets; honest messages are all signed "before the start" for that day."""
    after = Verifier((key(),), start=NOW + 86400)
    for passed in (0.0, 10.0, MAX_FUDGE + 0.0):
        after.tick(5000.0 + passed)
        assert after.verify(signed(now=NOW + passed), NOW + passed) is Refusal.BEFORE_START
    after.tick(5000.5 + MAX_FUDGE)
    assert isinstance(after.verify(signed(now=NOW + 301), NOW + 301), Verified)
    # What the process before had taken is out of time by then.
    assert after.verify(signed(now=NOW), NOW + MAX_FUDGE + 1) is Refusal.BAD_TIME


def test_a_reload_does_not_count_the_start_anew() -> None:
    before, after = Verifier((key(),), start=NOW), Verifier((key(),), start=NOW + 200)
    before.tick(100.0)
    after.inherit(before)
    after.tick(100.5 + MAX_FUDGE)
    assert isinstance(after.verify(signed(now=NOW - 1), NOW), Verified)


def test_our_own_message_is_known() -> None:
    signer, verifier = Signer(key()), Verifier((key(),), start=None)
    data, mac = signer.sign(MESSAGE, NOW)
    verifier.sent(mac, NOW)
    assert verifier.verify(data, NOW + 1) is Refusal.OWN_MESSAGE


def test_a_reload_inherits_the_memory() -> None:
    before = Verifier((key(),), start=NOW - 1000)
    data = signed()
    before.verify(data, NOW)
    after = Verifier((key(), key("new-2027")), start=NOW + 1)
    after.inherit(before)
    assert after.verify(data, NOW + 2) is not None
    assert after.verify(data, NOW + 2) in (Refusal.DUPLICATE, Refusal.BEFORE_START)
    same = Verifier((key(),), start=NOW + 1)
    same.inherit(before)
    assert same.verify(data, NOW + 2) is Refusal.DUPLICATE
    assert isinstance(same.verify(signed(MESSAGE[:2] + MESSAGE[2:], now=NOW + 0.9), NOW + 2), Refusal | Verified)


def test_a_full_replay_memory_refuses_and_never_lets_a_replay_in() -> None:
    memory = ReplayMemory(600, 10)
    second = int(NOW)
    for number in range(10):
        assert memory.take(second + number // 5, number.to_bytes(8, "big"), NOW) is None
    assert memory.take(second + 2, b"overflow", NOW) is None
    assert memory.count <= 10
    for number in range(10):
        refusal = memory.take(second + number // 5, number.to_bytes(8, "big"), NOW)
        assert refusal in (Refusal.REPLAY_WINDOW, Refusal.DUPLICATE)
    assert memory.take(second, b"another!", NOW) is Refusal.REPLAY_WINDOW


def test_the_replay_memory_forgets_what_the_time_check_refuses() -> None:
    memory = ReplayMemory(600, 1000)
    memory.take(int(NOW), b"12345678", NOW)
    memory.take(int(NOW) + 700, b"87654321", NOW + 700)
    assert memory.count == 1


DAY = 86400


def test_a_clock_set_back_lets_no_replay_in() -> None:
    verifier = Verifier((key(),), start=None)
    early, late = signed(), signed(now=NOW + 900)
    assert isinstance(verifier.verify(early, NOW), Verified)
    assert isinstance(verifier.verify(late, NOW + 900), Verified)
    assert verifier.verify(early, NOW + 2) is Refusal.REPLAY_WINDOW


def test_a_clock_that_is_set_right_refuses_what_is_signed_now_no_longer() -> None:
    """A node whose clock alone jumps a day ahead and comes back: replays stay out, honest traffic goes on."""
    verifier = Verifier((key(),), start=None)
    old = signed()
    assert isinstance(verifier.verify(old, NOW), Verified)
    assert verifier.verify(signed(now=NOW + 1), NOW + DAY) is Refusal.BAD_TIME
    assert verifier.verify(old, NOW + 2) is Refusal.DUPLICATE
    for passed in range(3, 1000, 100):
        assert isinstance(verifier.verify(signed(now=NOW + passed), NOW + passed), Verified)


def test_a_whole_cluster_that_was_a_day_ahead_and_is_set_right() -> None:
    """What was taken in the wrong day is refused when that time comes; before, nothing is."""
    memory = ReplayMemory(2 * MAX_FUDGE, 1000)
    begun = int(NOW) + DAY
    for second in range(begun, begun + 2000, 10):
        assert memory.take(second, second.to_bytes(8, "big"), second) is None
    for second in range(int(NOW), int(NOW) + 2000, 10):
        assert memory.take(second, second.to_bytes(8, "big"), second) is None
    assert memory.count <= 2 * MAX_FUDGE
    for second in range(begun, begun + 2000, 10):
        refusal = memory.take(second, second.to_bytes(8, "big"), second)
        assert refusal in (Refusal.REPLAY_WINDOW, Refusal.DUPLICATE)
    assert memory.take(begun + 3000, b"12345678", begun + 3000) is None


def test_stretches_given_up_stay_few_and_never_open_again() -> None:
    memory = ReplayMemory(600, 1000)
    seconds = range(int(NOW), int(NOW) + 100 * 3600, 3600)
    for second in seconds:
        assert memory.take(second, b"12345678", second) is None
    assert len(memory._given_up) <= MAX_STRETCHES
    for second in seconds:
        assert memory.take(second, b"12345678", second) in (Refusal.REPLAY_WINDOW, Refusal.DUPLICATE)


def test_secrets_do_not_show() -> None:
    made = key()
    verifier = Verifier((made,), start=None)
    for text in (repr(made), str(made), repr(made.secret), repr(verifier), f"{made.secret!s}"):
        assert "\\x00\\x01" not in text
        assert base64.b64encode(SECRET).decode() not in text


@pytest.mark.parametrize(
    ("name", "algorithm", "secret"),
    [("k", "hmac-md5", SECRET), ("k", "hmac-sha256", b"short"), ("a..b", "hmac-sha256", SECRET)],
)
def test_keys_that_cannot_be(name: str, algorithm: str, secret: bytes) -> None:
    with pytest.raises(ConfigError):
        Key.make(name, algorithm, secret)


def test_a_long_secret_is_hashed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    long = bytes(200)
    dns.message.from_wire(signed(with_key=key(secret=long)), keyring=keyring(secret=long))
    with pytest.raises(dns.exception.DNSException):
        dns.message.from_wire(signed(with_key=key(secret=long)), keyring=keyring(secret=bytes(199)))


def test_a_batch_of_several_keys_and_seconds_is_verified_as_each_message_alone() -> None:
    other = Key.make("other.", "hmac-sha512", b"o" * 32)
    batch = [
        Signer(used).sign(number.to_bytes(2, "big") + MESSAGE[2:], NOW - number // 8)[0]
        for number in range(32)
        for used in ((key(), other)[number % 3 == 0],)
    ]
    batch[5] = batch[5][:-40] + bytes([batch[5][-40] ^ 1]) + batch[5][-39:]
    batch[9] = batch[9][:60]
    batch.append(batch[7])
    alone = Verifier((key(), other), start=None)
    expected = [alone.verify(data, NOW) for data in batch]
    together = Verifier((key(), other), start=None).verify_all(batch, NOW)
    assert [_said(each) for each in together] == [_said(each) for each in expected]
    assert sum(isinstance(each, Verified) for each in together) == 30
    assert together[-1] is Refusal.DUPLICATE


def _said(found: Verified | Refusal) -> object:
    return found if isinstance(found, Refusal) else (found.header, found.body, found.key.text, found.signed)
