"""Server cookies: SipHash and RFC 9018's own examples, what is malformed, how long one is good, which secret signs."""

from __future__ import annotations

import pytest

from cachebus.config.shim_front import parse_cookie_secrets
from cachebus.errors import ConfigError
from cachebus.shim import cookies
from cachebus.shim.cookies import Cookie, CookieSettings, Proof, ServerCookies, siphash24

SECRET = bytes.fromhex("e5e973e5a6b2a43f48e7dc849e37bfcf")
OLD_SECRET = bytes.fromhex("dd3bdf9344b678b185a6f5cb60fca715")
NEW_SECRET = bytes.fromhex("445536bcd2513298075a5d379663c962")
V4, OTHER_V4, V6 = "198.51.100.100", "203.0.113.203", "2001:db8:220:1:59de:d0f4:8769:82b8"
CLIENT = bytes.fromhex("2464c4abcf10c957")
FIRST = bytes.fromhex("2464c4abcf10c957010000005cf79f111f8130c3eee29480")
NOW = 1559731985


def server(*secrets: bytes) -> ServerCookies:
    return ServerCookies(CookieSettings(secrets=secrets or (SECRET,)))


def checked(data: bytes, client: str, now: float, cookies: ServerCookies) -> Cookie:
    cookie = cookies.check(data, client, now)
    assert cookie is not None
    assert cookie.option[:4] == b"\0\x0a\0\x18"
    return cookie


def test_siphash_of_its_authors() -> None:
    key = bytes(range(16))
    assert siphash24(key, b"").hex() == "310e0edd47db6f72"
    assert siphash24(key, bytes(range(1))).hex() == "fd67dc93c539f874"
    assert siphash24(key, bytes(range(7))).hex() == "37d1018bf50002ab"
    assert siphash24(key, bytes(range(8))).hex() == "6224939a79f5f593"
    assert siphash24(key, bytes(range(15))).hex() == "e545be4961ca29a1"


@pytest.mark.parametrize(
    ("client", "now", "sent", "secrets", "proof", "given"),
    [
        ("A.1", NOW, CLIENT.hex(), (SECRET,), Proof.NONE, FIRST.hex()),
        ("A.2", 1559734385, FIRST.hex(), (SECRET,), Proof.GOOD, "2464c4abcf10c957010000005cf7a871d4a564a1442aca77"),
        (
            "A.3", 1559734700, "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", (SECRET,), Proof.BAD,
            "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e",
        ),
        (
            "A.4", 1559741961, "22681ab97d52c298010000005cf7c57926556bd0934c72f8", (NEW_SECRET, OLD_SECRET), Proof.GOOD,
            "22681ab97d52c298010000005cf7c609a6bb79d16625507a",
        ),
    ],
)  # fmt: skip
def test_examples_of_rfc_9018_appendix_a(
    client: str, now: int, sent: str, secrets: tuple[bytes, ...], proof: Proof, given: str
) -> None:
    address = {"A.1": V4, "A.2": V4, "A.3": OTHER_V4, "A.4": V6}[client]
    cookie = checked(bytes.fromhex(sent), address, now, server(*secrets))
    assert (cookie.proof, cookie.option[4:].hex()) == (proof, given)


def test_reserved_bytes_are_part_of_what_is_signed() -> None:
    """The third example while its cookie is young: reserved bytes of another server do not make it a bad one."""
    sent = bytes.fromhex("fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5")
    cookie = checked(sent, OTHER_V4, 0x5CF78F71 + 60, server())
    assert cookie.proof is Proof.GOOD
    assert cookie.option[13:16] == bytes(3), "and the new one has none"
    changed = sent[:10] + b"\0" + sent[11:]
    assert checked(changed, OTHER_V4, 0x5CF78F71 + 60, server()).proof is Proof.BAD


@pytest.mark.parametrize("length", [0, 1, 7, 9, 15, 41, 100])
def test_malformed(length: int) -> None:
    assert server().check(bytes(length), V4, NOW) is None


@pytest.mark.parametrize("length", [16, 17, 23, 24, 25, 40])
def test_server_cookies_of_others(length: int) -> None:
    assert checked(bytes(length), V4, NOW, server()).proof is Proof.BAD


