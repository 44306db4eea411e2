#!/usr/bin/env bash
# Make the cold-started Atlas models: how to see, how to use each tool, from demonstrations. About 20 minutes on two cores.
#
#   ./scripts/cold_start.sh          into runs/atlas-tilt/model (tilted, what GRPO starts from)
#   ./scripts/cold_start.sh --ship   the ablation too (runs/atlas-untilted/model: as long, but every tool at random), then put both
#                                    where the package keeps the ones that ship, as bfloat16
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
if [[ ! -f runs/atlas-vision/config.json ]]; then
  mkdir -p runs
  cp -r build/atlas/model runs/atlas-vision.new
  OMP_NUM_THREADS=1 python -m megatron_mmsr1.atlas.vision runs/atlas-vision.new # tiny layers: a second thread only gets in the way
  mv runs/atlas-vision.new runs/atlas-vision
fi

part() { # CONFIG NAME [key=value ...]
  local config=$1 name=$2
  shift 2
  if [[ -f runs/$name/model/config.json ]]; then
    echo "runs/$name/model is there already" >&2
  else
    mmsr1 sft "configs/$config.yaml" "name=$name" "output=runs/$name" "$@"
  fi
}
part atlas-sft atlas-sft
part atlas-tilt atlas-tilt

if [[ $ship == yes ]]; then
  part atlas-tilt atlas-untilted sft.options.tilt=0.0
  python -m megatron_mmsr1.atlas.pack runs/atlas-tilt/model megatron_mmsr1/atlas/checkpoints/tilted
  python -m megatron_mmsr1.atlas.pack runs/atlas-untilted/model megatron_mmsr1/atlas/checkpoints/untilted
fi
