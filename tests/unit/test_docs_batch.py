"""What docs/wire/batch.md says of bytes and figures is true of the code."""

from __future__ import annotations

import base64
import hmac
import re

import msgpack
import pytest

from cachebus.answer import Answer, Evidence
from cachebus.codecs import batch as codec_module
from cachebus.codecs.batch import BatchCodec, BatchCodecSettings
from cachebus.wire import batch, sequence
from cachebus.wire.tsig import Key
from tests.core_bed import answer, rrset
from tests.unit.test_docs import ROOT, blocks, hex_rows

PAGE = ROOT / "docs/wire/batch.md"
SENT = 1795238462.0


def example() -> bytes:
    return hex_rows(blocks("text", pages=[PAGE])[0].text)


def secret() -> bytes:
    found = re.search(r"`([A-Za-z0-9+/=]{44})`", PAGE.read_text())
    assert found
    return base64.b64decode(found[1])


def codec(node: str) -> BatchCodec:
    key = Key.make("cachebus.test", "hmac-sha256", secret())
    return BatchCodec(BatchCodecSettings(node=node, cluster="home", transport="mq", key=key), start=None)


def answers() -> list[Answer]:
    www = rrset("www.other.test", "A", "192.0.2.20", ttl=600)
    alias = rrset("mail.other.test", "CNAME", "www.other.test.")
    return [
        answer(www, learned=SENT - 1.5, evidence=Evidence.CONFIRMED),
        answer(alias, www, learned=SENT)._replace(validating=True),
    ]


def test_example_is_what_a_node_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = codec("ams-1")
    monkeypatch.setattr("os.urandom", lambda count: b"\0\0\x2a"[-count:])
    sender.restore({})
    sender._sending.stream, sender._sending.sequence = sequence.new_stream(SENT - 62), 6
    assert sender.encode(answers(), SENT) == ([example()], [])


def test_example_is_what_a_node_takes() -> None:
    taken, refusals = codec("fra-1").decode_all([(example(), "")], SENT)
    assert not refusals
    assert taken == [one._replace(origin="ams-1", transport="mq", signer="cachebus.test") for one in answers()]


def test_example_verifies_from_what_the_page_says() -> None:
    data = example()
    assert f"The {len(data)} bytes" in PAGE.read_text()
    head = data[: 5 + data[4] + 1]
    mac, body = data[len(head) : len(head) + 32], data[len(head) + 32 :]
    assert hmac.digest(secret(), head + body, "sha256") == mac
    payload = msgpack.unpackb(msgpack.unpackb(body)[7])
    assert len(payload) == 6


FIGURES = [
    ("at most {} bytes; nodes send", batch.MAX_ENVELOPE),
    ("`max_message`, {} by default", codec_module.DEFAULT_ENVELOPE),
    ("at most {} bytes from exactly one", batch.MAX_PAYLOAD),
    ("window of at most {} MiB", (1 << batch.WINDOW_LOG) >> 20),
    ("at most {} byte strings", batch.MAX_ITEMS),
    ("up to {} entries", batch.MAX_EXTRA),
    ("sent at most {:.0f} s ago", sequence.MAX_AGE),
    ("at most {:.0f} s ahead", sequence.MAX_AHEAD),
    ("at most {} below the newest", sequence.WINDOW - 1),
]


@pytest.mark.parametrize(("words", "constant"), FIGURES, ids=[words for words, _ in FIGURES])
def test_figures_are_those_of_the_code(words: str, constant: float) -> None:
    assert words.format(constant) in " ".join(PAGE.read_text().split())
