#!/usr/bin/env bash
# open-r1-multimodal's GRPO by one command, under the names of its own flags (scripts/seed_tables.py maps them to ours):
#
#   ./scripts/run_open_r1_grpo.sh --model_name_or_path models/Qwen2-VL-2B-Instruct \
#     --dataset_name data/multimodal-open-r1-8k-verified --max_prompt_length 8192 --num_generations 8 --learning_rate 1e-6
#   ./scripts/run_open_r1_grpo.sh ... --dry-run                 prints the command of ours instead of running it
#   ./scripts/run_open_r1_grpo.sh ... -- train.save_interval=50 what follows -- are settings of ours
#
# torchrun's --nproc_per_node and --nnodes are taken too. What is not given is as in that project's script and TRL's defaults.
# Paths begin in this repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="$(./scripts/env.sh)"
export PATH="$venv/bin:$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

exec python scripts/seed_settings.py open-r1 "$@"
