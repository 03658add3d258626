#!/bin/bash
# All that `make test` checks. A failed stage is named and does not stop the next; the last line says
# "N passed, N failed", stages and tests together.
set -u
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# Above any honest run, below the 15 minutes that all of `make test` may take: a hang ends with a report, not in silence.
TESTS_MAY_TAKE=720

passed=0
failed=0
stage() { # name, command...
    local name=$1 started=$SECONDS
    shift
    echo "== $name"
    if "$@"; then
        passed=$((passed + 1))
        echo "== $name: right ($((SECONDS - started)) s)"
    else
        failed=$((failed + 1))
        echo "== $name: FAILED"
    fi
}

count() { # how many "passed", "failed" or "error(s)" the summary line of pytest tells
    grep -oE "[0-9]+ $1" <<<"$summary" | grep -oE '^[0-9]+' || echo 0
}

stage lint make --no-print-directory lint
stage types make --no-print-directory types
stage contracts make --no-print-directory contracts
stage docs make --no-print-directory docs

echo "== tests"
mkdir -p build
timeout --foreground --signal=INT --kill-after=30 $TESTS_MAY_TAKE pytest --color=no --continue-on-collection-errors --durations=10 "$@" 2>&1 | tee build/pytest.log
outcome=${PIPESTATUS[0]}
summary=$(grep -E '^=+ .* in [0-9.]+s.* =+$' build/pytest.log | tail -1)
if [ "$outcome" -eq 124 ] || [ "$outcome" -eq 137 ]; then
    echo "== tests: stopped after $TESTS_MAY_TAKE s"
fi
tests_failed=$(($(count failed) + $(count errors?)))
if [ "$outcome" -ne 0 ] && [ "$tests_failed" -eq 0 ]; then tests_failed=1; fi
passed=$((passed + $(count passed)))
failed=$((failed + tests_failed))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
