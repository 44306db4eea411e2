#!/usr/bin/env bash
# Make the cold-started Atlas models: how to see, how to use each tool, from demonstrations. About 20 minutes on two cores.
#
#   ./scripts/cold_start.sh          into runs/atlas-tilt/model (tilted, what GRPO starts from)
#   ./scripts/cold_start.sh --ship   the ablation too (runs/atlas-untilted/model: as long, but every tool at random), then put both
#                                    where the package keeps the ones that ship, as bfloat16
#   ./scripts/cold_start.sh --maths  instead: the model of configs/maths.yaml, into runs/maths-sft/model; with --ship where it ships
#
# What is there already is used again, and a part that was interrupted resumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ship=no world=atlas
for argument in "$@"; do
  case "$argument" in
    --ship) ship=yes ;;
    --maths) world=maths ;;
    *) printf 'usage: scripts/cold_start.sh [--maths] [--ship]\n' >&2; exit 2 ;;
  esac
done

venv="$(./scripts/env.sh)"
export PATH="$venv/bin:$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

if [[ ! -f build/$world/world.json ]]; then mmsr1 "$world" build "build/$world"; fi
if [[ ! -f runs/$world-vision/config.json ]]; then
  mkdir -p runs
  rm -rf "runs/$world-vision.new"
  cp -r "build/$world/model" "runs/$world-vision.new"
  OMP_NUM_THREADS=1 python -m "megatron_mmsr1.$world.vision" "runs/$world-vision.new" # tiny layers: a second thread only gets in the way
  mv "runs/$world-vision.new" "runs/$world-vision"
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

if [[ $world == maths ]]; then
  part maths-sft maths-sft
  if [[ $ship == yes ]]; then python -m megatron_mmsr1.atlas.pack runs/maths-sft/model megatron_mmsr1/maths/checkpoint; fi
  exit
fi

part atlas-sft atlas-sft
part atlas-tilt atlas-tilt

if [[ $ship == yes ]]; then
  part atlas-tilt atlas-untilted sft.options.tilt=0.0
  python -m megatron_mmsr1.atlas.pack runs/atlas-tilt/model megatron_mmsr1/atlas/checkpoints/tilted
  python -m megatron_mmsr1.atlas.pack runs/atlas-untilted/model megatron_mmsr1/atlas/checkpoints/untilted
fi
