"""What `explain` says of each message: a row per frame, made from a judge's or the codec's verdicts.

A verdict may depend on later frames, so a row is given when nothing can change it any more. Decides nothing itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.cli.present import answer_records
from cachebus.errors import FrameError, MessageError
from cachebus.filters.direct import DirectJudge
from cachebus.filters.settings import JudgeSettings
from cachebus.filters.trust import DnstapJudge
from cachebus.filters.verdict import Verdict
from cachebus.presentation import name_to_text, type_to_text
from cachebus.sources.file import Format, open_capture
from cachebus.wire.dnstap import decode
from cachebus.wire.framestream import MAX_MESSAGE
from cachebus.wire.message import first_question

if TYPE_CHECKING:
    from cachebus.config.keyfile import KeyMaterial

MAX_HEX_LINE = 4 * MAX_MESSAGE
"""Characters of a line of hex: the longest message, and room for spaces."""
UNREADABLE = "UNREADABLE"
"""Stands for the kind of a dnstap frame that cannot be decoded."""


class Row:
    """One message and what became of it."""

    def __init__(self, index: int, message: str, wire: bytes) -> None:
        """`message`: its kind; `wire`: the DNS message, for its question."""
        self.index = index
        self.message = message
        self.name, self.type = _question(wire)
        self.answers: dict[tuple[bytes, int], Answer] = {}
        self.reason: Refusal | None = None
        self.time = 0.0

    def take(self, verdict: Verdict) -> None:
        """Take a verdict: an answer replaces an earlier one to the same question, and any refusal."""
        if verdict.answer is not None:
            self.answers[verdict.answer.qname, verdict.answer.qtype] = verdict.answer
            self.reason = None
        elif not self.answers:
            self.reason = verdict.reason

    @property
    def verdict(self) -> str:
        """`accepted`, `refused` or `context`."""
        return "accepted" if self.answers else "refused" if self.reason else "context"

    @property
    def evidence(self) -> Evidence | None:
        """The level of the whole answer; of RRsets shared under their own names, the weakest."""
        if not self.answers:
            return None
        for answer in self.answers.values():
            if name_to_text(answer.qname) == self.name and type_to_text(answer.qtype) == self.type:
                return answer.evidence
        return min(answer.evidence for answer in self.answers.values())

    def records(self) -> list[str]:
        """The accepted records in presentation form, each once."""
        rrsets: dict[tuple[bytes, int], RRset] = {}
        for answer in sorted(self.answers.values(), key=lambda answer: -len(answer.rrsets)):
            for rrset in answer.rrsets:
                rrsets.setdefault((rrset.owner, rrset.type), rrset)
        return answer_records(rrsets.values())

    def to_json(self) -> dict[str, Any]:
        """The row as the contract has it."""
        return {
            "index": self.index,
            "message": self.message,
            "name": self.name,
            "type": self.type,
            "verdict": self.verdict,
            "evidence": self.evidence.text if self.evidence else None,
            "reason": self.reason.value if self.reason else None,
            "answer": self.records(),
        }

    def to_text(self) -> str:
        """The row as one aligned line."""
        detail = self.reason.value if self.reason else self.evidence.text if self.evidence else ""
        question = f"{self.name} {self.type}" if self.name else "-"
        line = f"{self.index:>6}  {self.message:<18}  {self.verdict:<8}  {detail:<22}  {question}"
        records = self.records()
        return f"{line}  <-  {' | '.join(records)}" if records else line


class Totals:
    """The last line."""

    def __init__(self) -> None:
        """Start at 0."""
        self._verdicts = {"accepted": 0, "refused": 0, "context": 0}
        self._reasons: dict[str, int] = {}

    def add(self, row: Row) -> None:
        """Count a row."""
        self._verdicts[row.verdict] += 1
        if row.reason is not None:
            self._reasons[row.reason.value] = self._reasons.get(row.reason.value, 0) + 1

    def to_json(self) -> dict[str, Any]:
        """Accepted, refused, context, and refusals by reason."""
        return {**self._verdicts, "reasons": dict(sorted(self._reasons.items()))}

    def to_text(self) -> str:
        """The same in words."""
        counted = ", ".join(f"{count} {verdict}" for verdict, count in self._verdicts.items())
        often_first = sorted(self._reasons.items(), key=lambda item: (-item[1], item[0]))
        return "\n".join((f"total: {counted}", *(f"{count:>8}  {reason}" for reason, count in often_first)))


def _question(wire: bytes) -> tuple[str | None, str | None]:
    try:
        name, qtype, _, _ = first_question(wire)
    except MessageError:
        return None, None
    return name_to_text(name.lower()), type_to_text(qtype)


def dnstap_rows(frames: Iterable[bytes], settings: JudgeSettings) -> Iterator[Row]:
    """Judge dnstap payloads at their own times. An error of the file comes after the rows before it."""
    judge = DnstapJudge(settings)
    open_rows: deque[Row] = deque()
    by_index: dict[int, Row] = {}
    now = 0.0

    def take(verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            if verdict.frame in by_index:
                by_index[verdict.frame].take(verdict)

    def settled(before: float) -> Iterator[Row]:
        while open_rows and open_rows[0].time < before:
            row = open_rows.popleft()
            del by_index[row.index]
            yield row

    failure: FrameError | None = None
    source = iter(frames)
    for index in range(1, 1 << 62):
        try:
            payload = next(source)
        except StopIteration:
            break
        except FrameError as error:
            failure = error
            break
        try:
            frame = decode(payload)
        except FrameError:
            row = Row(index, UNREADABLE, b"")
        else:
            row = Row(index, frame.type.name, frame.message)
            now = max(now, frame.response_time if frame.is_response else frame.query_time)
        row.time = now
        open_rows.append(row)
        by_index[index] = row
        take(judge.feed(payload, now))
        yield from settled(now - 2 * settings.evidence_window - 1)
    take(judge.expire(now + settings.evidence_window + 1))
    yield from settled(float("inf"))
    if failure is not None:
        raise failure


def direct_rows(frames: Iterable[bytes], settings: JudgeSettings, *, recorded: float) -> Iterator[Row]:
    """Judge DNS messages as a direct source's, at the time `recorded`: they carry none of their own."""
    judge = DirectJudge(settings)
    for index, wire in enumerate(frames, 1):
        row = Row(index, "RESPONSE", wire)
        for verdict in judge.feed(wire, recorded):
            row.take(verdict)
        yield row


