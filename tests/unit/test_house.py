"""The rules of the house that no other tool checks: sizes, docstrings, imports of transports, and the scripts of CI."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    path
    for directory in ("cachebus", "transports/cachebus_transports")
    for path in sorted((ROOT / directory).rglob("*.py"))
    if not path.name.endswith("_pb2.py") and path.stat().st_size
]
MAX_MODULE = 550
"""Lines: 500 are worth a hard look, beyond this it holds two nouns."""
MAX_FUNCTION = 60
"""Lines, docstring included: beyond that nobody sees it whole."""
TRANSPORTS_MAY_IMPORT = {"cachebus.ports", "cachebus.errors"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_one_noun(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), "no docstring that says what it decides"
    assert len(path.read_text().splitlines()) <= MAX_MODULE
    long = [node.name for node in functions(tree) if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION]
    assert long == []


@pytest.mark.parametrize("path", [one for one in MODULES if "cachebus_transports" in one.parts], ids=name_of)
def test_transport_knows_only_ports_and_errors(path: Path) -> None:
    imported = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module)
    ours = {name for name in imported if name.partition(".")[0] == "cachebus"}
    assert ours <= TRANSPORTS_MAY_IMPORT


def test_every_entry_point_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = {**project["scripts"], **project["entry-points"]["cachebus.transports"]}
    for value in points.values():
        module, _, attribute = value.partition(":")
        assert callable(getattr(import_module(module), attribute.partition(" ")[0]))  # an extra may follow


def test_transports_is_no_package() -> None:
    assert not (ROOT / "transports" / "__init__.py").exists()


# What CI runs


def test_ci_runs_make_test_from_anywhere_and_passes_its_exit_code_on(tmp_path: Path) -> None:
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "CI=$CI $PWD: make $*"\nexit 7\n')
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CI": ""}
    done = subprocess.run([ROOT / ".ci/run"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"CI=1 {ROOT}: make test\n"
    assert done.returncode == 7


SKIPS = {
    "test_function.py": "import pytest\ndef test_it():\n    pytest.skip('no unbound here')\n",
    "test_mark.py": "import pytest\n@pytest.mark.skip(reason='no named here')\ndef test_it():\n    pass\n",
    "test_module.py": "import pytest\npytest.skip('no nsd here', allow_module_level=True)\n",
    "test_known.py": "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_it():\n    assert False\n",
    "test_right.py": "def test_it():\n    pass\n",
}


@pytest.mark.parametrize("ci", ["1", "true", ""])
def test_a_skip_is_a_failure_in_ci_only(ci: str, tmp_path: Path) -> None:
    for name, text in SKIPS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    options = ["--rootdir", str(tmp_path), "-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:asyncio"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "--continue-on-collection-errors", *options, "."],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        timeout=120,
    )
    summary = done.stdout.splitlines()[-1]
    for reason in ("no unbound here", "no named here", "no nsd here"):
        assert reason in done.stdout
    if ci:
        assert done.returncode == 1
        assert "1 failed, 1 passed, 1 xfailed, 2 errors" in summary
    else:
        assert done.returncode == 0
        assert "1 passed, 3 skipped, 1 xfailed" in summary


RUNS = {
    "all right": ("==== 3 passed in 0.10s ====", 0, "", "7 passed, 0 failed", 0),
    "long and right": ("==== 3 passed, 1 xfailed in 70.10s (0:01:10) ====", 0, "", "7 passed, 0 failed", 0),
    "tests failed": ("= 1 failed, 3 passed, 1 skipped, 2 errors in 0.10s =", 1, "", "7 passed, 3 failed", 1),
    "one error": ("==== 1 error in 0.10s ====", 2, "", "4 passed, 1 failed", 1),
    "a stage failed": ("==== 3 passed in 0.10s ====", 0, "types", "6 passed, 1 failed", 1),
    "no summary": ("Segmentation fault", 139, "", "4 passed, 1 failed", 1),
    "nothing ran": ("==== no tests ran in 0.10s ====", 5, "", "4 passed, 1 failed", 1),
}


@pytest.mark.parametrize("case", RUNS)
def test_last_line_counts_stages_and_tests(case: str, tmp_path: Path) -> None:
    summary, code, broken_stage, last_line, outcome = RUNS[case]
    script = tmp_path / "scripts" / "test.sh"
    script.parent.mkdir()
    script.write_bytes((ROOT / "scripts/test.sh").read_bytes())
    for name, text in {
        "make": f'[ "$2" != "{broken_stage}" ]',
        "pytest": "case \"$*\" in *'-m alone'*) echo '==== no tests ran in 0.10s ===='; exit 5;; esac; "
        f"echo 'tests/unit/test_it.py ...'; echo '{summary}'; exit {code}",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == last_line
    assert done.returncode == outcome
    assert ("types: FAILED" in done.stdout) == bool(broken_stage)
