#!/usr/bin/env bash
# Install what the tests need, check the style and the types, run the tests. Arguments go on to pytest.
#
#   ./scripts/test.sh                    what CI runs: all but the slow tests and those for a GPU
#   ./scripts/test.sh --fast             style, and the short tests that start no engine, server, ranks or browser
#   ./scripts/test.sh --slow             the slow ones too        ./scripts/test.sh --gpu    those for a GPU too
#   ./scripts/test.sh tests/test_cli.py  one file                 ./scripts/test.sh -k resume -x
#
# Without a path the tests run in three processes at once (-n 2 makes it two): more than two cores would hold, for much of a test
# is waiting. tests/suite.py says which tests share one. Type errors are told after the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

marks="" arguments=()
slow=no gpu=no fast=no
workers=(-n 3 --dist loadgroup --no-loadscope-reorder)
for argument in "$@"; do
  case "$argument" in
    --slow) slow=yes ;;
    --gpu) gpu=yes ;;
    --fast) fast=yes ;;
    *)
      arguments+=("$argument")
      if [[ -e "${argument%%::*}" ]]; then workers=(); fi
      ;;
  esac
done
if [[ $slow == no ]]; then marks="not slow"; fi
if [[ $gpu == no ]]; then marks="${marks:+$marks and }not gpu"; fi
if [[ $fast == yes ]]; then
  marks="$marks and not process and not long"
  export MMSR1_FAST=1 # property tests draw a few examples
  if [[ ${#workers[@]} -gt 0 ]]; then workers[1]=2; fi # nothing waits, and a third would import all that the others do
fi

venv="$(./scripts/env.sh)"
export PATH="$venv/bin:$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [[ $fast == no ]]; then ./scripts/browser.sh >/dev/null; fi
ruff check .
ruff format --check .
types=""
if [[ $fast == no ]]; then # beside the tests: it takes one core for minutes
  said="$(mktemp)"
  pyright --pythonpath "$venv/bin/python" >"$said" 2>&1 &
  types=$!
  trap 'kill "$types" 2>/dev/null || true; rm -f "$said"' EXIT # what fails in a trap would become our exit code
fi
export PYTHONDONTWRITEBYTECODE= # each worker and each process that a test starts would compile the project anew
code=0
python -m pytest -q -m "$marks" "${workers[@]}" "${arguments[@]}" || code=$?
if [[ -n $types ]] && ! wait "$types"; then
  cat "$said" >&2
  if [[ $code == 0 ]]; then code=1; fi
fi
exit "$code"
