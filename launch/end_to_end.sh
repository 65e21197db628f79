#!/usr/bin/env bash
# BeaverTails-V and LLaVA-1.5-7B from zero: every command of docs/from_zero.md, one after the other, on the machine it is started on.
#
#   launch/end_to_end.sh --model=M --pairs=D --workdir=W [--chip=v6e-8] [--budget=0.1]      eight v6e chips
#   launch/end_to_end.sh --model=M --pairs=D --workdir=W --chip=v5e-1 [--budget=0.1]        one v5e chip, the frozen decoder in int8
#   launch/end_to_end.sh --tiny --workdir=W                                                 a tiny random LLaVA and 64 rows, on a CPU
#
# --dry-run prints the commands and runs none. Stopped at any moment, the same command goes on: each stage goes on from its last
# checkpoint. M is a folder or a hub id, D the folder of the preference pairs, W any folder, on a slice one that all hosts see.
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

options=(model pairs workdir chip budget)
switches=(tiny)
model="" pairs="" workdir="" chip=v6e-8 budget=0.1 tiny=""
parse "$@"
require workdir
W=$workdir

# What differs between the three ways: the preset, places (mesh, adapters), parts of a step, lengths of a row, lengths of an answer.
preset=llava15_7b_adapters slice=v6e:2x4 taxonomy=beavertails_v
places=() supervised_parts=() ppo_parts=() rows=() answers=(--response_length=512 --batch_size=8 --dtype=bfloat16)
sft_steps=(--config.steps=932) scores_steps=(--config.steps=1864) # about one pass over the 29,824 pairs
if [[ -n $tiny ]]; then
  preset=tiny taxonomy=embedded pairs=$W/inputs/pairs model=$W/model/export
  places=(--config.lora.rank=4)
  rows=(--config.data.prompt_length=40 --config.data.response_length=24)
  sft_steps=() scores_steps=()
  answers=(--response_length=24 --batch_size=8)
elif [[ $chip == v5e-1 ]]; then
  slice=v5e:1x1
  places=(--config.mesh.tensor=1 --config.lora.int8=True)
  supervised_parts=(--config.microbatches=16)
  ppo_parts=(--config.microbatches=16 --config.rollout.microbatches=8 --config.rollout.score_microbatches=4)
  answers=(--response_length=512 --batch_size=1 --dtype=bfloat16)
elif [[ $chip != v6e-8 ]]; then
  fail "--chip must be v6e-8 or v5e-1, got $chip"
fi
require model pairs
trained=("${places[@]}" "${rows[@]}" "--config.data.path=$pairs")
held_out=(--split=evaluation)

step() { # TITLE COMMAND...
  echo "== $1"
  shift
  do_it "$@"
}

if [[ -n $tiny ]]; then
  step "inputs: a small LLaVA without weights, and pairs" python "$ROOT/launch/tiny_inputs.py" "$W/inputs"
  step "model: random weights, in place of a download" srlhfv sft --config=configs/sft.py:tiny "--workdir=$W/model" \
    "--config.init=$W/inputs/shape" --config.init_random=True --config.steps=1 "${rows[@]}" "--config.data.path=$pairs"
fi

step "1. rows: what is usable, what is dropped and why" srlhfv data inspect "--path=$pairs" --split=train "--model=$model" \
  --kind=pairs --prompt_length=1024 --response_length=512

if [[ -z $tiny ]]; then
  step "2. memory: does the largest stage fit?" srlhfv plan "--config=configs/ppo_lag.py:$preset" "--topology=$slice" \
    "--workdir=$W/plan" "--config.policy=$model" "${places[@]}" "${ppo_parts[@]}"
fi

step "3. sft: learn the more helpful answers" srlhfv sft "--config=configs/sft.py:$preset" "--workdir=$W/sft" \
  "--config.init=$model" "${sft_steps[@]}" "${trained[@]}" "${supervised_parts[@]}"

step "4. scores: a reward head and a cost head" srlhfv scores "--config=configs/scores.py:$preset" "--workdir=$W/scores" \
  "--config.init=$W/sft" "${scores_steps[@]}" "${trained[@]}" "${supervised_parts[@]}" "--config.evaluation=$pairs" --config.evaluation_split=evaluation

step "5. scores, measured: the budget is chosen from its mean costs" srlhfv evaluate "--workdir=$W/scores_measured" \
  "--scorer=$W/scores" "--pairs=$pairs" "${held_out[@]}" "${answers[@]}"

step "6. ppo_lag: more reward, cost under the budget" srlhfv ppo_lag "--config=configs/ppo_lag.py:$preset" "--workdir=$W/ppo_lag" \
  "--config.policy=$W/sft" "--config.scorer=$W/scores" --config.sharing=adapters "--config.constraint.budget=$budget" \
  "${trained[@]}" "${ppo_parts[@]}" "--config.validation.path=$pairs" --config.validation.split=evaluation

step "7. guard: severity and categories" srlhfv guard "--config=configs/guard.py:$preset" "--workdir=$W/guard" \
  "--config.init=$W/sft" "--config.taxonomy=$taxonomy" "${trained[@]}" "${supervised_parts[@]}" \
  "--config.calibration=$pairs" --config.calibration_split=evaluation

step "8. evaluation: three policies by the learned scores" srlhfv evaluate "--workdir=$W/evaluation" \
  "--policies=base=$model,sft=$W/sft,ppo_lag=$W/ppo_lag" "--data=$pairs" "${held_out[@]}" "--scorer=$W/scores" "${answers[@]}"

if [[ -n $tiny || $chip == v6e-8 ]]; then
  [[ -e $W/answers.jsonl ]] || step "9. answers under the guard" srlhfv generate "--policy=$W/ppo_lag" "--guard=$W/guard" --rounds=2 \
    "--data=$pairs" "--split=evaluation[:16]" "--out=$W/answers.jsonl" "${answers[@]}"
else
  echo "== 9. answers under the guard: left out, two 7B models in bfloat16 do not fit one v5e chip"
fi

step "10. report" srlhfv report "--workdir=$W/ppo_lag"
[[ -e $W/policy ]] || step "11. export: one folder for transformers, adapter merged" srlhfv export "--workdir=$W/ppo_lag" \
  "--out=$W/policy" --dtype=bfloat16
