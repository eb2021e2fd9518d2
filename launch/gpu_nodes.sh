#!/usr/bin/env bash
# Several GPU machines without a scheduler, reached by ssh; one process per GPU.
#
#   HOSTS="gpu1 gpu2" GPUS=8 launch/gpu_nodes.sh FOLDER -m eqjax.cli.train_generator --config=… --workdir=/shared/runs/large
#   DRY_RUN=1 HOSTS=… launch/gpu_nodes.sh …  prints the commands and ends
#
# FOLDER is the clone on all machines (make demo EXTRA=cuda12), the workdir a folder that all of them see. The
# first host is the coordinator. SIGTERM and SIGINT go to all processes: they save and end with code 75. Ends when all
# have, with the first exit code that is not 0; when one process fails, JAX's heartbeats end the others.
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

# Nothing is ever written here. All machines have its end as their input, which closes when this script is told to
# stop, dies, or loses the connection: their sign to stop the processes, while what these still say comes through.
temporary=$(mktemp -d)
mkfifo "$temporary/pipe"
exec 9<>"$temporary/pipe" 8<"$temporary/pipe"
rm -r "$temporary"
trap 'exec 9>&-' INT TERM HUP

pids=()
for node in "${!hosts[@]}"; do
    # One shell per machine; it starts a process per GPU, stops them when its input ends, and ends when all have.
    remote="cd $(printf '%q' "$folder"); export COORDINATOR_ADDRESS=${hosts[0]}:${PORT:-29500} NUM_PROCESSES=$total;"
    remote+=" exec 3<&0; for gpu in \$(seq 0 $((gpus - 1))); do"
    remote+=" CUDA_VISIBLE_DEVICES=\$gpu PROCESS_ID=\$(($node * $gpus + gpu)) .venv/bin/python$arguments 3<&- & pids=\"\$pids \$!\"; done;"
    remote+=" { while read -r _ <&3; do :; done; kill \$pids; } >/dev/null 2>&1 & watcher=\$!; trap 'kill \$pids' TERM HUP;"
    # In turn, by number: `wait -n` forgets those that ended before it was called. A signal interrupts `wait`.
    remote+=" code=0; for pid in \$pids; do while kill -0 \$pid 2>/dev/null; do wait \$pid; done;"
    remote+=" wait \$pid || code=\${code/#0/\$?}; done; kill \$watcher 2>/dev/null; exit \$code"
    if [ -n "${DRY_RUN:-}" ]; then
        printf 'ssh %s %q\n' "${hosts[$node]}" "$remote"
        continue
    fi
    ssh -T "${hosts[$node]}" "$remote" <&8 8<&- 9>&- &
    pids+=($!)
done

code=0
for pid in ${pids[@]+"${pids[@]}"}; do
    while kill -0 "$pid" 2>/dev/null; do
        wait "$pid" || true
    done
    wait "$pid" || code=${code/#0/$?}
done
exit "$code"
