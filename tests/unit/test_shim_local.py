"""Local data and block-lists: what a line means, which rule is the closest, and what a client is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from cachebus.answer import RRset
from cachebus.cache import Cache
from cachebus.errors import ConfigError
from cachebus.presentation import name_from_text
from cachebus.shim import Shim
from cachebus.shim import block_lists as lists_module
from cachebus.shim.block_lists import MAX_LINE, Action, Format, Loader, Rule, Rules, wire_name
from cachebus.shim.local import LocalStage
from cachebus.shim.local_settings import BlockList, LocalSettings
from cachebus.shim.lookup import LookupOrder
from cachebus.shim.query import Ede, Query
from cachebus.testing import ManualClock
from tests.unit.shim_bed import (
    ScriptedUpstream,
    ask,
    ask_udp,
    bus_answer,
    records,
    reply_to,
    rrset,
    settings,
    texts,
    until,
)

BLOCKED = Rule(Action.NXDOMAIN, source="list")


def loaded(tmp_path: Path, text: str | bytes, form: Format) -> tuple[Rules, Rules, Any]:
    path = tmp_path / "list"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    rules, exceptions = Rules(), Rules()
    return rules, exceptions, Loader(rules, exceptions).load(path, form, BLOCKED)


def action(rules: Rules, name: str) -> Action | str | None:
    rule = rules.find(name_from_text(name))
    return "none" if rule is None else rule.action


def test_the_closest_rule_counts_and_of_two_the_first() -> None:
    rules = Rules()
    for name, itself, below, what in (
        ("example", True, True, Action.NXDOMAIN),
        ("a.example", True, False, Action.NODATA),
        ("a.example", False, True, Action.NULL),
        ("a.example", True, False, Action.REFUSED),
    ):
        rules.put(name_from_text(name), Rule(what), itself=itself, below=below)
    assert action(rules, "example.") is Action.NXDOMAIN
    assert action(rules, "b.example.") is Action.NXDOMAIN
    assert action(rules, "a.example.") is Action.NODATA
    assert action(rules, "x.y.a.example.") is Action.NULL
    assert action(rules, "counterexample.") == "none"
    assert action(rules, ".") == "none"


def test_a_list_of_domains(tmp_path: Path) -> None:
    text = "! title\n# note\n\nAds.Example.\n*.wild.example\n||block.example^\n||imp.example^$important\n"
    text += "@@||good.block.example^\n"
    text += "||odd.example^$third-party\nnot a name\n/\nbücher.example\n" + "a" * 64 + ".example\n"
    rules, exceptions, found = loaded(tmp_path, text, Format.DOMAINS)
    assert (found.rules, found.skipped) == (6, 4)
    for name in (
        "ads.example",
        "x.ads.example",
        "wild.example",
        "block.example",
        "imp.example",
        "xn--bcher-kva.example",
    ):
        assert action(rules, name) is Action.NXDOMAIN
    assert action(exceptions, "very.good.block.example") is Action.PASS
    assert action(rules, "example") == "none"


def test_a_line_that_is_too_long_names_nothing(tmp_path: Path) -> None:
    text = b"x" * MAX_LINE + b"tail.example\n" + b"y" * (MAX_LINE - 1) + b"\nnext.example\n" + b"z" * 3 * MAX_LINE
    rules, _, found = loaded(tmp_path, text, Format.DOMAINS)
    assert (len(rules), found.skipped) == (1, 3)
    assert action(rules, "next.example") is Action.NXDOMAIN


def test_a_hosts_file_as_a_block_list(tmp_path: Path) -> None:
    text = "127.0.0.1 localhost\n0.0.0.0 ads.example track.example # both\n:: v6.example\n192.0.2.1 real.example\nx y\n"
    rules, _, found = loaded(tmp_path, text, Format.HOSTS)
    assert (found.rules, found.skipped) == (3, 2)
    assert action(rules, "ads.example") is Action.NXDOMAIN
    assert action(rules, "www.ads.example") == "none"
    assert action(rules, "localhost") == "none"


RPZ = """$ORIGIN rpz.test.
$TTL 60
@ SOA localhost. nobody.invalid. 1 3600 600 86400 60
@ NS localhost.
gone.example CNAME .
*.gone.example CNAME .
empty.example CNAME *.
fine.gone.example CNAME rpz-passthru.
hush.example CNAME rpz-drop.
tcp.example CNAME rpz-tcp-only.
garden.example CNAME garden.example.net.
data.example A 192.0.2.7
data.example TXT "no"
32.1.2.0.192.rpz-ip CNAME .
ns.example.rpz-nsdname CNAME .
"""


@pytest.mark.parametrize("text", [RPZ, RPZ.replace("$ORIGIN rpz.test.\n", "")])
def test_a_response_policy_zone(tmp_path: Path, text: str) -> None:
    rules, exceptions, found = loaded(tmp_path, text, Format.RPZ)
    assert (found.rules, found.skipped) == (7, 3)
    assert action(rules, "gone.example") is Action.NXDOMAIN
    assert action(rules, "x.gone.example") is Action.NXDOMAIN
    assert action(rules, "empty.example") is Action.NODATA
    assert action(rules, "hush.example") is Action.REFUSED
    assert action(rules, "tcp.example") == "none"
    assert action(exceptions, "fine.gone.example") is Action.PASS
    data = rules.find(name_from_text("data.example"))
    assert data is not None
    assert {rrset.type for rrset in data.records} == {1, 16}


@pytest.mark.parametrize("text", ["a.example A 192.0.2.1\n", "@@@ SOA\n", b"\xff\xfe", "$INCLUDE /etc/passwd\n"])
def test_what_is_no_policy_zone_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ConfigError):
        loaded(tmp_path, text, Format.RPZ)


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(Rules(), Rules())
    with pytest.raises(ConfigError, match="is not a file"):
        loader.load(tmp_path, Format.DOMAINS, BLOCKED)
    monkeypatch.setattr(lists_module, "MAX_RULES", 1)
    with pytest.raises(ConfigError, match="more than 1 rules"):
        loaded(tmp_path, "a.example\nb.example\n", Format.DOMAINS)
    monkeypatch.setattr(lists_module, "MAX_BYTES", 1)
    with pytest.raises(ConfigError, match="longer than 1 bytes"):
        loaded(tmp_path, "a.example\n", Format.DOMAINS)


def test_host_names_in_wire_form() -> None:
    assert wire_name(b"Www.Example.") == b"\3www\7example\0"
    for bad in (b"", b".", b"a..b", b"a b", b"a" * 64, b".".join([b"a" * 60] * 5)):
        with pytest.raises(ValueError, match=r".*"):
            wire_name(bad)


def no_upstream(query: dns.message.Message, stream: bool) -> bytes:
    return reply_to(query, records(f"{query.question[0].name} 60 IN A 192.0.2.99"))


async def running(
    local: LocalSettings, questions: list[tuple[str, str]]
) -> tuple[list[dns.message.Message], list[str], Any]:
    """Replies to the questions, what the upstream was asked, and the shim's counters."""
    clock = ManualClock(1_800_000_000.0)
    async with ScriptedUpstream(no_upstream) as upstream:
        cache, shared = Cache("node-a"), []
        shim = Shim(settings(upstream, local=local), cache, shared.append, clock)
        await shim.prepare()
        async with shim:
            replies = [await ask(shim.endpoints[0], name, rrtype, use_edns=0) for name, rrtype in questions]
        assert not shared
        return replies, [str(query.question[0].name) for query in upstream.queries], shim.statistics()


