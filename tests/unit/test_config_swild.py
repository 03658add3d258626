"""The `swild` section: what it says, what it refuses, and what becomes of it in the parts of a node."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cachebus import assembly
from cachebus.answer import Answer
from cachebus.cache import Cache
from cachebus.config import ConfigErrors, loads
from cachebus.presentation import name_from_text
from cachebus.shim import Shim
from cachebus.shim.swild_owners import Include, Swilds, SwildSettings
from cachebus.testing import ManualClock
from tests.unit.shim_bed import bus_answer, rrset, settings
from tests.unit.swild_bed import NOW, SWILD

HEAD = "node: a\nshim:\n  listen: ['127.0.0.1:53']\n"


def made(section: str) -> SwildSettings:
    chosen = assembly.make_shim_settings(loads(f"{HEAD}  swild: {section}\n"))
    assert chosen is not None
    return chosen.swild


def test_every_key() -> None:
    found = made("{zones: ['.', Foo.COM], type: 65500, ttl_cap: 10m, include: additional, discover: false}")
    assert found == SwildSettings(
        zones=frozenset({b"\0", name_from_text("foo.com.")}),
        type=65500,
        ttl_cap=600,
        include=Include.ADDITIONAL,
        discover=False,
    )


def test_without_the_section_it_is_off() -> None:
    chosen = assembly.make_shim_settings(loads(HEAD))
    assert chosen is not None
    assert chosen.swild == made("{}") == SwildSettings()
    assert not chosen.swild.zones


@pytest.mark.parametrize(
    ("section", "place", "text"),
    [
        ("{type: 65279}", "type", "65280"),
        ("{type: 65535}", "type", "65534"),
        ("{ttl_cap: 0}", "ttl_cap", "1"),
        ("{ttl_cap: 8d}", "ttl_cap", "604800"),
        ("{include: authority}", "include", "answer"),
        ("{zones: ['a..b']}", "zones.0", "empty label"),
        ("{zone: ['a']}", "zone", "did you mean zones?"),
        ("true", "", "wants a mapping"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(section: str, place: str, text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        made(section)
    (problem,) = caught.value.problems
    assert problem.line == 4
    assert problem.key == f"shim.swild.{place}".rstrip(".")
    assert text in problem.message


def test_the_type_is_the_same_for_every_part_and_shown_to_peers() -> None:
    plain, other = loads(HEAD), loads(f"{HEAD}  swild: {{type: 65500}}\n")
    assert assembly.swild_type(plain) == 65392
    assert assembly.swild_type(other) == 65500
    assert assembly.policy_hash(plain) != assembly.policy_hash(other)
    on = loads(f"{HEAD}  swild: {{zones: [foo.com]}}\n")
    assert assembly.policy_hash(plain) == assembly.policy_hash(on), "what a node makes of it is its own affair"
    source = "sources: {s: {type: dnstap, listen: 'unix:/run/x'}}\n"
    config = loads(f"{HEAD}  swild: {{type: 65500}}\n{source}")
    assert assembly.make_judge_settings(config, "s", config.sources["s"]).swild == 65500


async def test_the_next_shim_over_the_same_cache_takes_over() -> None:
    cache, clock = Cache("node-a"), ManualClock(NOW)
    everywhere = SwildSettings(zones=frozenset({b"\0"}))
    learned: Callable[[Answer], object] = lambda answer: None  # noqa: E731

    async with Shim(settings(swild=everywhere), cache, learned, clock):
        cache.put(bus_answer(rrset("foo.com.", SWILD, 60, name_from_text("_.foo.com.")), learned=NOW), NOW)
    async with Shim(settings(swild=everywhere), cache, learned, clock) as second:
        assert second.statistics()["swild_owners"] == 1
    async with Shim(settings(), cache, learned, clock):
        assert cache.observer is None
    async with Shim(settings(swild=everywhere), cache, learned, clock) as after_off:
        assert after_off.statistics()["swild_owners"] == 0
        assert isinstance(getattr(cache.observer, "__self__", None), Swilds)
