"""The fuzzer itself: it finds what it is there to find, and its mutations are mutations."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from cachebus.errors import MessageError
from cachebus.wire.message import parse
from tests.fuzz import __main__ as runner
from tests.fuzz.grammar import USUAL, make_message, worst_message
from tests.fuzz.harness import Found, Limits, Part, Target, run
from tests.fuzz.messages import BytesTarget
from tests.fuzz.mutate import CHANGES, below, mutate, mutate_text, noise_text

pytestmark = pytest.mark.alone  # memory is measured: nothing else may grow in the same process

ROOT = Path(__file__).parents[2]
HOARD: list[bytes] = []


class Sound(BytesTarget):
    """A parser without a fault."""

    name = "sound"
    parts = ()

    def valid(self, rng: Random) -> bytes:
        return bytes(8)

    def check(self, example: bytes, rng: Random) -> bool:
        return len(example) >= 8


class Raising(Sound):
    """Meets a byte it does not expect."""

    def check(self, example: bytes, rng: Random) -> bool:
        return {0: True}.get(example[0] if example else 0) or bool(example.index(0))


class Hanging(Sound):
    """Never ends for some inputs."""

    def check(self, example: bytes, rng: Random) -> bool:
        while example[:1] == b"\xff":
            pass
        return True


class Slow(Sound):
    """Ends, too late."""

    def check(self, example: bytes, rng: Random) -> bool:
        return example[:1] != b"\xff" or sum(range(2_000_000)) > 0


class Hoarding(Sound):
    """Keeps a megabyte of every input."""

    def check(self, example: bytes, rng: Random) -> bool:
        HOARD.append(b"x" * (1 << 20))
        return True


class Timid(Sound):
    """Mutates too little."""

    def draw(self, rng: Random) -> tuple[bytes, bool]:
        return self.valid(rng), rng.random() < 0.4


class Counting(Sound):
    """Has a state for every three examples."""

    block = 3

    def __init__(self) -> None:
        self.seen: list[list[bytes]] = []
        self.finished = 0

    def begin(self, rng: Random) -> None:
        self.seen.append([])

    def finish(self) -> None:
        self.finished += 1

    def check(self, example: bytes, rng: Random) -> bool:
        self.seen[-1].append(example)
        return True


def test_a_sound_parser_passes_and_is_counted() -> None:
    report = run(Sound(), 1000, 1)
    assert report.examples == 1000
    assert 600 < report.mutated < 800
    assert 0 < report.taken < 1000
    assert report.slowest < 0.25


@pytest.mark.parametrize(
    ("target", "limits", "what"),
    [
        (Raising(), Limits(), "ValueError"),
        (Hanging(), Limits(hang=0.05), "does not end"),
        (Slow(), Limits(seconds=0.002), "took "),
        (Hoarding(), Limits(growth=16 << 20), "memory grew by"),
        (Timid(), Limits(), "were mutations"),
    ],
)
def test_what_is_wrong_is_found(target: Target[bytes], limits: Limits, what: str) -> None:
    try:
        with pytest.raises(Found, match=what):
            run(target, 2000 if not isinstance(target, Hoarding) else 300, 1, limits=limits)
    finally:
        HOARD.clear()


def test_an_example_can_be_repeated_alone() -> None:
    with pytest.raises(Found) as first:
        run(Raising(), 2000, 1)
    number = int(str(first.value).rsplit("--start ", maxsplit=1)[1].split()[0])
    with pytest.raises(Found) as again:
        run(Raising(), 1, 1, start=number)
    assert str(again.value) == str(first.value)
    run(Raising(), number, 1)  # those before it are sound


def test_a_block_begins_anew_and_is_repeated_whole() -> None:
    whole = Counting()
    run(whole, 7, 1)
    assert [len(block) for block in whole.seen] == [3, 3, 1]
    assert whole.finished == 3
    part = Counting()
    run(part, 1, 1, start=5)
    assert part.seen == [whole.seen[1]]


@pytest.mark.parametrize("data", [b"", b"\0", b"abc", bytes(range(100))])
def test_a_mutation_always_changes_and_stays_behind_its_start(data: bytes) -> None:
    rng = Random(1)
    for _ in range(500):
        start = below(rng, len(data) + 1)
        changed = mutate(rng, data, (b"other", data or b"x"), start=start)
        assert changed != data
        assert changed.startswith(data[:start])
        assert len(changed) < 4 * len(data) + 1000
        text = data.decode("latin-1")
        assert mutate_text(rng, text, ("other",)) != text
        noise_text(rng).encode()


@pytest.mark.parametrize("change", set(CHANGES), ids=lambda change: change.__name__.lstrip("_"))
@pytest.mark.parametrize("size", [1, 2, 5, 300])
def test_every_change_takes_every_size(change: object, size: int) -> None:
    rng = Random(1)
    for _ in range(200):
        assert callable(change)
        change(rng, bytearray(rng.randbytes(size)), (b"x", bytes(300)))


def test_the_grammar_makes_what_is_read() -> None:
    rng = Random(1)
    kinds: list[Callable[[], bytes]] = [
        lambda: make_message(rng, USUAL),
        lambda: make_message(rng),
        lambda: worst_message(rng),
    ]
    for make in kinds:
        read = 0
        for _ in range(100):
            wire = make()
            assert len(wire) <= 65535
            try:
                parse(wire)
            except MessageError:
                continue
            read += 1
        assert read > 50


def test_the_branches_of_a_part_are_those_of_its_functions() -> None:
    part = Part("x.py", only=("Reader", "parse"), without=("Reader.__repr__",))
    assert part.has("Reader.read")
    assert part.has("parse")
    assert not part.has("Reader.__repr__")
    assert not part.has("compose")
    assert Part("x.py").has("anything")


def test_the_command_reports_each_parser_and_its_branches(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--only",
        "rrsig",
        "--only",
        "edns",
        "--examples",
        "1500",
        "--seed",
        "1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "1500 examples each of 2 parsers, seed 1"
    assert {line.split()[0] for line in lines[1:3]} == {"rrsig", "edns"}
    assert all("branches: " in line and "% mutated" in line for line in lines[1:3])
    assert lines[3].endswith("2 right, 0 failed")


def test_too_few_branches_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    low = runner.Branches("wire/message.py", 17, 20, ["1->2"])
    monkeypatch.setattr(runner, "_trace", lambda *_: [low])
    assert runner._work("edns", 1, 10, None) == 1
    assert "85.0 % of its branches, below 90 %" in capsys.readouterr().out
    assert json.dumps(low.percent) == "85.0"


def test_a_wrong_target_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--only", "none"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no such target: none" in done.stderr
