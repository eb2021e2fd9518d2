#!/usr/bin/env bash
# Starts a command on several GPU machines without a scheduler, through ssh; one process per GPU.
#
#   HOSTS="gpu1 gpu2" GPUS=8 launch/gpu_nodes.sh FOLDER eqjax train-generator --config=… --workdir=/shared/runs/large
#   DRY_RUN=1 HOSTS=… launch/gpu_nodes.sh …  prints the commands instead
#
# FOLDER is the clone on all machines, whose environment `make demo EXTRA=cuda12` made; all machines must see the
# workdir. The first host is the coordinator. SIGTERM and SIGINT go to all processes, which save and end with code 75.
# The script ends when all have ended, with the first exit code that is not 0; when one process fails, JAX's heartbeats
# end the others.
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

# Nothing is ever written to this pipe. Its read end is the input of all machines; it closes when this script is told
# to stop, dies, or loses the connection. The machines then stop their processes, whose output still arrives.
temporary=$(mktemp -d)
mkfifo "$temporary/pipe"
exec 9<>"$temporary/pipe" 8<"$temporary/pipe"
rm -r "$temporary"
trap 'exec 9>&-' INT TERM HUP

pids=()
for node in "${!hosts[@]}"; do
    # One shell per machine; it starts a process per GPU, stops them when its input ends, and ends when all have.
    remote="cd $(printf '%q' "$folder"); export PATH=\$PWD/.venv/bin:\$PATH NUM_PROCESSES=$total LOCAL_WORLD_SIZE=$gpus"
    remote+=" COORDINATOR_ADDRESS=${hosts[0]}:${PORT:-29500};"
    remote+=" exec 3<&0; for gpu in \$(seq 0 $((gpus - 1))); do"
    remote+=" CUDA_VISIBLE_DEVICES=\$gpu PROCESS_ID=\$(($node * $gpus + gpu)) $arguments 3<&- & pids=\"\$pids \$!\"; done;"
    remote+=" { while read -r _ <&3; do :; done; kill \$pids; } >/dev/null 2>&1 & watcher=\$!; trap 'kill \$pids' TERM HUP;"
    # Waits for each process by its id: `wait -n` misses processes that ended before its call. A signal interrupts `wait`.
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
