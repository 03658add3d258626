#!/bin/bash
# The long property run: FUZZ_EXAMPLES (default 100,000) per test, unseeded, then the branch coverage that a shorter run
# reaches in each parser. Measuring coverage slows Python several times, hence two runs.
set -eu
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

PARSERS='cachebus/wire/*.py,cachebus/codecs/*.py'
MINIMUM=90 # percent of branches, per parser

FUZZ_EXAMPLES=${FUZZ_EXAMPLES:-100000} pytest -m fuzz -o faulthandler_timeout=0 "$@"

echo "== branch coverage of the parsers"
mkdir -p build
export COVERAGE_FILE=build/coverage.fuzz
FUZZ_EXAMPLES=${COVERAGE_EXAMPLES:-3000} coverage run -m pytest -q -m fuzz -o faulthandler_timeout=0
coverage report --include="$PARSERS" --omit='*_pb2.py' --show-missing
coverage json -q --include="$PARSERS" --omit='*_pb2.py' -o build/coverage.fuzz.json
python - build/coverage.fuzz.json "$MINIMUM" <<'PYTHON'
import json, sys

minimum = float(sys.argv[2])
with open(sys.argv[1], encoding="utf-8") as report:
    files = json.load(report)["files"]
low = []
for path, data in sorted(files.items()):
    summary = data["summary"]
    if summary["num_branches"]:
        share = 100 * summary["covered_branches"] / summary["num_branches"]
        if share < minimum:
            low.append(f"{path}: {share:.1f} % of its branches, below {minimum:.0f} %")
sys.exit("\n".join(low))
PYTHON
