"""The shapes of status, lookup and why, from a real cache and history."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from cachebus.admin.records import rdata_text, record_texts
from cachebus.admin.reports import MAX_HISTORY, lookup_report, status_report, why_report
from cachebus.answer import Answer, Evidence, Refusal, RRset
from cachebus.cache import Cache
from cachebus.history import History
from cachebus.presentation import name_from_text
from cachebus.wire import rrtypes
from cachebus.wire.message import NOERROR, NXDOMAIN, pack

NOW = 1_800_000_000.0
WWW = name_from_text("www.test")
WEB = name_from_text("web.test")


def rrset(owner: bytes, rrtype: int, *rdatas: bytes, ttl: int = 600) -> RRset:
    return RRset(owner, rrtype, ttl, pack(rrtype, ttl, rdatas))


def answer(qname: bytes, qtype: int, *rrsets: RRset, **more: Any) -> Answer:
    return Answer(qname, qtype, rrsets, Evidence.CONFIRMED, "b", NOW - 10, **more)


def cache_with_chain() -> Cache:
    cache = Cache("a")
    cname = rrset(WWW, rrtypes.CNAME, WEB)
    address = rrset(WEB, rrtypes.A, b"\xc0\0\2\1", b"\xc0\0\2\2")
    assert cache.put(answer(WWW, rrtypes.A, cname, address), NOW) is None
    return cache


def test_status_has_the_contracts_shape_and_leaves_zero_reasons_out() -> None:
    report = status_report(
        node="a",
        cluster="home",
        uptime=1.23456,
        cache={"entries": 1, "bytes": 2},
        sources={"s": {"frames": 3, "refused": Counter({Refusal.UNPAIRED: 2, Refusal.STALE: 0})}},
        transports={"t": {"sent": 1, "refused": {Refusal.BAD_MAC: 4}, "kernel_drops": 5}, "u": {}},
        sinks={"k": {"filled": 1}},
    )
    assert json.loads(json.dumps(report)) == {
        "node": "a",
        "cluster": "home",
        "uptime": 1.235,
        "cache": {"entries": 1, "bytes": 2},
        "sources": {"s": {"frames": 3, "refused": {"unpaired": 2}}},
        "transports": {
            "t": {"sent": 1, "received": 0, "accepted": 0, "refused": {"bad-mac": 4}, "dropped": 0, "gaps": 0,
                  "kernel_drops": 5},
            "u": {"sent": 0, "received": 0, "accepted": 0, "refused": {}, "dropped": 0, "gaps": 0},
        },
        "sinks": {"k": {"filled": 1}},
    }  # fmt: skip


def test_lookup_follows_the_chain() -> None:
    lines = lookup_report(cache_with_chain(), WWW, rrtypes.A, NOW + 90)
    assert json.loads(json.dumps(lines)) == [
        {
            "name": "www.test.", "type": "CNAME", "ttl": 500, "records": ["www.test. 500 IN CNAME web.test."],
            "origin": "b", "evidence": "confirmed", "transport": "", "learned": NOW - 10, "received": NOW,
            "signer": "", "rank": "local",
        },
        {
            "name": "web.test.", "type": "A", "ttl": 500,
            "records": ["web.test. 500 IN A 192.0.2.1", "web.test. 500 IN A 192.0.2.2"],
            "origin": "b", "evidence": "confirmed", "transport": "", "learned": NOW - 10, "received": NOW,
            "signer": "", "rank": "local",
        },
    ]  # fmt: skip


def test_lookup_without_a_type_gives_everything_at_the_name_and_nothing_else() -> None:
    cache = cache_with_chain()
    text = rrset(WEB, rrtypes.TXT, b"\2hi", ttl=100)
    assert cache.put(answer(WEB, rrtypes.TXT, text, transport="lan", signer="k"), NOW) is None
    lines = lookup_report(cache, WEB, None, NOW)
    assert [(line["type"], line["transport"], line["signer"]) for line in lines] == [("A", "", ""), ("TXT", "lan", "k")]
    assert lines[1]["rank"] == "bus-confirmed"
    assert lookup_report(cache, name_from_text("other.test"), None, NOW) == []
    assert lookup_report(cache, WEB, rrtypes.MX, NOW) == []


def test_lookup_shows_what_does_not_exist() -> None:
    cache = Cache("a")
    assert cache.put_negative(WWW, rrtypes.A, NOERROR, None, 60, NOW, "a") is None
    assert cache.put_negative(WEB, 0, NXDOMAIN, None, 60, NOW, "a") is None
    (nodata,) = lookup_report(cache, WWW, rrtypes.A, NOW)
    assert (nodata["name"], nodata["type"], nodata["records"], nodata["negative"]) == ("www.test.", "A", [], True)
    (nothing,) = lookup_report(cache, WEB, rrtypes.TXT, NOW)
    assert (nothing["name"], nothing["type"], nothing["ttl"], nothing["negative"]) == ("web.test.", "TXT", 60, True)
    assert lookup_report(cache, WEB, rrtypes.TXT, NOW + 61) == []
    assert len(lookup_report(cache, WWW, None, NOW)) == 1


def test_lookup_without_a_type_names_the_type_that_does_not_exist() -> None:
    cache = Cache("a")
    soa = rrset(WEB, rrtypes.SOA, b"\0\0" + bytes(20))
    assert cache.put_negative(WWW, rrtypes.AAAA, NOERROR, soa, 60, NOW, "a") is None
    assert cache.put_negative(WEB, 0, NXDOMAIN, soa, 60, NOW, "a") is None
    assert [line["type"] for name in (WWW, WEB) for line in lookup_report(cache, name, None, NOW)] == ["AAAA", "ANY"]


def test_a_chain_may_end_in_nothing() -> None:
    cache = Cache("a")
    assert cache.put(answer(WWW, rrtypes.CNAME, rrset(WWW, rrtypes.CNAME, WEB)), NOW) is None
    assert cache.put_negative(WEB, 0, NXDOMAIN, None, 60, NOW, "a") is None
    lines = lookup_report(cache, WWW, rrtypes.A, NOW)
    assert [(line["name"], line["type"], line.get("negative", False)) for line in lines] == [
        ("www.test.", "CNAME", False),
        ("web.test.", "A", True),
    ]


def test_why_adds_the_history_of_the_name() -> None:
    history = History("a")
    history.record(NOW, WWW, "accepted", "from b by lan")
    history.record(NOW, WEB, "accepted", "other name")
    lines = why_report(cache_with_chain(), history.about(WWW), WWW, rrtypes.A, NOW)
    assert [line["name"] for line in lines] == ["www.test.", "web.test."]
    assert lines[0]["history"] == [{"time": NOW, "node": "a", "event": "accepted", "detail": "from b by lan"}]


def test_why_tells_of_a_name_that_is_not_held() -> None:
    history = History("a")
    assert why_report(Cache("a"), history.about(WWW), WWW, None, NOW) == []
    for number in range(MAX_HISTORY + 5):
        history.record(NOW, WWW, "refused", str(number))
    (line,) = why_report(Cache("a"), history.about(WWW), WWW, rrtypes.A, NOW)
    assert (line["name"], line["type"], line["records"], line["learned"]) == ("www.test.", "A", [], None)
    assert len(line["history"]) == MAX_HISTORY
    assert line["history"][-1]["detail"] == str(MAX_HISTORY + 4)


def test_records_in_presentation_form() -> None:
    signed = rrset(WWW, rrtypes.A, b"\xc0\0\2\1")._replace(sigs=pack(rrtypes.RRSIG, 600, (b"\0" * 18 + b"\0\xaa",)))
    first, second = record_texts(signed, 7)
    assert first == "www.test. 7 IN A 192.0.2.1"
    assert second.startswith("www.test. 7 IN RRSIG TYPE0 0 0 0 ")
    assert rdata_text(rrtypes.A, b"\1") == "\\# 1 01"
    assert rdata_text(65280, b"") == "\\# 0"
    assert rdata_text(rrtypes.TXT, b'\x04a"\n\0') == '"a\\"\\010\\000"'
