#!/usr/bin/env bash
# Check and measure the trainer on this machine's GPU, in under nine minutes: docs/gpu.md. Nothing is downloaded.
#
#   ./scripts/gpu_check.sh                    with the environment that is here (.venv, else python3)
#   ./scripts/gpu_check.sh --wheels DIR       where Python has torch, but not our pinned packages: they come from DIR, into a
#                                             temporary directory that stands first on PYTHONPATH
#   ./scripts/gpu_check.sh --collect DIR      on a machine with .venv and an index: put those wheels into DIR (21 MB)
#
# All other arguments go to `mmsr1 bench gpu` (mmsr1 bench gpu --help). MMSR1_PYTHON=PATH names another Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What a machine that was set up for torch usually lacks, or has in another version; versions and hashes are the lock's.
packages="annotated-types antlr4-python3-runtime megatron-bridge megatron-core omegaconf orjson pydantic pydantic-core
  tokenizers transformers typing-inspection"
budget=520 # seconds, of the nine minutes; the rest is for ending what runs

python="${MMSR1_PYTHON:-}"
if [[ -z "$python" ]]; then python=python3; [[ -x .venv/bin/python ]] && python=.venv/bin/python; fi

collect() { # DIR
  local some
  some="$(mktemp)"
  trap 'rm -f "$some"' RETURN
  awk -v names="$packages" '
    BEGIN { n = split(names, list); for (i = 1; i <= n; i++) wanted[list[i]] = 1 }
    /^[^ #]/ { split($0, part, "=="); on = part[1] in wanted }
    on' requirements.lock >"$some"
  "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --require-hashes -r "$some" -w "$1" >&2
  echo "put $(find "$1" -name '*.whl' | wc -l) wheels into $1" >&2
}

arguments=()
while (($#)); do
  case "$1" in
    --wheels | --collect)
      [[ $# -ge 2 ]] || { echo "gpu_check.sh: $1 wants a directory" >&2; exit 2; }
      if [[ "$1" == --collect ]]; then collect "$2"; exit; fi
      compgen -G "$2/*.whl" >/dev/null || { echo "gpu_check.sh: there are no wheels in $2" >&2; exit 2; }
      site="$(mktemp -d)"
      trap 'rm -rf "$site"' EXIT
      "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" "$2"/*.whl >&2
      export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
      shift 2
      ;;
    *) arguments+=("$1"); shift ;;
  esac
done
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD"
"$python" -m megatron_mmsr1.cli bench gpu --budget "$((budget - SECONDS))" ${arguments[@]+"${arguments[@]}"}
