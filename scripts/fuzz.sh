#!/bin/bash
# Every parser, FUZZ_EXAMPLES (default 100,000) inputs each, at least half of them mutations of valid input, and at least
# 90 % of its branches. FUZZ_SEED repeats a run; arguments go on, as `scripts/fuzz.sh --only message`. Without any, the
# shim's real listeners are fuzzed as well, for LISTENER_SECONDS (default 600).
set -eu
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
failed=0
python -m tests.fuzz "$@" || failed=1
if [ $# -eq 0 ]; then
    SOAK_SECONDS="${LISTENER_SECONDS:-600}" pytest -q -m soak -o faulthandler_timeout=0 tests/soak/test_shim_listeners.py || failed=1
fi
exit $failed
