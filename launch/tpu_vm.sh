#!/usr/bin/env bash
# One Cloud TPU slice from request to deletion: the same command on all of its workers, and again after a preemption.
#
#   launch/tpu_vm.sh create --name=N --zone=Z --type=v6e-8 [--spot]     ask for a slice, wait until it is there
#   launch/tpu_vm.sh setup  --name=N --zone=Z [--bucket=B]              copy this checkout to every worker, install it
#   launch/tpu_vm.sh run    --name=N --zone=Z -- srlhfv ppo_lag ...     start the command on every worker, in the background
#   launch/tpu_vm.sh logs   --name=N --zone=Z                           follow what worker 0 says
#   launch/tpu_vm.sh status --name=N --zone=Z                           state of the slice, and of the command
#   launch/tpu_vm.sh watch  --name=N --zone=Z --type=T [--spot] [--bucket=B] -- srlhfv ppo_lag ...
#                           create, setup, run; after a preemption all of it again, until the command has ended well
#   launch/tpu_vm.sh delete --name=N --zone=Z                           give the slice back
#
# --project=P     another project than gcloud's default          --dry-run   print the gcloud commands, run none
# --version=V     another runtime than the type's                --valid-for=6h   how long a request may wait
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly LOG=srlhfv-run.log # in the home of each worker
readonly RUNS=/mnt/runs     # where the bucket is mounted
readonly POLL_SECONDS=30
readonly UV=0.13.9 PYTHON=3.12

options=(name zone type version project bucket valid-for)
switches=(spot)
actions=(create setup run logs status watch delete)
name="" zone="" type="" version="" project="" bucket="" spot="" valid_for=6h

tpus() {
  local full=(gcloud compute tpus "$@" "--zone=$zone")
  [[ -z $project ]] || full+=("--project=$project")
  do_it "${full[@]}"
}

on_all() { tpus tpu-vm ssh "$name" --worker=all "--command=$1"; }

runtime() { # the software version of a type: https://cloud.google.com/tpu/docs/runtimes
  case $type in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "no runtime is known for the type $type (v4-N, v5litepod-N, v5p-N, v6e-N): give --version (TPU7x is only on GKE: gke.sh)" ;;
  esac
}

state() { tpus queued-resources describe "$name" "--format=value(state.state)"; }

create() {
  require name zone type
  [[ -n $version ]] || version=$(runtime)
  local wanted=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$version" "--valid-until-duration=$valid_for")
  [[ -z $spot ]] || wanted+=(--spot)
  tpus queued-resources create "$name" "${wanted[@]}"
  [[ -z $dry_run ]] || return 0
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED | SUSPENDING) fail "the request $name is $now: look with 'gcloud compute tpus queued-resources describe $name'" ;;
    esac
    echo "$(date +%H:%M:%S) $name: $now"
    sleep "$POLL_SECONDS"
  done
}

setup() {
  require name zone
  local packed
  packed=$(mktemp --suffix=.tar.gz)
  [[ -n $dry_run ]] || git -C "$ROOT" archive --format=tar.gz --output="$packed" HEAD
  tpus tpu-vm scp "$packed" "$name:srlhfv.tar.gz" --worker=all
  # The images have Python 3.10; uv brings the one that the newest jax wants.
  on_all "rm -rf srlhfv && mkdir srlhfv && tar -xzf srlhfv.tar.gz -C srlhfv && curl -LsSf https://astral.sh/uv/$UV/install.sh | sh && ~/.local/bin/uv venv -q --clear --python $PYTHON ~/venv && ~/.local/bin/uv pip install -q --python ~/venv/bin/python -c srlhfv/constraints.txt -e 'srlhfv[tpu]'"
  if [[ -n $bucket ]]; then
    on_all "sudo mkdir -p $RUNS && (mountpoint -q $RUNS || (sudo chown \"\$(id -u)\" $RUNS && gcsfuse --implicit-dirs --rename-dir-limit=100000 ${bucket#gs://} $RUNS))"
  fi
  rm -f "$packed"
}

run() {
  require name zone
  local quoted
  quoted=$(quoted_command)
  # Where a bucket is mounted, what one worker compiled is there for all, and after a preemption.
  on_all "if mountpoint -q $RUNS; then export JAX_COMPILATION_CACHE_DIR=$RUNS/compiled; fi; cd srlhfv && PATH=\$HOME/venv/bin:\$PATH SRLHFV_DISTRIBUTED=1 nohup bash -c '${quoted//\'/\'\\\'\'}; echo exit \$?' > ~/$LOG 2>&1 < /dev/null &"
}

logs() {
  require name zone
  tpus tpu-vm ssh "$name" --worker=0 "--command=tail -n 100 -f $LOG"
}

status() {
  require name zone
  state
  on_all "tail -n 1 $LOG"
}

delete() {
  require name zone
  tpus queued-resources delete "$name" --force --quiet
}

watch() {
  require name zone type
  while true; do
    create
    setup
    run
    [[ -z $dry_run ]] || return 0
    local last=""
    while [[ $(state) == ACTIVE && $last != exit* ]]; do
      sleep "$POLL_SECONDS"
      last=$(tpus tpu-vm ssh "$name" --worker=0 "--command=tail -n 1 $LOG" || true)
    done
    case $last in
      "exit 0") return 0 ;;
      "exit 143") echo "$name: preempted, the run is saved" ;;
      exit*) fail "the command ended with ${last#exit }: see launch/tpu_vm.sh logs" ;;
      *) echo "$name: $(state)" ;;
    esac
    delete
  done
}

dispatch "$@"