async def test_static_records_come_first_and_say_all_of_a_name() -> None:
    lines = """\
        router.home. A 192.0.2.1
        router.home. TXT x
        *.lab.home. 60 AAAA 2001:db8::1
        alias.home. CNAME router.home.
        out.home. CNAME www.example.
        loop.home. CNAME loop.home."""
    local = LocalSettings(records=tuple(map(str.strip, lines.splitlines())))
    questions = [("router.home", "A"), ("Router.home", "MX"), ("x.lab.home", "AAAA"), ("lab.home", "A")]
    questions += [("alias.home", "A"), ("out.home", "A"), ("loop.home", "A"), ("alias.home", "MX")]
    replies, asked, counted = await running(local, questions)
    assert texts(replies[0].answer) == ["router.home. 300 IN A 192.0.2.1"]
    assert (replies[1].rcode(), replies[1].answer, len(replies[1].authority)) == (0, [], 1)
    assert texts(replies[2].answer) == ["x.lab.home. 60 IN AAAA 2001:db8::1"]
    assert texts(replies[3].answer) == ["lab.home. 60 IN A 192.0.2.99"]
    assert texts(replies[4].answer) == ["alias.home. 300 IN CNAME router.home.", "router.home. 300 IN A 192.0.2.1"]
    assert texts(replies[5].answer) == ["out.home. 300 IN CNAME www.example.", "www.example. 60 IN A 192.0.2.99"]
    assert replies[6].rcode() == dns.rcode.SERVFAIL
    assert (replies[7].rcode(), len(replies[7].answer), len(replies[7].authority)) == (0, 1, 1)
    assert asked == ["lab.home.", "www.example."]
    assert counted["local_answers"] == 7


