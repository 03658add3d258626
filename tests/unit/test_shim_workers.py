"""Several workers as one shim: what they have in common, what is summed, and what is told to all of them."""

from __future__ import annotations

import logging
import pickle
import socket
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest

from cachebus import assembly, metrics
from cachebus.cache import Cache
from cachebus.config.loader import loads
from cachebus.errors import ConfigError
from cachebus.flushes import Flush
from cachebus.node import Kept, Parts
from cachebus.presentation import name_from_text
from cachebus.shim.caching import CachingSettings, StaleSettings, SubnetSettings
from cachebus.shim.cookies import Proof, ServerCookies
from cachebus.shim.pipe import Kind
from cachebus.shim.query import Channel
from cachebus.shim.shim import Shim
from cachebus.shim.swild_owners import SwildSettings
from cachebus.shim.worker import Plan, Worker, _listening
from cachebus.shim.workers import ALIKE, GAUGES, Seat, Workers, _reserve_encrypted, log_levels, total
from cachebus.testing import ManualClock
from tests.unit.listen_bed import Authority
from tests.unit.shim_bed import bus_answer, rrset, settings

NOW = 1_800_000_000.0
CLIENT_COOKIE = b"01234567"


def plan(tmp_path: Path, more: str = "", keep: Kept | None = None) -> Plan:
    text = f"node: a\nshim:\n  listen: ['127.0.0.1:0']\n  workers: 2\n{more}"
    config = loads(text, directory=tmp_path)
    made = assembly.make_shim_settings(config, None if keep is None else keep.cookies)
    assert made is not None
    return assembly.make_worker_plan(config, made)


def test_a_cookie_of_one_worker_is_good_at_the_others_and_after_a_reload(tmp_path: Path) -> None:
    config = loads("node: a\nshim: {listen: ['127.0.0.1:0']}\n")
    keep = Kept(config, ManualClock(NOW))
    first = plan(tmp_path, keep=keep)
    handed_over = pickle.dumps(first)
    made = []
    for each in (pickle.loads(handed_over), pickle.loads(handed_over), plan(tmp_path, keep=keep)):
        cookies = each.settings().front.cookies
        assert cookies is not None
        made.append(ServerCookies(cookies))
    given = made[0].check(CLIENT_COOKIE, "192.0.2.1", NOW)
    assert given is not None
    for one in made:
        again = one.check(given.option[4:], "192.0.2.1", NOW)
        assert again is not None
        assert again.proof is Proof.GOOD
    other = ServerCookies(plan(tmp_path).settings().front.cookies).check(given.option[4:], "192.0.2.1", NOW)
    assert other is not None
    assert other.proof is Proof.BAD


def test_the_seed_of_cookies_shows_in_no_text(tmp_path: Path) -> None:
    keep = Kept(loads("node: a\nshim: {listen: ['127.0.0.1:0']}\n"), ManualClock(NOW))
    assert repr(keep.cookies.seed) not in repr(plan(tmp_path, keep=keep))


def test_all_workers_listen_on_the_encrypted_ports_that_were_chosen_once(tmp_path: Path) -> None:
    Authority(tmp_path)
    listeners = "".join(f"  listen_{kind}: ['127.0.0.1:0']\n" for kind in ("tls", "https", "quic"))
    told = plan(tmp_path, listeners + "  tls: {cert: cert.pem, key: key.pem}\n")
    assert told.encrypted == dict.fromkeys((Channel.TLS, Channel.HTTPS, Channel.QUIC), (("127.0.0.1", 0),))
    chosen = told._replace(
        encrypted={channel: (_reserve_encrypted(channel, found),) for channel, (found,) in told.encrypted.items()}
    )
    for made in (_listening(chosen).encrypted, _listening(chosen).encrypted):
        assert (made.tls, made.https, made.quic) == tuple(chosen.encrypted.values())
        assert made.tls[0][1]
        assert made.certificate is not None
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Exception, match="cannot listen"):
        _reserve_encrypted(Channel.TLS, taken.getsockname())


def test_counters_are_summed_and_what_all_have_read_alike_is_not(tmp_path: Path) -> None:
    workers = Workers(plan(tmp_path), 2, learned=lambda answer: None, copy=lambda: iter(()))
    for seat, expires in zip(workers._seats, (1_900_000_000, 1_800_000_000), strict=True):
        counters = {"queries": 3, "swild_owners": 4, "local_names": 9, "certificate_expires": expires}
        seat._take(Kind.STATISTICS, counters)
    expected = {"queries": 6, "swild_owners": 8, "local_names": 9, "certificate_expires": 1_800_000_000}
    assert workers.statistics().items() >= expected.items()
    workers._seats[1]._leave()
    expected = {"queries": 6, "swild_owners": 4, "local_names": 9, "certificate_expires": 1_900_000_000}
    assert workers.statistics().items() >= expected.items()


