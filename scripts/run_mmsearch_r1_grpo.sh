#!/usr/bin/env bash
# MMSearch-R1's job by one command, under the names of its own script's settings (scripts/seed_tables.py maps them to ours):
#
#   TRAIN_DATA_PATH=fvqa_train.parquet VAL_DATA_PATH=fvqa_test.parquet ./scripts/run_mmsearch_r1_grpo.sh \
#     actor_rollout_ref.model.path=models/Qwen2.5-VL-7B-Instruct trainer.total_epochs=5
#   ./scripts/run_mmsearch_r1_grpo.sh ... --dry-run                    prints the command of ours instead of running it
#   ./scripts/run_mmsearch_r1_grpo.sh ... -- search.corpus=my-corpus   what follows -- are settings of ours
#
# What is not given is as in that script. WANDB_PROJECT_NAME and WANDB_EXP_NAME are taken too. Paths begin in this repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="$(./scripts/env.sh)"
export PATH="$venv/bin:$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

exec python scripts/seed_settings.py mmsearch-r1 \
  ${TRAIN_DATA_PATH:+data.train_files="$TRAIN_DATA_PATH"} ${VAL_DATA_PATH:+data.val_files="$VAL_DATA_PATH"} \
  ${WANDB_PROJECT_NAME:+trainer.project_name="$WANDB_PROJECT_NAME"} \
  ${WANDB_EXP_NAME:+trainer.experiment_name="$WANDB_EXP_NAME"} "$@"
