#!/usr/bin/env bash
# The same on Google Kubernetes Engine, through Cluster Toolkit, `gcluster` 1.103 or later:
# https://github.com/GoogleCloudPlatform/cluster-toolkit/blob/main/docs/gcluster_job_guide.md
#
#   launch/gke.sh cluster  --blueprint=FILE.yaml --deployment=FILE.yaml      a cluster with node pools for slices, as the files say
#   launch/gke.sh image    --image=REGION-docker.pkg.dev/P/R/srlhfv:TAG      this checkout as a container image
#   launch/gke.sh run      --cluster=C --zone=Z --project=P --type=v6e-8 --name=N --image=I [--bucket=B] [--slices=1] [--restarts=5]
#                          -- srlhfv ppo_lag ...                             a job on every host of the slices; B is at /mnt/runs
#   launch/gke.sh list     --cluster=C --zone=Z --project=P                  what is queued and running
#   launch/gke.sh logs     --cluster=C --zone=Z --project=P --name=N         follow what the job says
#   launch/gke.sh stop     --cluster=C --zone=Z --project=P --name=N
#   launch/gke.sh delete   --cluster=C                                       the cluster and all in it
#
# --dry-run prints the commands and runs none. Kubernetes starts a job again that ended early, and it goes on from its checkpoint. A
# preemption saves first (exit code 143) and is not counted among the restarts.
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly RUNS=/mnt/runs # where the bucket is mounted

options=(cluster zone project type name image bucket slices restarts blueprint deployment)
switches=()
actions=(cluster image run list logs stop delete)
cluster="" zone="" project="" type="" name="" image="" bucket="" slices=1 restarts=5 blueprint="" deployment=""

jobs() { # ACTION ARGUMENT...
  local action=$1
  shift
  require cluster zone project
  do_it gcluster job "$action" "$@" --cluster "$cluster" --location "$zone" --project "$project"
}

cluster() {
  require blueprint deployment
  do_it gcluster deploy -d "$deployment" "$blueprint"
}

image() {
  require image
  do_it docker build --tag "$image" --file "$ROOT/launch/Dockerfile" "$ROOT"
  do_it docker push "$image"
}

run() {
  require cluster zone project type name image
  local quoted more=()
  quoted=$(quoted_command)
  ((${#name} <= 28)) || fail "--name=$name has ${#name} characters: a job's name has at most 28"
  [[ -z $bucket ]] || more=(--mount "gs://${bucket#gs://};$RUNS;rw;options=implicit-dirs,rename-dir-limit=100000,uid=1000,gid=1000")
  jobs submit --name "$name" --image "$image" --compute-type "${type/#v5litepod-/v5e-}" --num-slices "$slices" "${more[@]}" \
    --env SRLHFV_DISTRIBUTED=1 --restarts "$restarts" --restart-on-exit-codes 143 --grace-period 5m --command "${quoted% }"
}

list() { jobs list; }

logs() {
  require name
  jobs logs "$name" --follow
}

stop() {
  require name
  jobs cancel "$name"
}

delete() {
  require cluster
  do_it gcluster destroy "$cluster"
}

dispatch "$@"
