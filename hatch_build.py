"""The build hook of hatchling: compiles the hot modules with mypyc into the wheel, where a C compiler is at hand.

Decides whether to compile, and how; pyproject.toml lists the modules. Knows nothing of what they do: each stays in the
wheel as source too, and the package is whole without a compiled one. What is built is built in a temporary directory,
from copies, so that nothing is left in the source tree.

The environment variable CACHEBUS_COMPILE says what is wanted, see `Wish`. An editable install is never compiled: there
developers see their edits.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "CACHEBUS_COMPILE"
REQUIRES = ["mypy>=2.4,<3", "setuptools>=77"]
"""Fetched only where something will be compiled. The range of mypy is that of the `test` extra."""
OPTIMISATION = "1"
"""gcc -O2 and -O3 take twice as long, and save 2 % of the instructions: most of them are in CPython's own library."""
TIMEOUT = 600
"""Seconds: ten times what it takes on a small machine; a compiler that hangs does not stop an installation."""
PACKAGE = "cachebus"
SETUP = """\
from mypyc.build import mypycify
from setuptools import setup

# The build environment has none of our dependencies, so what they define is of any type: none of it is hot.
OPTIONS = ["--config-file=", "--cache-dir={cache}", "--ignore-missing-imports", "--follow-imports=silent"]
setup(
    name="{package}",
    packages=[],
    ext_modules=mypycify([*OPTIONS, *{modules!r}], opt_level="{level}", debug_level="0", group_name="{package}"),
)
"""


class Wish(Enum):
    """The values of CACHEBUS_COMPILE."""

    AUTO = "auto"
    """Compile where a C compiler and Python's headers are; when it fails, say so and build the pure wheel."""
    MUST = "1"
    """Compile, or fail."""
    NEVER = "0"
    """Build the pure wheel."""


class CannotCompileError(Exception):
    """Its text says why, in one line."""


def wish() -> Wish:
    """What the environment asks for. Raises `ValueError` for anything else."""
    value = os.environ.get(VARIABLE, Wish.AUTO.value)
    try:
        return Wish(value)
    except ValueError:
        raise ValueError(f"{VARIABLE} is {value!r}, not one of auto, 1, 0") from None


def obstacle() -> str | None:
    """Why nothing can be compiled here; None when it can be tried."""
    if sys.implementation.name != "cpython":
        return "mypyc compiles for CPython only"
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if not command or shutil.which(command[0]) is None:
        return f"there is no C compiler {' '.join(command)} (Debian: the package gcc)"
    if not any(Path(sysconfig.get_path(kind), "Python.h").is_file() for kind in ("include", "platinclude")):
        return "there is no Python.h (Debian: the package python3-dev)"
    return None


def compile_modules(root: Path, modules: Sequence[str], scratch: Path) -> list[Path]:
    """Compile `modules` (paths below `root`) in `scratch`; the extension modules, below the directory `lib` there.

    Raises `CannotCompileError`.
    """
    if reason := obstacle():
        raise CannotCompileError(reason)
    source, built = scratch / "source", scratch / "lib"
    shutil.copytree(root / PACKAGE, source / PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    text = SETUP.format(package=PACKAGE, cache=scratch / "cache", modules=list(modules), level=OPTIMISATION)
    (source / "setup.py").write_text(text)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", built, "--build-temp", scratch / "objects"]
    with (scratch / "log").open("w+") as log:
        try:
            subprocess.run(command, cwd=source, check=True, timeout=TIMEOUT, stdout=log, stderr=log)  # noqa: S603
        except (OSError, subprocess.SubprocessError) as error:
            log.seek(0)
            raise CannotCompileError(_last_line(log.read()) or str(error)) from error
    found = sorted(built.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"))
    if len(found) != len(modules) + 1:  # one for each, and the library that holds the code of all
        raise CannotCompileError(f"{len(found)} extension modules of {len(modules) + 1} were made")
    return found


def _last_line(text: str) -> str:
    """The last line that says something: of a traceback and of a compiler's messages it is the one that tells most."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


class HotModules(BuildHookInterface[Any]):
    """The hook itself."""

    _scratch: TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """What the build environment needs beyond hatchling."""
        wanted = wish()
        return [] if wanted is Wish.NEVER or (wanted is Wish.AUTO and obstacle()) else REQUIRES

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the result into a standard wheel."""
        wanted = wish()
        if version != "standard" or wanted is Wish.NEVER:
            return
        self._scratch = TemporaryDirectory(prefix="cachebus-build-")
        scratch = Path(self._scratch.name)
        try:
            found = compile_modules(Path(self.root), self.config["modules"], scratch)
        except CannotCompileError as error:
            if wanted is Wish.MUST:
                raise
            self.app.display_warning(f"cachebus: not compiled, built as pure Python: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update({str(path): str(path.relative_to(scratch / "lib")) for path in found})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built."""
        if self._scratch is not None:
            self._scratch.cleanup()