def bus_rows(frames: Iterable[bytes], key: KeyMaterial, *, now: float, levels: frozenset[Evidence]) -> Iterator[Row]:
    """Verify and check bus messages as if they were received at `now`, in the order of the file; accept `levels`."""
    from cachebus.codecs.dns import DnsCodec, DnsCodecSettings  # only --wire needs the codec
    from cachebus.wire.tsig import Key

    tsig = Key.make(name_to_text(key.name), key.algorithm, key.secret)
    codec = DnsCodec(DnsCodecSettings(transport="file", key=tsig, accept=levels), start=None)
    for index, data in enumerate(frames, 1):
        row = Row(index, "BUS", data)
        found = codec.decode(data, "file", now)
        if isinstance(found, Refusal):
            row.take(Verdict(index, None, found))
        else:
            for answer in found:
                row.take(Verdict(index, answer, None))
        yield row


def read_wire_file(file: Path) -> Iterator[bytes]:
    """Messages of a file: u32-length-prefixed, or one in hex on each line with `#` comments, by its content.

    Raises `FrameError` for a line that is not hex, `ConfigError` for a file that cannot be read.
    """
    with file.open("rb") as opened:
        if opened.read(1) in (b"", b"\0"):  # a length of at most 65535 as u32; no text begins so
            yield from open_capture(file, Format.WIRE)
            return
        opened.seek(0)
        for number, line in enumerate(iter(partial(opened.readline, MAX_HEX_LINE), b""), 1):
            text = line.partition(b"#")[0].strip()
            if text:
                try:
                    yield bytes.fromhex(text.decode("ascii"))
                except ValueError as error:
                    raise FrameError(f"{file}:{number}: not a message in hex") from error


def apply_policy(rows: Iterable[Row], config: Path) -> Iterator[Row]:
    """Refuse what the share policy of a configuration does not let out. Raises `ConfigError` when it is wrong."""
    from cachebus.config import load
    from cachebus.config.models import PrivateNames
    from cachebus.filters.policy import Policy, PolicySettings

    share = load(config).share
    policy = Policy(
        PolicySettings(
            min_ttl=int(share.min_ttl),
            max_ttl=int(share.max_ttl),
            private_names=share.private_names is not PrivateNames.NEVER,
            infrastructure=share.infrastructure,
            allow=frozenset(share.allow),
            deny=frozenset(share.deny),
        )
    )
    for row in rows:
        refusals = {question: policy.refuse_to_share(answer) for question, answer in row.answers.items()}
        row.answers = {question: answer for question, answer in row.answers.items() if refusals[question] is None}
        if refusals and not row.answers:
            row.reason = next(iter(refusals.values()))
        yield row
