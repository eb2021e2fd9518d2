#!/usr/bin/env bash
# Starts a command on several GPU nodes under SLURM, one process per GPU; requeues itself when it is preempted.
#
#   sbatch --nodes=4 launch/slurm.sh eqjax train-generator --config=imagenet_generator --workdir=runs/large
#   DRY_RUN=1 launch/slurm.sh …    prints the command instead
#
#SBATCH --job-name=eqjax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM goes to the processes two minutes before the time limit: they save and end with code 75.
#SBATCH --signal=TERM@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

export PATH="$PWD/.venv/bin:$PATH"
first_node=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" 2>/dev/null | head -n 1)
export COORDINATOR_ADDRESS="${first_node:-localhost}:${PORT:-29500}"

# Each task gets its number from SLURM, and takes the GPU of its number on the node. It sees the others, which GPUs
# need to send to each other directly: --gpus-per-task would hide them.
# shellcheck disable=SC2016
task='export NUM_PROCESSES=$SLURM_NTASKS PROCESS_ID=$SLURM_PROCID
export LOCAL_RANK=${SLURM_LOCALID:-0} LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-1}; exec "$@"'
# srun waits for all tasks and returns their highest code: 75 if all have saved. It must not end the others when the
# first has saved; when one fails, JAX's heartbeats end them.
command=(srun --kill-on-bad-exit=0 --wait=0 bash -c "$task" task "$@")

if [ -n "${DRY_RUN:-}" ]; then
    printf 'COORDINATOR_ADDRESS=%s' "$COORDINATOR_ADDRESS"
    printf ' %q' "${command[@]}"
    printf '\n'
    exit 0
fi
trap : TERM # A signal to the whole job reaches this shell too, which still has to requeue the job.
"${command[@]}"
code=$?
if [ "$code" -eq 75 ]; then
    echo "Preempted and saved; requeued."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
