"""The wheel as users build it: its hot modules compiled where that can be done, and pure Python otherwise.

The compiled package is tested by the tests of its modules, copied away from the checkout, whose own package would come
first. It holds the figures that are promised of `cachebus bench`, because it is what users install.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import require

pytestmark = [pytest.mark.interop, pytest.mark.alone]

ROOT = Path(__file__).resolve().parents[2]
HOT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"][
    "custom"
]["modules"]
TESTS = (
    "tests/contract/test_transports.py",
    "tests/property/test_cdns_fuzz.py",
    "tests/property/test_form_fuzz.py",
    "tests/property/test_message_fuzz.py",
    "tests/property/test_shim_fast_fuzz.py",
    "tests/unit/test_cache.py",
    "tests/unit/test_cache_keeping.py",
    "tests/unit/test_cbor.py",
    "tests/unit/test_cdns_messages.py",
    "tests/unit/test_cdns_stream.py",
    "tests/unit/test_cdns_wire.py",
    "tests/unit/test_codec_batch.py",
    "tests/unit/test_codec_cdns.py",
    "tests/unit/test_codec_dns.py",
    "tests/unit/test_message.py",
    "tests/unit/test_node.py",
    "tests/unit/test_policy.py",
    "tests/unit/test_sequence.py",
    "tests/unit/test_shim_fast.py",
    "tests/unit/test_shim_lookup.py",
    "tests/unit/test_tail_publish.py",
    "tests/unit/test_tsig.py",
    "tests/unit/test_udp.py",
)
"""Those of the compiled modules, and of what calls them with values from outside."""
BENCH_RUNS = 3
"""The best counts: the limits are of what the code costs, and a neighbour on the machine can only add to that."""
# `cachebus bench` shows the promised figures on a machine of its own (docs/benchmarks.md). These bounds are a fifth
# above them, so that a busy machine fails no test, and a change that costs as much does.
MAX_TIMES_FLOOR = 3.0
MIN_TIMES_LESS_THAN_DNSPYTHON = 10
OF_UDP = {"zeromq": 0.6, "mqtt": 0.6, "tcp": 1.2}
"""Receive CPU per answer at most, by that of udp."""
TIMES_OTHER_FLOORS = {"zeromq": 3.6, "mqtt": 3.6, "tcp": 3.6, "tcp+batch": 3.6}
"""Receive CPU over that of the bare library."""
LANES = ("udp", "zeromq", "mqtt", "tcp", "tcp+zstd", "tcp+batch")
MAX_BYTES_OF_UDP = 0.35
"""Bytes per answer of the compressed stream at most, by those of udp."""
MAX_P99 = 48.0
"""Milliseconds: the flush interval and 20 more, and a fifth."""


def without_checkout(**more: str) -> dict[str, str]:
    """The environment, without what leads to the checkout's own package."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC")} | more


