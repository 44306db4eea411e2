#!/usr/bin/env bash
# Make the cold-started Atlas models: how to use each tool, from demonstrations. About half an hour on two cores.
#
#   ./scripts/cold_start.sh          both parts, into runs/atlas-sft/model (untilted) and runs/atlas-tilt/model (tilted)
#   ./scripts/cold_start.sh --ship   then put them where the package keeps the ones that ship
#
# What is there already is used again, and a part that was interrupted resumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ship=no
case "${1:-}" in
  "") ;;
  --ship) ship=yes ;;
  *) printf 'usage: scripts/cold_start.sh [--ship]\n' >&2; exit 2 ;;
esac

venv="$(./scripts/env.sh)"
export PATH="$venv/bin:$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

if [[ ! -f build/atlas/world.json ]]; then mmsr1 atlas build build/atlas; fi
for part in atlas-sft atlas-tilt; do
  if [[ -f runs/$part/model/config.json ]]; then
    echo "runs/$part/model is there already" >&2
  else
    mmsr1 sft "configs/$part.yaml"
  fi
done

if [[ $ship == yes ]]; then
  checkpoints=megatron_mmsr1/atlas/checkpoints
  mkdir -p "$checkpoints"
  for pair in atlas-sft:untilted atlas-tilt:tilted; do
    target="$checkpoints/${pair#*:}"
    rm -rf "$target.new"
    cp -r "runs/${pair%:*}/model" "$target.new"
    rm -rf "$target"
    mv "$target.new" "$target"
    du -sh "$target" >&2
  done
fi
