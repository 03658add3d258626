#!/bin/bash
# Says what is missing before an environment is made: Python 3.11, and venv (Debian: the package python3-venv).
set -eu
python=$1
if ! command -v "$python" >/dev/null; then
    echo "no $python: install Python 3.11 or newer (Debian 12: apt-get install python3 python3-venv)" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "cachebus needs Python 3.11 or newer; this is $("$python" --version). Say make PYTHON=python3.11 ..." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python has no venv module (Debian 12: apt-get install python3-venv)" >&2
    exit 1
fi
