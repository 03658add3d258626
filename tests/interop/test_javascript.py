"""`docs/wire/` is enough to write a subscriber in another language: the one in JavaScript sees what `tail` sees.

It takes what a real publisher sends through a real broker, and refuses what a broker made up, changed or repeated.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cachebus.answer import Answer
from cachebus.cli.bench_trace import trace
from cachebus.codecs.batch import BatchCodec, BatchCodecSettings
from cachebus.presentation import type_to_text
from cachebus.wire.message import compose
from cachebus.wire.tsig import Key
from tests.farm.mosquitto import Mosquitto
from tests.farm.process import eventually
from tests.servers import find, require

pytestmark = pytest.mark.interop
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs/examples/javascript"
SECRET = bytes(range(32))
KEY = "cachebus.test:hmac-sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PLAIN = {"A", "AAAA", "CNAME", "MX", "TXT"}
"""Types that the example writes as people do."""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with what npm installs for it."""
    require("node", "npm", "mosquitto")
    directory = tmp_path_factory.mktemp("javascript")
    for path in EXAMPLE.iterdir():
        if path.is_file():
            shutil.copy(path, directory)
    done = subprocess.run(
        [str(find("npm")), "install", "--no-audit", "--no-fund", "--prefer-offline", "--ignore-scripts"],
        cwd=directory, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def broker(farm: Path) -> Iterator[Mosquitto]:
    require("mosquitto")
    with Mosquitto(farm) as running:
        yield running


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


@contextmanager
def process(*command: object, cwd: Path, output: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    words = [str(word) for word in command]
    with (
        (output or Path(os.devnull)).open("wb") as file,
        subprocess.Popen(
            words,
            cwd=cwd,
            stdout=file if output else subprocess.PIPE,
            stderr=subprocess.DEVNULL if output else subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            text=True,
        ) as running,
    ):
        try:
            yield running
        finally:
            running.terminate()


@contextmanager
def client_of(broker: Mosquitto) -> Iterator[paho.mqtt.client.Client]:
    """Anybody with access to the broker."""
    client = paho.mqtt.client.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


@contextmanager
def subscriber(example: Path, broker: Mosquitto, key: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """`subscribe.js`, which the broker has heard."""
    with process(find("node"), "subscribe.js", broker.url("home"), key, count, cwd=example) as running:
        assert running.stderr
        assert running.stderr.readline() == "subscribed\n"
        yield running


def cachebus(*words: object) -> list[object]:
    return [sys.executable, "-m", "cachebus", *words]


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines that a process has written so far."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_it_prints_what_tail_prints(example: Path, broker: Mosquitto, key: Path, tmp_path: Path) -> None:
    answers = [one for one in trace(3000, time.time()) if usual(one)][:500]
    assert {type_to_text(one.qtype) for one in answers} >= {"A", "AAAA"}
    with (tmp_path / "answers.wire").open("wb") as file:
        for answer in answers:
            message = compose(0, 0x8180, answer.qname, answer.qtype, [(one, one.ttl) for one in answer.rrsets])
            file.write(len(message).to_bytes(4) + message)
    url, flags = broker.url("home"), ("--key", f"file:{key}")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    with (
        process(find("node"), "subscribe.js", url, key, cwd=example, output=theirs),
        process(*cachebus("tail", url, *flags, "--json"), cwd=tmp_path, output=ours),
        client_of(broker) as client,
    ):
        probes = sender("probe")

        def both_hear() -> bool:
            (message,), _ = probes.encode(short_trace(time.time(), 1), time.time())
            client.publish("cachebus/home/v1/probe", message, qos=1).wait_for_publish(5)
            return bool(read(theirs) and read(ours))

        eventually(both_hear, 30, "both have subscribed")
        done = subprocess.run(
            [str(word) for word in cachebus("publish", url, tmp_path / "answers.wire", *flags, "--json")],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert json.loads(done.stdout) == {"sent": len(answers), "refused": {}}, done.stderr
        seen = eventually(lambda: published(ours, len(answers)), 20, "tail has printed all")
        assert eventually(lambda: published(theirs, len(answers)), 20, "the example has printed all") == seen
    assert {one["evidence"] for one in seen} == {"confirmed"}


def published(path: Path, count: int) -> list[dict[str, Any]]:
    """What `publish` sent and was printed, once that is all."""
    found = [one for one in read(path) if one["origin"] != "probe"]
    return found if len(found) >= count else []


def usual(answer: Answer) -> bool:
    return all(type_to_text(rrset.type) in PLAIN and not rrset.sigs for rrset in answer.rrsets)


def test_it_refuses_what_a_broker_makes_up(example: Path, broker: Mosquitto, key: Path) -> None:
    now = time.time()
    good = envelope("ams-1", now + 5, now)
    other_key = envelope("ams-1", now + 5, now, secret=b"x" * 32)
    bad = {
        "malformed": b"CBE1",
        "bad-mac": good[:-1] + bytes([good[-1] ^ 1]),
        "unknown-key": good.replace(b"cachebus.test.", b"cachebus.tesu."),
        "wrong-cluster": envelope("ams-1", now + 5, now, cluster="away"),
        "before-start": envelope("ams-2", now - 30, now - 30),
        "bad-time": envelope("ams-3", now + 1000, now + 1000),
        "duplicate": good,
    }
    with subscriber(example, broker, key, 2) as running, client_of(broker) as client:
        last = envelope("ams-4", now + 5, now)
        for data in (good, *bad.values(), other_key, last):
            client.publish("cachebus/home/v1/ams-1", data, qos=1).wait_for_publish(5)
        out, errors = running.communicate(timeout=30)
    assert [json.loads(line)["origin"] for line in out.splitlines()] == ["ams-1", "ams-4"]
    assert errors.splitlines() == [f"subscribe.js: refused a message: {reason}" for reason in bad]


def test_it_counts_what_never_came(example: Path, broker: Mosquitto, key: Path) -> None:
    now = time.time() + 5
    codec = sender("ams-1")
    messages = [codec.encode([one], now)[0][0] for one in short_trace(now, 6)]
    with subscriber(example, broker, key, 4) as running, client_of(broker) as client:
        for index in (0, 4, 2, 5):
            client.publish("cachebus/home/v1/ams-1", messages[index], qos=1).wait_for_publish(5)
        out, errors = running.communicate(timeout=30)
    assert len(out.splitlines()) == 4
    assert errors == "subscribe.js: 2 messages never came\n"


def sender(node: str, *, cluster: str = "home", secret: bytes = SECRET) -> BatchCodec:
    key = Key.make("cachebus.test.", "hmac-sha256", secret)
    return BatchCodec(BatchCodecSettings(node=node, cluster=cluster, transport="t", key=key), start=None)


def short_trace(now: float, count: int) -> list[Answer]:
    return [one for one in trace(1000, now) if usual(one)][:count]


def envelope(node: str, now: float, learned: float, **more: Any) -> bytes:
    messages, _ = sender(node, **more).encode([short_trace(learned, 1)[0]._replace(learned=learned)], now)
    return messages[0]
