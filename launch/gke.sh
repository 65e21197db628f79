#!/usr/bin/env bash
# The same on Google Kubernetes Engine, through XPK (pip install xpk): https://github.com/AI-Hypercomputer/xpk
#
#   launch/gke.sh cluster  --cluster=C --zone=Z --project=P --type=v6e-8 [--slices=1] [--spot]    a cluster with node pools for slices
#   launch/gke.sh image    --image=REGION-docker.pkg.dev/P/R/srlhfv:TAG                         this checkout as a container image
#   launch/gke.sh run      --cluster=C --zone=Z --project=P --type=T --name=N --image=I [--restarts=5] -- srlhfv ppo_lag ...
#   launch/gke.sh list     --cluster=C --zone=Z --project=P                                       what is queued and running
#   launch/gke.sh stop     --cluster=C --zone=Z --project=P --name=N
#   launch/gke.sh delete   --cluster=C --zone=Z --project=P                                       the cluster and all in it
#
# --dry-run prints the commands and runs none. A workload that was preempted is restarted by Kubernetes and goes on from its checkpoint.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT

fail() {
  echo "gke.sh: $1" >&2
  exit 2
}

cluster="" zone="" project="" type="" name="" image="" slices=1 restarts=5 spot="" dry=""
command=()

parse() {
  while (($#)); do
    case $1 in
      --cluster=*) cluster=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --name=*) name=${1#*=} ;;
      --image=*) image=${1#*=} ;;
      --slices=*) slices=${1#*=} ;;
      --restarts=*) restarts=${1#*=} ;;
      --spot) spot=yes ;;
      --dry-run) dry=yes ;;
      --)
        shift
        command=("$@")
        return
        ;;
      *) fail "unknown option $1: see the head of this file" ;;
    esac
    shift
  done
}

require() {
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || fail "--$option=... is missing"
  done
}

do_it() {
  if [[ -n $dry ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

cluster() {
  require cluster zone project type
  local capacity=--on-demand
  [[ -z $spot ]] || capacity=--spot
  do_it xpk cluster create "--cluster=$cluster" "--zone=$zone" "--project=$project" "--tpu-type=$type" "--num-slices=$slices" "$capacity"
}

image() {
  require image
  do_it docker build --tag "$image" --file "$ROOT/launch/Dockerfile" "$ROOT"
  do_it docker push "$image"
}

run() {
  require cluster zone project type name image
  ((${#command[@]})) || fail "give the command after --"
  local quoted
  quoted=$(printf '%q ' "${command[@]}")
  do_it xpk workload create "--cluster=$cluster" "--zone=$zone" "--project=$project" "--tpu-type=$type" "--num-slices=$slices" \
    "--workload=$name" "--docker-image=$image" "--max-restarts=$restarts" "--command=SRLHFV_DISTRIBUTED=1 $quoted"
}

list() {
  require cluster zone project
  do_it xpk workload list "--cluster=$cluster" "--zone=$zone" "--project=$project"
}

stop() {
  require cluster zone project name
  do_it xpk workload delete "--cluster=$cluster" "--zone=$zone" "--project=$project" "--workload=$name"
}

delete() {
  require cluster zone project
  do_it xpk cluster delete "--cluster=$cluster" "--zone=$zone" "--project=$project"
}

action=${1-}
case $action in
  cluster | image | run | list | stop | delete)
    shift
    parse "$@"
    "$action"
    ;;
  *) fail "expected cluster, image, run, list, stop or delete, got '$action': see the head of this file" ;;
esac
