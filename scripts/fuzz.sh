#!/bin/bash
# Every parser, FUZZ_EXAMPLES (default 100,000) inputs each, at least half of them mutations of valid input, and at least
# 90 % of its branches. FUZZ_SEED repeats a run; arguments go on, as `scripts/fuzz.sh --only message`.
set -eu
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
exec python -m tests.fuzz "$@"
