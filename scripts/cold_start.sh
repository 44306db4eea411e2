#!/usr/bin/env bash
# Remake the checkpoints that ship with the package: an Atlas model that knows how to use its tools, with ("tilted") and without
# ("untilted") a first idea of when. About 15 minutes on two cores. Usage: scripts/cold_start.sh [TARGET]
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-megatron_mmsr1/atlas/checkpoints}
mmsr1=.venv/bin/mmsr1

[[ -f build/atlas/heldout.parquet ]] || "$mmsr1" atlas build build/atlas
if [[ ! -d runs/atlas-sft ]]; then .venv/bin/python -m megatron_mmsr1.atlas.eyes build/atlas/model; fi
"$mmsr1" sft configs/atlas-sft.yaml
"$mmsr1" sft configs/atlas-tilt.yaml
# The ablation: as many steps more of the same demonstrations as the first part's, none of them tilted.
"$mmsr1" sft configs/atlas-tilt.yaml name=atlas-untilted output=runs/atlas-untilted sft.options.tilt=0.0
.venv/bin/python -m megatron_mmsr1.atlas.pack runs/atlas-tilt/model "$target/tilted"
.venv/bin/python -m megatron_mmsr1.atlas.pack runs/atlas-untilted/model "$target/untilted"
