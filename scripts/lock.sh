#!/usr/bin/env bash
# Remake the locks, every package pinned and hashed: requirements.lock from pyproject.toml (the one environment),
# requirements-gpu.lock (what its `gpu` extra adds), containers/requirements-vllm.lock (the second environment of Dockerfile.vllm).
set -euo pipefail
cd "$(dirname "$0")/.."
compile() { .venv/bin/uv pip compile --generate-hashes --no-emit-index-url --no-header --no-annotate -q "$@"; }
pins() { sed -nE 's/^([A-Za-z0-9_.-]+==[^ ;]+).*/\1/p' "$1"; }

compile pyproject.toml --extra wandb --extra demo --extra router --extra dev scripts/bootstrap.in -o requirements.lock "$@"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
pins requirements.lock >"$work/pins"
mapfile -t there < <(sed -E 's/==.*//; s/^/--no-emit-package=/' "$work/pins")
# The metadata of a package that is compiled is known only beside torch: hence this environment, without isolation.
VIRTUAL_ENV="$PWD/.venv" compile pyproject.toml --extra gpu -c "$work/pins" --no-build-isolation "${there[@]}" \
  --no-emit-package=megatron-mmsr1 -o "$work/gpu" "$@"
grep -vE '^#' "$work/gpu" >requirements-gpu.lock

# Both environments exchange tensors: the same torch, NCCL and transformers.
grep -E '^(torch|torchvision|transformers|tokenizers|safetensors|nvidia-[a-z0-9-]+|triton)==' "$work/pins" >"$work/shared"
compile containers/vllm.in -c "$work/shared" --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
  -o containers/requirements-vllm.lock "$@"
