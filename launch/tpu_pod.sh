#!/usr/bin/env bash
# A TPU pod slice: the same command on every host of it, through gcloud.
#
#   launch/tpu_pod.sh NAME ZONE FOLDER -m eqjax.cli.train_generator --config=… --workdir=/mnt/shared/runs/large
#   DRY_RUN=1 launch/tpu_pod.sh …  prints the command and ends
#
# FOLDER is the clone on the hosts, with its environment made by `make demo EXTRA=tpu`; the workdir must be a
# folder that all hosts see. A preempted slice is made anew by you; the same command then continues the run.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 NAME ZONE FOLDER COMMAND…" >&2
    exit 2
fi
name=$1 zone=$2 folder=$3
shift 3

remote="cd $(printf '%q' "$folder") && EQJAX_DISTRIBUTED=auto .venv/bin/python$(printf ' %q' "$@")"
command=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$remote")
if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    printf '\n'
    exit 0
fi
exec "${command[@]}"
