#!/usr/bin/env bash
# Make the one environment, or find that it is there already. Says what it does on stderr; prints the environment's path on stdout.
#
#   ./scripts/env.sh          everything a CPU machine needs, from requirements.lock (hashed), into .venv
#   ./scripts/env.sh --gpu    the same, then requirements-gpu.lock (needs the CUDA toolkit, not a GPU: some of it is compiled)
#
# MMSR1_PYTHON=PATH   the Python 3.12 to use; default: the first that runs of those on this machine
# MMSR1_VENV=DIR      put the environment there, or use the one that is there if it was made from this very lock
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }
die() { say "env.sh: $*"; exit 1; }

gpu=no
case "${1:-}" in
  "") ;;
  --gpu) gpu=yes ;;
  *) say "usage: scripts/env.sh [--gpu]"; exit 2 ;;
esac

is_312() { # does it run at all (a version manager's shim may refuse), is it 3.12, can it make environments?
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1
}

candidates() {
  command -v python3.12 || true
  if command -v uv >/dev/null; then uv python find --no-python-downloads 3.12 2>/dev/null || true; fi
  local pattern
  for pattern in \
    "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.12*/bin/python3.12" \
    "$HOME/.local/share/uv/python/cpython-3.12*/bin/python3.12" \
    "$HOME/.asdf/installs/python/3.12*/bin/python3.12" \
    "$HOME/.local/share/mise/installs/python/3.12*/bin/python3.12" \
    "${CONDA_PREFIX:-/nonexistent}/bin/python3.12" \
    "$HOME/*conda*/bin/python3.12" "$HOME/*conda*/envs/*/bin/python3.12" \
    "$HOME/*mamba*/bin/python3.12" "$HOME/*mamba*/envs/*/bin/python3.12" \
    "$HOME/miniforge*/bin/python3.12" "$HOME/miniforge*/envs/*/bin/python3.12" \
    "/opt/*conda*/bin/python3.12" "/opt/*conda*/envs/*/bin/python3.12" \
    /usr/local/bin/python3.12 /usr/bin/python3.12; do
    compgen -G "$pattern" || true
  done
  command -v python3 || true
}

find_python() {
  if [[ -n "${MMSR1_PYTHON:-}" ]]; then
    is_312 "$MMSR1_PYTHON" || die "MMSR1_PYTHON=$MMSR1_PYTHON is not a Python 3.12 that runs and has venv and ensurepip"
    printf '%s\n' "$MMSR1_PYTHON"
    return
  fi
  local found seen=""
  while IFS= read -r found; do
    if is_312 "$found"; then printf '%s\n' "$found"; return; fi
    seen+="  $found"$'\n'
  done < <(candidates)
  say "env.sh: this project needs Python 3.12, and none that runs (with venv and ensurepip) was found. Tried:"
  say "${seen:-  nothing: no candidate on the PATH, under pyenv, uv, asdf, mise or conda}"
  say "Install one, then run this again:"
  say "  Ubuntu 24.04:    sudo apt-get install python3.12 python3.12-venv"
  say "  Debian and all:  uv python install 3.12   |   pyenv install 3.12   |   conda create -n py312 python=3.12"
  say "or name one that you have: MMSR1_PYTHON=/path/to/python3.12"
  exit 1
}

venv="${MMSR1_VENV:-$PWD/.venv}"
stamp="$venv/.mmsr1-lock"
lock_sha="$(cat requirements.lock scripts/bootstrap.in | sha256sum | cut -d' ' -f1)"
home_stamp="$PWD $(sha256sum pyproject.toml | cut -d' ' -f1)"

installed_for() { [[ -f "$stamp" && "$(sed -n 1p "$stamp")" == "$lock_sha" && -x "$venv/bin/python" ]]; }
gpu_line() { printf 'gpu %s\n' "$(sha256sum requirements-gpu.lock | cut -d' ' -f1)"; }
gpu_ready() { [[ "$gpu" == no ]] || grep -qx "$(gpu_line)" "$stamp"; }

# Made by another checkout: usable as it is, because every script puts its own checkout first on PYTHONPATH.
is_ready() { installed_for && gpu_ready && [[ -n "${MMSR1_VENV:-}" || "$(sed -n 2p "$stamp")" == "$home_stamp" ]]; }
done_already() { if is_ready; then printf '%s\n' "$venv"; exit 0; fi; }

done_already
if [[ -n "${MMSR1_VENV:-}" && -f "$stamp" ]] && ! installed_for; then
  die "MMSR1_VENV=$venv was made from another requirements.lock: unset MMSR1_VENV, name a new directory, or remove that one"
fi

mkdir -p "$venv"
exec 9<"$(dirname "$venv")"
flock 9 # two calls at once: the second waits, and then finds the work done
done_already

if ! is_312 "$venv/bin/python" || [[ ! -x "$venv/bin/uv" ]]; then
  python="$(find_python)"
  say "env.sh: making $venv with $python"
  "$python" -m venv --clear "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r scripts/bootstrap.in >&2
fi
rm -f "$stamp" # not whole until the end of what follows
export VIRTUAL_ENV="$venv"
if [[ -n "${PIP_INDEX_URL:-}" && -z "${UV_DEFAULT_INDEX:-}" ]]; then
  export UV_DEFAULT_INDEX="$PIP_INDEX_URL" # who told pip of a mirror need not tell uv again
fi
say "env.sh: installing $(grep -c '^[a-z0-9].*==' requirements.lock) pinned packages (6 GB; minutes on a slow connection)"
# Bytecode once and for all: without it (an environment may switch its writing off) an engine takes twice as long to start.
UV_COMPILE_BYTECODE_TIMEOUT=600 "$venv/bin/uv" pip sync --quiet --require-hashes --compile-bytecode requirements.lock >&2
"$venv/bin/uv" pip install --quiet --no-deps -e . >&2
if [[ "$gpu" == yes ]]; then
  command -v nvcc >/dev/null || die "--gpu: no nvcc on the PATH: install the CUDA toolkit that matches torch ($("$venv/bin/python" -c 'import torch; print(torch.version.cuda)'))"
  say "env.sh: installing requirements-gpu.lock (transformer-engine and flash-attn are compiled here: this can take an hour)"
  # Their build scripts would rather download binaries that no lock knows; and they import wheel, so it comes before them.
  export NVTE_PYTORCH_FORCE_BUILD="${NVTE_PYTORCH_FORCE_BUILD:-TRUE}" FLASH_ATTENTION_FORCE_BUILD="${FLASH_ATTENTION_FORCE_BUILD:-TRUE}"
  sed -n '/^wheel==/,/[^\\]$/p' requirements-gpu.lock >"$venv/build-tools.txt"
  for file in "$venv/build-tools.txt" requirements-gpu.lock; do
    PATH="$venv/bin:$PATH" "$venv/bin/uv" pip install --no-deps --no-build-isolation --require-hashes -r "$file" >&2
  done
fi
{
  printf '%s\n%s\n' "$lock_sha" "$home_stamp"
  if [[ "$gpu" == yes ]]; then gpu_line; fi
} >"$stamp.new"
mv "$stamp.new" "$stamp"
say "env.sh: ready ($venv)"
printf '%s\n' "$venv"