@pytest.mark.parametrize(
    ("age", "proof", "renewed"),
    [
        (-301, Proof.BAD, True),
        (-300, Proof.GOOD, False),
        (0, Proof.GOOD, False),
        (1800, Proof.GOOD, False),
        (1801, Proof.GOOD, True),
        (3600, Proof.GOOD, True),
        (3601, Proof.BAD, True),
    ],
)
def test_age(age: int, proof: Proof, renewed: bool) -> None:
    cookie = checked(FIRST, V4, NOW + age, server())
    assert cookie.proof is proof
    assert (cookie.option[4:] != FIRST) is renewed


def test_another_address_client_cookie_or_time_spoils_it() -> None:
    cookies = server()
    assert checked(FIRST, V4, NOW, cookies).proof is Proof.GOOD
    assert checked(FIRST, OTHER_V4, NOW, cookies).proof is Proof.BAD
    for index in range(len(FIRST)):
        changed = bytearray(FIRST)
        changed[index] ^= 1
        assert checked(bytes(changed), V4, NOW, cookies).proof is Proof.BAD, index


def test_a_mapped_address_is_the_one_inside() -> None:
    assert checked(FIRST, f"::ffff:{V4}", NOW, server()).proof is Proof.GOOD


def test_what_was_found_good_is_known_until_it_needs_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = server()
    assert checked(FIRST, V4, NOW, made).proof is Proof.GOOD
    monkeypatch.setattr(cookies, "_siphash24", lambda key, data: 0)
    assert checked(FIRST, V4, NOW + 1799, made).proof is Proof.GOOD
    assert checked(FIRST, V4, NOW + 1800, made).proof is Proof.BAD, "looked at again"
    assert checked(FIRST, OTHER_V4, NOW, made).proof is Proof.BAD


def test_secrets_roll() -> None:
    """Staged, active, retired: RFC 9018 section 5."""
    staged, active, retired = server(SECRET, NEW_SECRET), server(NEW_SECRET, SECRET), server(NEW_SECRET)
    assert checked(FIRST, V4, NOW, staged).option[4:] == FIRST
    renewed = checked(FIRST, V4, NOW, active)
    assert renewed.proof is Proof.GOOD
    assert renewed.option[4:] != FIRST
    assert checked(renewed.option[4:], V4, NOW, staged).proof is Proof.GOOD
    assert checked(FIRST, V4, NOW, retired).proof is Proof.BAD
    assert checked(renewed.option[4:], V4, NOW, retired).proof is Proof.GOOD


def test_secrets_of_our_own_change_every_day_and_stay_good_for_their_life() -> None:
    settings = CookieSettings()
    ours, twin, stranger = ServerCookies(settings), ServerCookies(settings), ServerCookies(CookieSettings())
    midnight = 20_000 * cookies.SEED_PERIOD
    evening = checked(CLIENT, V4, midnight - 10, ours).option[4:]
    assert checked(evening, V4, midnight - 5, twin).proof is Proof.GOOD, "every process makes the same"
    assert checked(evening, V4, midnight - 5, stranger).proof is Proof.BAD
    night = checked(evening, V4, midnight + 10, ours)
    assert night.proof is Proof.GOOD
    assert night.option[4:] != evening
    assert checked(night.option[4:], V4, midnight + 20, twin).proof is Proof.GOOD
    assert checked(evening, V4, midnight + cookies.LIFE + 10, ours).proof is Proof.BAD


def test_secret_files() -> None:
    text = SECRET.hex()
    assert parse_cookie_secrets(f"{text}\n{NEW_SECRET.hex().upper()}\n") == (SECRET, NEW_SECRET)
    for wrong in ("", text[:-1], text + "0", "x" * 32, "\n".join([text] * 4), f"{text} and more"):
        with pytest.raises(ValueError, match="1 to 3 lines of 32 hex digits"):
            parse_cookie_secrets(wrong)
    with pytest.raises(ConfigError, match="at most 3 secrets of 16 bytes"):
        CookieSettings(secrets=(b"short",))
    assert SECRET.hex() not in repr(CookieSettings(secrets=(SECRET,)))
