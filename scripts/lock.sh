#!/usr/bin/env bash
# Remake requirements.lock from pyproject.toml: every package of the one environment, pinned and hashed.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/uv pip compile pyproject.toml --extra wandb --extra demo --extra router --extra dev scripts/bootstrap.in \
  --generate-hashes --no-emit-index-url --no-header --no-annotate -q -o requirements.lock "$@"
