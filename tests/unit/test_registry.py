"""Names to transports: what is found, what is suggested, and what is said when a package is missing or broken."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path

import pytest

from cachebus.errors import ConfigError, TransportUnavailable
from cachebus.registry import GROUP, installed_transports, load_transport
from cachebus.testing import MemoryTransport


def point(name: str, value: str = "cachebus.testing:MemoryTransport") -> EntryPoint:
    return EntryPoint(name=name, value=value, group=GROUP)


def installed_package(path: Path, name: str, entries: str) -> list[EntryPoint]:
    """The entry points of a package as `pip install` leaves it."""
    folder = path / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
    return list(PathDistribution(folder).entry_points)


def test_gives_the_factory_of_a_name() -> None:
    assert load_transport("memory", [point("memory")]) == MemoryTransport


def test_lists_names_in_order_without_importing() -> None:
    found = [point("zeromq", "no.such.module:X"), point("udp", "nor.this:Y")]
    assert list(installed_transports(found)) == ["udp", "zeromq"]


def test_reads_the_metadata_of_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_package(tmp_path, "cachebus-pigeon", "pigeon = cachebus.testing:MemoryTransport")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "pigeon" in installed_transports()
    assert load_transport("pigeon") == MemoryTransport


def test_unknown_name_lists_what_is_installed_and_suggests() -> None:
    with pytest.raises(ConfigError) as caught:
        load_transport("upd", [point("udp"), point("mqtt")])
    assert str(caught.value) == "no transport 'upd': installed are mqtt, udp (did you mean udp?)"


def test_unknown_name_like_none_suggests_nothing() -> None:
    with pytest.raises(ConfigError) as caught:
        load_transport("kafka", [point("udp"), point("mqtt")])
    assert str(caught.value) == "no transport 'kafka': installed are mqtt, udp"


def test_nothing_installed_says_so() -> None:
    with pytest.raises(ConfigError, match="no transport is installed"):
        load_transport("udp", [])


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pigeon_transport.py").write_text("import no_such_coop\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = installed_package(tmp_path, "cachebus-pigeon", "pigeon = pigeon_transport:PigeonTransport [coop]")
    with pytest.raises(TransportUnavailable) as caught:
        load_transport("pigeon", found)
    assert str(caught.value) == (
        "transport 'pigeon' needs the module no_such_coop: pip install 'cachebus-pigeon[coop]'"
    )


def test_missing_library_without_an_extra_names_the_module(tmp_path: Path) -> None:
    found = installed_package(tmp_path, "cachebus-pigeon", "pigeon = no_such_pigeon:PigeonTransport")
    with pytest.raises(TransportUnavailable) as caught:
        load_transport("pigeon", found)
    assert str(caught.value) == "transport 'pigeon' of cachebus-pigeon needs the module no_such_pigeon"


def test_missing_attribute_is_a_broken_package(tmp_path: Path) -> None:
    found = installed_package(tmp_path, "cachebus-pigeon", "pigeon = cachebus.testing:PigeonTransport")
    with pytest.raises(TransportUnavailable, match="'pigeon' of cachebus-pigeon is broken"):
        load_transport("pigeon", found)


def test_what_cannot_be_called_is_a_broken_package() -> None:
    with pytest.raises(TransportUnavailable, match="cannot be called"):
        load_transport("pigeon", [point("pigeon", "cachebus.testing:MAX_PENDING")])


def test_two_packages_with_one_name_are_refused(tmp_path: Path) -> None:
    found = [
        *installed_package(tmp_path, "first-bus", "pigeon = first:Transport"),
        *installed_package(tmp_path, "second-bus", "pigeon = second:Transport"),
    ]
    with pytest.raises(ConfigError, match="claimed twice: by first-bus and by second-bus"):
        installed_transports(found)


def test_the_same_entry_found_twice_is_one() -> None:
    assert list(installed_transports([point("udp"), point("udp")])) == ["udp"]


def test_finding_imports_nothing() -> None:
    assert "cachebus_nowhere" not in sys.modules
    installed_transports([point("nowhere", "cachebus_nowhere:X")])
    assert "cachebus_nowhere" not in sys.modules
