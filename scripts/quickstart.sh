#!/usr/bin/env bash
# From nothing to a model that has learned when to search, on a two-core machine. What is there already is used again.
#
#   ./scripts/quickstart.sh                      build the world, train, evaluate, export, report
#   ./scripts/quickstart.sh --from-scratch       make the cold-started model too, instead of taking the one that ships
#   ./scripts/quickstart.sh train.steps=40       any key=value goes on to `mmsr1 train`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

from_scratch=no overrides=()
for argument in "$@"; do
  case "$argument" in
    --from-scratch) from_scratch=yes ;;
    *=*) overrides+=("$argument") ;;
    *) printf 'usage: scripts/quickstart.sh [--from-scratch] [key=value ...]\n' >&2; exit 2 ;;
  esac
done

step() { printf '\n== %s\n' "$*" >&2; }

step "1/5 environment"
venv="$(./scripts/env.sh)"
export PATH="$venv/bin:$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

world=build/atlas run=runs/atlas settings=(configs/atlas.yaml)
step "2/5 the Atlas world ($world)"
if [[ -f $world/world.json ]]; then
  echo "there already" >&2
else
  mmsr1 atlas build "$world"
fi

step "3/5 the cold start: how to use the tools"
if [[ $from_scratch == no ]]; then
  echo "taking the model that ships with the package; --from-scratch makes it here, in about 20 minutes" >&2
else
  ./scripts/cold_start.sh
  run=runs/atlas-from-scratch
  settings+=(model.path=runs/atlas-tilt/model "output=$run")
fi
settings+=("${overrides[@]}")
for override in "${overrides[@]}"; do
  if [[ $override == output=* ]]; then run="${override#output=}"; fi
done

step "4/5 GRPO: when to search ($run)"
if [[ -f $run/model/config.json && -f $run/eval/after.json && ${#overrides[@]} == 0 ]]; then
  echo "trained already; remove $run to train again" >&2
else
  mmsr1 train "${settings[@]}"
fi
if [[ ! -f $run/eval/policies.json ]]; then
  mmsr1 eval "${settings[@]}" --policies
fi

step "5/5 the report"
report="$(mmsr1 report "$run")"
cat >&2 <<END

Done. Open $report in a browser: what it could do before and after, its curves, and ten conversations.
The trained model, as a Hugging Face checkpoint: $run/model

Next:
  mmsr1 atlas inspect $world          look at the world it was asked about
  mmsr1 train configs/atlas.yaml output=runs/no-penalty reward.search_penalty=0      see what a free search teaches
  tensorboard --logdir runs           every number, step by step
  configs/qwen2.5-vl-7b-fvqa.yaml     the same loop for a real model and real questions, on GPUs
  mmsr1 --help                        every verb
END
