"""`bench --shim`: that both servers get the same names, that what is missing is named, and what the figures mean."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cachebus.cache import Cache
from cachebus.cli import bench_shim, bench_shim_servers
from cachebus.cli.bench import bench
from cachebus.cli.bench_lanes import BenchError
from cachebus.cli.bench_shim import Turn, _figures, measure_shim, shim_text
from cachebus.cli.bench_shim_names import TTL, answers, names, write_questions
from cachebus.cli.bench_shim_servers import Run, ToolMissingError, ask, cores, cpu_of, on_core, program
from cachebus.presentation import name_from_text
from cachebus.unbound.dump import compose

NOW = 1_800_000_000.0


def test_names_are_the_same_every_time_and_all_different() -> None:
    found = names(5000)
    assert found == names(5000)
    assert len(set(found)) == 5000
    assert 20 < sum(len(name_from_text(name)) for name in found) / 5000 < 30


def test_both_caches_take_every_name() -> None:
    cache = Cache("bench", max_entries=20_000)
    for part in answers(3000, NOW):
        assert cache.put_all(part, NOW) == [None] * len(part)
        assert all(compose(answer, NOW) is not None for answer in part)
    assert cache.statistics()["entries"] == 3000
    assert TTL == 86400


def test_questions_are_for_those_names_some_more_often(tmp_path: Path) -> None:
    different = write_questions(tmp_path / "questions", 5000)
    asked = [line.split() for line in (tmp_path / "questions").read_text().splitlines()]
    assert len(asked) == 5000
    assert {rrtype for _, rrtype in asked} == {"A"}
    assert {name for name, _ in asked} <= set(names(5000))
    assert different == len({name for name, _ in asked})
    assert 1000 < different < 4000
    assert write_questions(tmp_path / "again", 5000) == different
    assert (tmp_path / "again").read_bytes() == (tmp_path / "questions").read_bytes()


@pytest.mark.parametrize("missing", ["dnsperf", "unbound"])
def test_what_is_not_installed_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **more: None if name == missing else real(name, **more) or f"/usr/bin/{name}"
    )
    with pytest.raises(ToolMissingError, match=f"{missing} is not installed .Debian: apt install {missing}."):
        measure_shim(1000)


def test_shim_and_warm_start_exclude_each_other() -> None:
    done = CliRunner().invoke(bench, ["--shim", "--warm-start"])
    assert done.exit_code == 2
    assert "two measurements" in done.output


def test_cpu_is_counted_and_the_core_given_back() -> None:
    before = os.sched_getaffinity(0)
    with on_core(cores()[1]):
        assert os.sched_getaffinity(0) == {cores()[1]}
    assert os.sched_getaffinity(0) == before
    used = cpu_of(os.getpid())
    while cpu_of(os.getpid()) < used + 0.05:
        sum(range(10_000))


SAID = """\
> NOERROR www.example. A 0.000250
> NOERROR api.example. A 0.000125
  Queries sent:         2
  Queries completed:    2 (100.00%)
  Queries lost:         0 (0.00%)

  Response codes:       {codes}
  Queries per second:   9999.270053
"""


def saying(text: str, code: int = 0) -> Any:
    def run(command: list[str], *, stdout: Any, **more: Any) -> subprocess.CompletedProcess[str]:
        stdout.write(text)
        return subprocess.CompletedProcess(command, code)

    return run


def test_dnsperf_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_shim_servers, "program", lambda name: name)
    monkeypatch.setattr(subprocess, "run", saying(SAID.format(codes="NOERROR 2 (100.00%)")))
    assert ask(53, tmp_path, 1.0, rate=2) == Run(2, 0, 9999.270053, [0.000125, 0.00025])
    monkeypatch.setattr(subprocess, "run", saying(SAID.format(codes="NOERROR 1 (50.00%), SERVFAIL 1 (50.00%)")))
    with pytest.raises(BenchError, match="not every question"):
        ask(53, tmp_path, 1.0)
    monkeypatch.setattr(subprocess, "run", saying("Error: opening file", 1))
    with pytest.raises(BenchError, match=r"dnsperf failed: .'Error: opening file'."):
        ask(53, tmp_path, 1.0)


RESULT: dict[str, Any] = {
    **_figures([Turn(90_000, 6.5, 0), Turn(80_000, 7.0, 1), Turn(10_000, 60.0, 2)], Run(3, 0, 1.0, [0.001, 0.002])),
    "unbound": _figures([Turn(100_000, 5.0, 0)], Run(3, 0, 1.0, [0.0005])),
    "bytes_per_rrset": 190.5,
    "gc_pause_ms": 0.1,
    "fast_share": 1.0,
    "entries": 1_000_000,
    "names_asked": 240_000,
    "latency_rate": 10_000,
    "same_core": False,
    "compiled": True,
}


def test_a_figure_is_the_median_of_the_rounds() -> None:
    assert RESULT["queries_per_second"] == 80_000
    assert RESULT["cpu_us_per_query"] == 7.0
    assert RESULT["latency_ms"] == {"p50": 1.0, "p99": 2.0}
    assert RESULT["lost"] == 3
    with pytest.raises(BenchError, match="no reply was timed"):
        _figures([Turn(1, 1, 1)], Run(0, 1, 0.0, []))


def test_text_and_json_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shim_text(RESULT)
    assert "0.80 of Unbound's queries/s, 1.40 times its CPU per query" in text
    assert "190.5 bytes of memory per RRset" in text
    assert "same core" not in text
    assert "of no use" in shim_text({**RESULT, "same_core": True})
    asked: list[int] = []
    monkeypatch.setattr("cachebus.cli.bench.measure_shim", lambda entries, progress: asked.append(entries) or RESULT)
    done = CliRunner().invoke(bench, ["--shim", "--json"])
    assert json.loads(done.output) == RESULT
    done = CliRunner().invoke(bench, ["--shim", "--answers", "2000"])
    assert done.output == text + "\n"
    assert asked == [bench_shim.ENTRIES, 2000]


def test_programs_are_found_where_root_has_them() -> None:
    assert program("unbound").endswith("/unbound")
