#!/usr/bin/env bash
# Starts a command on every host of a TPU pod slice, through gcloud.
#
#   launch/tpu_pod.sh NAME ZONE FOLDER eqjax train-generator --config=… --workdir=/mnt/shared/runs/large
#   DRY_RUN=1 launch/tpu_pod.sh …  prints the command instead
#
# FOLDER is the clone on the hosts, whose environment `make demo EXTRA=tpu` made; all hosts must see the workdir. After
# a preemption, create the slice again; the same command then resumes the run.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 NAME ZONE FOLDER COMMAND…" >&2
    exit 2
fi
name=$1 zone=$2 folder=$3
shift 3

# shellcheck disable=SC2016
remote="cd $(printf '%q' "$folder") && export"' PATH=$PWD/.venv/bin:$PATH'" EQJAX_DISTRIBUTED=auto &&$(printf ' %q' "$@")"
command=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$remote")
if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    printf '\n'
    exit 0
fi
exec "${command[@]}"
