"""Two real resolvers share what they learn: the acceptance of the spine, with each server as the source."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.farm.authoritative import Nsd
from tests.farm.bind import Bind
from tests.farm.client import Question, ask_all
from tests.farm.node import dnstap_source
from tests.farm.pair import SHARED_WITHIN, Pair, check_same, dead_upstreams
from tests.farm.recursor import Recursor
from tests.farm.unbound import Unbound
from tests.farm.zones import SIGNED, Zones
from tests.servers import require

pytestmark = pytest.mark.interop


def share(pair: Pair, source: Unbound | Bind | Recursor, questions: Sequence[Question], *, secure: bool) -> None:
    """Ask the source resolver everything; soon Unbound B knows it all."""
    pair.wait_for_source()
    learned = ask_all(source.endpoint, questions)
    assert len(learned) == len(set(questions))
    pair.unbound_b.wait_for_data(learned.values(), SHARED_WITHIN)
    check_same(learned, ask_all(pair.unbound_b.endpoint, questions), secure=secure)


def test_unbound_fills_a_validating_unbound_without_upstreams(
    farm: Path, running: ExitStack, zones: Zones, nsd: Nsd
) -> None:
    require("unbound")
    tap = farm / "tap"
    pair = Pair(farm, dnstap_source(tap, validating=True), dead_upstreams(zones.names), [zones.anchor])
    pair.start(running)
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    source = running.enter_context(Unbound(farm, stubs=stubs, anchors=[zones.anchor], dnstap=tap))
    share(pair, source, zones.questions, secure=True)


def test_bind_fills_a_validating_unbound_without_upstreams(
    farm: Path, running: ExitStack, zones: Zones, nsd: Nsd
) -> None:
    require("unbound", "bind")
    tap = farm / "tap"
    pair = Pair(farm, dnstap_source(tap, validating=True), dead_upstreams(zones.names), [zones.anchor])
    pair.start(running)
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    source = running.enter_context(Bind(farm, stubs=stubs, anchors=[zones.anchor], dnstap=tap))
    share(pair, source, zones.questions, secure=True)


def test_pdns_recursor_fills_an_unbound_that_does_not_validate(
    farm: Path, running: ExitStack, zones: Zones, nsd: Nsd
) -> None:
    require("unbound", "pdns-recursor")
    tap = farm / "tap"
    pair = Pair(farm, dnstap_source(tap, trust=["authoritative"]), dead_upstreams(zones.names))
    pair.start(running)
    source = running.enter_context(Recursor(farm, stubs=dict.fromkeys(zones.names, nsd.endpoint), dnstap=tap))
    share(pair, source, zones.questions, secure=False)


def test_pdns_recursor_fills_a_validating_unbound_that_checks_for_itself(
    farm: Path, running: ExitStack, zones: Zones, nsd: Nsd
) -> None:
    require("unbound", "pdns-recursor")
    tap = farm / "tap"
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    # Only the signed zone's server is alive for B, which has to fetch its keys; the rest must come from the bus.
    stubs_b = {**dead_upstreams(zones.names), SIGNED: nsd.endpoint}
    pair = Pair(farm, dnstap_source(tap, trust=["authoritative"]), stubs_b, [zones.anchor])
    pair.start(running)
    source = running.enter_context(Recursor(farm, stubs=stubs, dnstap=tap))
    share(pair, source, zones.questions, secure=True)


def test_names_below_a_dname_that_another_name_brought(farm: Path, running: ExitStack, zones: Zones, nsd: Nsd) -> None:
    """All their RRsets are known at B, only the questions are new; Unbound uses no unsigned DNAME from its cache.

    BIND and PowerDNS Recursor synthesise such names themselves and tell nobody, so nobody can share them.
    """
    require("unbound")
    tap = farm / "tap"
    pair = Pair(farm, dnstap_source(tap, validating=True), dead_upstreams(zones.names), [zones.anchor])
    pair.start(running)
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    source = running.enter_context(Unbound(farm, stubs=stubs, anchors=[zones.anchor], dnstap=tap))
    pair.wait_for_source()
    first = [question for question in zones.questions if "side" in question.name and not question.secure]
    learned = ask_all(source.endpoint, [*first, *zones.synthesised])
    assert len(learned) == len(first) + len(zones.synthesised)
    pair.unbound_b.wait_for(list(learned), SHARED_WITHIN)
    check_same(learned, ask_all(pair.unbound_b.endpoint, learned), secure=True)
