#!/bin/bash
# All that `make test` checks. A failed stage is named and does not stop the next; the last line says
# "N passed, N failed", stages and tests together.
set -u
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# Far above any honest run: a hang ends with a report, not in silence.
TESTS_MAY_TAKE=1500
ALONE_MAY_TAKE=1200

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

mkdir -p build
empty=0
tests() { # name, may take so many seconds, arguments of pytest...
    local name=$1 may_take=$2 outcome summary tests_failed
    shift 2
    echo "== $name"
    timeout --foreground --signal=INT --kill-after=30 "$may_take" pytest --color=no --continue-on-collection-errors --durations=10 "$@" 2>&1 | tee "build/$name.log"
    outcome=${PIPESTATUS[0]}
    summary=$(grep -E '^=+ .* in [0-9.]+s.* =+$' "build/$name.log" | tail -1)
    if [ "$outcome" -eq 124 ] || [ "$outcome" -eq 137 ]; then
        echo "== $name: stopped after $may_take s"
    fi
    tests_failed=$(($(count failed) + $(count errors?)))
    # 5: arguments that choose tests may leave one of the two parts without any.
    if [ "$outcome" -eq 5 ]; then
        empty=$((empty + 1))
    elif [ "$outcome" -ne 0 ] && [ "$tests_failed" -eq 0 ]; then
        tests_failed=1
    fi
    passed=$((passed + $(count passed)))
    failed=$((failed + tests_failed))
}

# Most tests wait for servers and TTLs, so more of them than there are cores go on side by side; those that take the
# time of something have the machine to themselves.
tests tests $TESTS_MAY_TAKE -m "not alone" --numprocesses "${TEST_PROCESSES:-4}" --dist loadgroup "$@"
tests tests-alone $ALONE_MAY_TAKE -m alone "$@"
if [ "$empty" -eq 2 ]; then failed=$((failed + 1)); fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