async def test_every_gauge_of_the_shim_is_known_as_one_to_the_workers(tmp_path: Path) -> None:
    caching = CachingSettings(stale=StaleSettings(), subnet=SubnetSettings(send=True))
    swild = SwildSettings(zones=frozenset({b"\0"}))
    told = settings(caching=caching, swild=swild, encrypted=_encrypted(tmp_path))
    async with Shim(told, Cache("node-a"), lambda answer: None, time.time) as shim:
        shown = set(shim.statistics())
    assert metrics.GAUGES & shown == GAUGES | ALIKE


def _encrypted(tmp_path: Path) -> Any:
    Authority(tmp_path)
    listeners = "listen: ['127.0.0.1:0'], listen_tls: ['127.0.0.1:0'], tls: {cert: cert.pem, key: key.pem}"
    made = assembly.make_shim_settings(loads(f"node: a\nshim: {{{listeners}}}\n", directory=tmp_path))
    assert made is not None
    return made.encrypted


@pytest.mark.parametrize(
    ("flush", "gone"),
    [
        (Flush(name_from_text("www.example."), rrtype=28), {28}),
        (Flush(name_from_text("example."), subtree=True, key_tag=7), set()),
        (Flush(name_from_text("example."), subtree=True), {1, 28}),
        (Flush(b"\0", subtree=True), {1, 28}),
    ],
)
def test_a_flush_means_the_same_behind_the_pipe(tmp_path: Path, flush: Flush, gone: set[int]) -> None:
    worker = Worker(plan(tmp_path))
    now = time.time()
    worker.take(Kind.ANSWERS, [bus_answer(rrset("www.example.", "A", 300, bytes(4)), learned=now - 2)])
    worker.take(Kind.ANSWERS, [bus_answer(rrset("www.example.", "AAAA", 300, bytes(16)), learned=now - 2)])
    _, body = msgpack.unpackb(msgpack.packb((Kind.FLUSH, (flush, now - 1))))
    worker.take(Kind.FLUSH, body)
    name = name_from_text("www.example.")
    assert {rrtype for rrtype in (1, 28) if worker.cache.get(name, rrtype, now) is None} == gone
    assert worker.cache.flushed_since(name, now - 1.5)
    assert not worker.cache.flushed_since(name, now)


async def test_what_workers_could_not_read_is_found_before_the_running_ones_have_to_go(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a.example A 192.0.2.1\n")
    more = "  workers: 2\n  block_lists: {ads: {file: list, format: rpz}}\n"
    config = loads(f"node: a\nshim:\n  listen: ['127.0.0.1:0']\n{more}", directory=tmp_path)
    with pytest.raises(ConfigError, match="list"):
        await Parts(config, Kept(config, ManualClock(NOW)), ManualClock(NOW)).prepare()


async def test_what_a_shim_set_on_the_cache_goes_with_it(tmp_path: Path) -> None:
    with_shim = "node: a\nshim: {listen: ['127.0.0.1:0'], serve_stale: on, swild: {zones: ['.']}}\n"
    keep = Kept(loads(with_shim), ManualClock(NOW))
    async with Parts(loads(with_shim), keep, ManualClock(NOW)):
        assert keep.cache.observer is not None
        assert keep.cache.keep_expired
        before = keep.cache.observer
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        busy = f"node: a\nshim: {{listen: ['127.0.0.1:{taken.getsockname()[1]}']}}\n"
        with pytest.raises(Exception, match="cannot listen"):
            await Parts(loads(busy), keep, ManualClock(NOW)).__aenter__()
    assert keep.cache.observer == before, "the next one is the one before, who takes over what it knew"
    async with Parts(loads("node: a\n"), keep, ManualClock(NOW)):
        assert keep.cache.observer is None
        assert keep.cache.keep_expired == 0


def test_counters_are_summed() -> None:
    assert total([{"queries": 3, "tcp_open": 1}, {}, {"queries": 4, "errors": 1}]) == {
        "queries": 7,
        "tcp_open": 1,
        "errors": 1,
    }


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_of_what_all_have_alike_the_one_that_lags_behind_shows(name: str) -> None:
    assert total([{name: 2_000}, {name: 1_000}]) == {name: 1_000}
    assert total([{name: 2_000}, {name: 0}]) == {name: 0}


def test_what_goes_up_and_down_is_not_kept_of_a_worker_that_is_gone() -> None:
    seat = Seat(0, lambda _seat, _answers: None)
    seat.counters = {"queries": 5, **dict.fromkeys(GAUGES, 7)}
    seat._leave()
    assert (seat.counters, seat.before) == ({}, {"queries": 5})


def test_a_worker_logs_what_the_node_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "level", logging.ERROR)
    monkeypatch.setattr(logging.getLogger("quic"), "level", logging.WARNING)
    levels = log_levels()
    assert (levels[""], levels["quic"]) == (logging.ERROR, logging.WARNING)
    assert "cachebus.shim.workers" not in levels  # it has no level of its own


def test_gauges_are_gauges_in_the_metrics() -> None:
    assert GAUGES <= metrics.GAUGES
