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

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

options=(cluster zone project type name image slices restarts)
switches=(spot)
actions=(cluster image run list stop delete)
cluster="" zone="" project="" type="" name="" image="" slices=1 restarts=5 spot=""

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
  local quoted
  quoted=$(quoted_command)
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

dispatch "$@"