@pytest.mark.parametrize("flags", [dns.flags.RD, 0])
async def test_where_an_alias_leads_is_asked_as_the_client_may_and_special_names_of_nobody(flags: int) -> None:
    local = LocalSettings(records=("me.home. CNAME x.localhost.", "out.home. CNAME www.example."))
    clock = ManualClock(1_800_000_000.0)
    rcode = dns.rcode.NOERROR
    async with ScriptedUpstream(lambda query, stream: reply_to(query, rcode=rcode)) as upstream:
        shim = Shim(settings(upstream, local=local), Cache("node-a"), lambda answer: None, clock)
        await shim.prepare()
        async with shim:
            reply = await ask(shim.endpoints[0], "me.home", "A", flags=flags)
            assert texts(reply.answer) == ["me.home. 300 IN CNAME x.localhost.", "x.localhost. 300 IN A 127.0.0.1"]
            assert upstream.queries == []
            rcode = dns.rcode.SERVFAIL
            reply = await ask(shim.endpoints[0], "out.home", "A", flags=flags)
            if flags:
                assert (reply.rcode(), reply.answer) == (dns.rcode.SERVFAIL, [])
            else:
                assert (reply.rcode(), texts(reply.answer)) == (0, ["out.home. 300 IN CNAME www.example."])
                assert upstream.queries == []


async def test_an_alias_whose_end_is_known_is_answered_however_much_is_under_way() -> None:
    local = LocalSettings(records=("in.home. CNAME a.home.", "a.home. A 192.0.2.1", "out.home. CNAME www.example."))
    clock = ManualClock(1_800_000_000.0)
    cache = Cache("node-a")
    cache.put(bus_answer(rrset("www.example.", "A", 300, bytes(4)), learned=clock()), clock())
    async with ScriptedUpstream(lambda query, stream: None) as upstream:
        shim = Shim(settings(upstream, local=local, max_in_flight=16), cache, lambda answer: None, clock)
        await shim.prepare()
        async with shim:
            waiting = [asyncio.create_task(ask_udp(shim.endpoints[0], query(f"n{each}.test."))) for each in range(16)]
            await until(lambda: shim.statistics()["in_flight"] == 16)
            for name in ("in.home.", "out.home."):
                reply = await ask(shim.endpoints[0], name)
                assert (reply.rcode(), len(reply.answer)) == (dns.rcode.NOERROR, 2)
            assert (await ask(shim.endpoints[0], "more.test.")).rcode() == dns.rcode.SERVFAIL
            for task in waiting:
                task.cancel()


def query(name: str) -> bytes:
    return dns.message.make_query(name, "A").to_wire()


def test_a_name_is_special_by_its_labels() -> None:
    stage = LocalStage(LocalSettings(), LookupOrder((), ManualClock(0.0)))
    for name, claimed in ((b"\x09localhost\0", True), (b"\1x\x09localhost\0", True), (b"\x0ba\x09localhost\0", False)):
        asked = Query(b"\0\0", 0, name + b"\0\1\0\1", name, 1, None)
        assert (stage.answer(asked, 0.0) is not None) == claimed


