#!/usr/bin/env bash
# Several GPU machines without a scheduler, reached by ssh; one process per GPU.
#
#   HOSTS="gpu1 gpu2" GPUS=8 launch/gpu_nodes.sh FOLDER -m launch.train_generator --config=… --workdir=/shared/runs/large
#   DRY_RUN=1 HOSTS=… launch/gpu_nodes.sh …  prints the commands and ends
#
# FOLDER is the clone on all machines (make demo EXTRA=cuda12), the workdir a folder that all of them see. The
# first host is the coordinator. Ends with the first exit code that is not 0; JAX ends the processes that lost one of theirs.
set -euo pipefail
if [ $# -lt 2 ] || [ -z "${HOSTS:-}" ]; then
    echo "usage: HOSTS=\"a b\" [GPUS=8] [PORT=29500] $0 FOLDER COMMAND…" >&2
    exit 2
fi
folder=$1
shift
read -r -a hosts <<<"$HOSTS"
gpus=${GPUS:-8}
total=$((${#hosts[@]} * gpus))
arguments=$(printf ' %q' "$@")

pids=()
trap '[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true' EXIT INT TERM
for node in "${!hosts[@]}"; do
    # One shell per machine; it starts a process per GPU, hands SIGTERM on, and ends when all have: JAX's own
    # heartbeats end the others when one fails.
    remote="cd $(printf '%q' "$folder"); export COORDINATOR_ADDRESS=${hosts[0]}:${PORT:-29500} NUM_PROCESSES=$total;"
    remote+=" trap 'kill \$(jobs -p)' TERM HUP;"
    remote+=" for gpu in \$(seq 0 $((gpus - 1))); do"
    remote+=" CUDA_VISIBLE_DEVICES=\$gpu PROCESS_ID=\$(($node * $gpus + gpu)) .venv/bin/python$arguments & pids=\"\$pids \$!\"; done;"
    # In turn, by number: `wait -n` forgets those that ended before it was called.
    remote+=" code=0; for pid in \$pids; do wait \$pid || code=\${code/#0/\$?}; done; exit \$code"
    if [ -n "${DRY_RUN:-}" ]; then
        printf 'ssh %s %q\n' "${hosts[$node]}" "$remote"
        continue
    fi
    ssh -tt "${hosts[$node]}" "$remote" </dev/null &
    pids+=($!)
done

code=0
for pid in "${pids[@]}"; do
    wait "$pid" || { code=$?; break; }
done
exit "$code"
