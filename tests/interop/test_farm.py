"""The farm itself: every server serves, resolves and logs what the scenarios build on."""

from __future__ import annotations

from pathlib import Path

import dns.flags
import dns.message
import pytest

from tests.farm.authoritative import Knot, Nsd
from tests.farm.bind import Bind
from tests.farm.client import Question, ask_all, data, signatures
from tests.farm.recursor import Recursor
from tests.farm.unbound import Unbound
from tests.farm.zones import Zones
from tests.servers import require

pytestmark = pytest.mark.interop


def test_there_are_200_questions_of_all_common_types(zones: Zones) -> None:
    assert len(set(zones.questions)) >= 200
    assert {"A", "AAAA", "MX", "TXT", "SRV", "HTTPS", "PTR"} <= {question.type for question in zones.questions}
    assert sum(question.secure for question in zones.questions) >= 30


def test_nsd_and_knot_serve_the_same(tmp_path: Path, zones: Zones, nsd: Nsd) -> None:
    require("knot")
    with Knot(tmp_path, zones.files) as knot:
        ours = ask_all(nsd.endpoint, zones.questions, recurse=False)
        theirs = ask_all(knot.endpoint, zones.questions, recurse=False)
    assert len(ours) == len(theirs) == len(set(zones.questions))
    for question in zones.questions:
        assert data(theirs[question]), question
        assert data(theirs[question]) <= data(ours[question]), question  # NSD also follows a CNAME into its other zones


def test_unbound_resolves_every_name(tmp_path: Path, zones: Zones, nsd: Nsd) -> None:
    require("unbound")
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    with Unbound(tmp_path, stubs=stubs, anchors=[zones.anchor]) as resolver:
        answers = ask_all(resolver.endpoint, zones.questions)
    check_answers(zones, answers)


def test_bind_resolves_every_name(tmp_path: Path, zones: Zones, nsd: Nsd) -> None:
    require("bind")
    with Bind(tmp_path, stubs=dict.fromkeys(zones.names, nsd.endpoint), anchors=[zones.anchor]) as resolver:
        answers = ask_all(resolver.endpoint, zones.questions)
    check_answers(zones, answers)


def test_pdns_recursor_resolves_every_name(farm: Path, zones: Zones, nsd: Nsd) -> None:
    require("pdns-recursor")
    with Recursor(farm, stubs=dict.fromkeys(zones.names, nsd.endpoint)) as resolver:
        answers = ask_all(resolver.endpoint, zones.questions)
    check_answers(zones, answers, validating=False)


def check_answers(zones: Zones, answers: dict[Question, dns.message.Message], *, validating: bool = True) -> None:
    assert len(answers) == len(set(zones.questions))
    for question in zones.questions:
        assert answers[question].rcode() == 0, question
        assert data(answers[question]), question
        assert bool(answers[question].flags & dns.flags.AD) == (question.secure and validating), question
        assert bool(signatures(answers[question])) == question.secure, question