def build(directory: Path, **more: str) -> tuple[Path, str]:
    """Build a wheel as `pip install .` does, isolated from what is installed here: the wheel, and what pip said."""
    source = directory / "source"
    names = ["cachebus", "transports", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE"]
    for name in names:  # what git ignores or a neighbouring test writes has no place in it
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, source / name)
    before = {path.relative_to(source) for path in source.rglob("*")}
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--disable-pip-version-check", "--no-deps", "-w", directory]
    done = subprocess.run([*command, source], env=without_checkout(**more), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.relative_to(source) for path in source.rglob("*")} == before, "something is left in the source tree"
    (wheel,) = directory.glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the compiled package."""
    require("gcc")
    directory = tmp_path_factory.mktemp("compiled")
    wheel, _ = build(directory, CACHEBUS_COMPILE="1")
    packages = directory / "packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    yield packages
    shutil.rmtree(directory)


def run(packages: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=without_checkout(PYTHONPATH=str(packages)),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_hot_module_is_compiled_and_has_its_source_beside_it(compiled: Path, tmp_path: Path) -> None:
    for path in HOT:
        assert (compiled / path).is_file()
        assert (compiled / path).with_suffix(sysconfig.get_config_var("EXT_SUFFIX")).is_file()
    names = [path.removesuffix(".py").replace("/", ".") for path in HOT]
    code = f"from importlib import import_module\nfor name in {names!r}: print(import_module(name).__file__)"
    done = run(compiled, "-c", code, cwd=tmp_path)
    assert all(line.startswith(str(compiled)) and line.endswith(".so") for line in done.stdout.split()), done.stdout
    assert len(done.stdout.split()) == len(HOT), done.stderr
    done = run(compiled, "-m", "cachebus", "version", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["compiled"] is True


def test_the_compiled_modules_pass_the_tests_of_the_pure_ones(compiled: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")  # its examples are tested
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    # In the subprocess itself: a checkout that came first would pass every test, and prove nothing.
    (tmp_path / "conftest.py").write_text('import cachebus.cache\nassert cachebus.cache.__file__.endswith(".so")\n')
    done = run(compiled, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1]


Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def benches(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Iterator[Rows]]:
    """The lines of up to `BENCH_RUNS` runs by name, each run only when it is asked for, and once for all tests."""
    require("mosquitto")
    runs: list[Rows] = []
    chosen = [word for name in LANES for word in ("--transport", name)]

    def give() -> Iterator[Rows]:
        for number in range(BENCH_RUNS):
            if number == len(runs):
                arguments = ["-m", "cachebus", "bench", "--json", "--answers", "8000", *chosen]
                done = run(compiled, *arguments, cwd=tmp_path_factory.mktemp("bench"))
                assert done.returncode == 0, done.stderr
                rows: Rows = {}
                for line in done.stdout.splitlines():
                    row = json.loads(line)
                    assert row["compiled"] is True
                    rows[row["name"]] = row
                runs.append(rows)
            yield runs[number]

    return give


def best(benches: Callable[[], Iterator[Rows]], figure: Callable[[Rows], float], most: float) -> None:
    """The figure stays within its limit in one of the runs."""
    found: list[float] = []
    for rows in benches():
        found.append(figure(rows))
        if found[-1] <= most:
            return
    pytest.fail(f"{found}, {most} at most is promised")


Benches = Callable[[], Iterator[Rows]]


def test_udp_receives_for_what_is_promised(benches: Benches) -> None:
    best(benches, lambda rows: rows["udp"]["receive_times_floor"], MAX_TIMES_FLOOR)
    best(benches, lambda rows: 1 / rows["udp"]["receive_times_less_than_dnspython"], 1 / MIN_TIMES_LESS_THAN_DNSPYTHON)


@pytest.mark.parametrize("name", OF_UDP)
def test_batches_and_blocks_cost_less_than_datagrams(benches: Benches, name: str) -> None:
    best(benches, lambda rows: rows[name]["receive_cpu_us"] / rows["udp"]["receive_cpu_us"], OF_UDP[name])


@pytest.mark.parametrize("name", TIMES_OTHER_FLOORS)
def test_the_other_receive_paths_stay_near_their_floor(benches: Benches, name: str) -> None:
    best(benches, lambda rows: rows[name]["receive_times_floor"], TIMES_OTHER_FLOORS[name])


def test_a_compressed_stream_is_small(benches: Benches) -> None:
    best(benches, lambda rows: rows["tcp+zstd"]["bytes_per_answer"] / rows["udp"]["bytes_per_answer"], MAX_BYTES_OF_UDP)


@pytest.mark.parametrize("name", LANES)
def test_latency_is_the_flush_interval_and_as_much_again(benches: Benches, name: str) -> None:
    best(benches, lambda rows: rows[name]["latency_ms"]["p99"], MAX_P99)


def test_compiling_can_be_refused(tmp_path: Path) -> None:
    wheel, _ = build(tmp_path, CACHEBUS_COMPILE="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_without_a_compiler_the_wheel_is_pure_and_the_build_says_so(tmp_path: Path) -> None:
    wheel, said = build(tmp_path, CC="/nonexistent/cc")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "not compiled, built as pure Python: there is no C compiler /nonexistent/cc" in said