async def test_hosts_files_give_addresses_and_names(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.5 nas.home nas\n2001:db8::5 nas.home\nbroken\nfe80::1%lo link.home\n")
    local = LocalSettings(hosts=(hosts,))
    questions = [
        ("nas.home", "A"),
        ("nas.home", "AAAA"),
        ("nas.", "A"),
        ("nas.home", "MX"),
        ("5.2.0.192.in-addr.arpa", "PTR"),
    ]
    replies, asked, _ = await running(local, questions)
    assert [texts(reply.answer)[0].split()[-1] for reply in replies if reply.answer] == [
        "192.0.2.5", "2001:db8::5", "192.0.2.5", "nas.home.",
    ]  # fmt: skip
    assert not asked


async def test_special_names_are_asked_of_nobody() -> None:
    questions = [("localhost", "A"), ("x.localhost", "AAAA"), ("localhost", "MX"), ("a.invalid", "A"), ("b.onion", "A")]
    replies, asked, _ = await running(LocalSettings(), questions)
    assert [reply.rcode() for reply in replies] == [0, 0, 0, 3, 3]
    assert texts(replies[0].answer) == ["localhost. 300 IN A 127.0.0.1"]
    assert texts(replies[1].answer) == ["x.localhost. 300 IN AAAA ::1"]
    assert not asked
    assert (await running(LocalSettings(special_names=False), questions[:1]))[1] == ["localhost."]


@pytest.mark.parametrize(
    ("what", "error", "rcode", "answer"),
    [
        (Action.NXDOMAIN, Ede.BLOCKED, dns.rcode.NXDOMAIN, []),
        (Action.NODATA, Ede.CENSORED, dns.rcode.NOERROR, []),
        (Action.NULL, Ede.FILTERED, dns.rcode.NOERROR, ["ads.example. 300 IN A 0.0.0.0"]),
        (Action.REFUSED, Ede.BLOCKED, dns.rcode.REFUSED, []),
    ],
)
async def test_a_blocked_name_is_told_with_its_reason(
    tmp_path: Path, what: Action, error: int, rcode: dns.rcode.Rcode, answer: list[str]
) -> None:
    path = tmp_path / "list"
    path.write_text("ads.example\n@@||good.ads.example^\n")
    local = LocalSettings(lists=(BlockList(name="mine", path=path, action=what, error=error),))
    replies, asked, counted = await running(local, [("ads.example", "A"), ("good.ads.example", "A")])
    assert (replies[0].rcode(), texts(replies[0].answer)) == (rcode, answer)
    assert [option.code for option in replies[0].options if isinstance(option, dns.edns.EDEOption)] == [error]
    assert asked == ["good.ads.example."]
    assert counted["blocked"] == 1


async def test_local_records_win_over_block_lists_and_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("home\n")
    local = LocalSettings(records=("a.home. A 192.0.2.1",), lists=(BlockList(name="mine", path=path),))
    replies, _, _ = await running(local, [("a.home", "A"), ("b.home", "A")])
    assert texts(replies[0].answer) == ["a.home. 300 IN A 192.0.2.1"]
    assert replies[1].rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("line", ["x. A nonsense", "a.home. CNAME b.home.\na.home. A 192.0.2.1"])
async def test_wrong_records_are_an_error_before_anything_runs(line: str) -> None:
    shim = Shim(
        settings(local=LocalSettings(records=tuple(line.splitlines()))), Cache("n"), lambda _: None, ManualClock(0.0)
    )
    with pytest.raises(ConfigError):
        await shim.prepare()


def test_a_negative_answer_can_be_kept_by_clients() -> None:
    from cachebus.shim.local import negative

    (soa,) = negative(b"\1a\0", 3, 77).authority
    assert isinstance(soa, RRset)
    assert soa.rrs[-4:] == (77).to_bytes(4, "big")
