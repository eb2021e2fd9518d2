#!/usr/bin/env bash
# Several GPU nodes under SLURM, one process per GPU; requeues itself when it is preempted.
#
#   sbatch --nodes=4 launch/slurm.sh -m eqjax.cli.train_generator --config=configs/imagenet_generator.py --workdir=runs/large
#   DRY_RUN=1 launch/slurm.sh …    prints the command and ends
#
#SBATCH --job-name=eqjax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM goes to the processes two minutes before the time is up: they save and end with code 75.
#SBATCH --signal=TERM@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

PYTHON=${PYTHON:-.venv/bin/python}
first_node=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" 2>/dev/null | head -n 1)
export COORDINATOR_ADDRESS="${first_node:-localhost}:${PORT:-29500}"

# Each task learns its number from SLURM.
# shellcheck disable=SC2016
task='export NUM_PROCESSES=$SLURM_NTASKS PROCESS_ID=$SLURM_PROCID; exec "$@"'
# srun waits for all tasks, and returns their highest code: 75 where all have saved. It must not end the others when
# the first is ready; when one fails, JAX's heartbeats end them.
command=(srun --kill-on-bad-exit=0 --wait=0 bash -c "$task" eqjax "$PYTHON" "$@")

if [ -n "${DRY_RUN:-}" ]; then
    printf 'COORDINATOR_ADDRESS=%s' "$COORDINATOR_ADDRESS"
    printf ' %q' "${command[@]}"
    printf '\n'
    exit 0
fi
trap : TERM # A signal to the whole job reaches this shell too, which still has to ask for the queue.
"${command[@]}"
code=$?
if [ "$code" -eq 75 ]; then
    echo "Preempted and saved; back into the queue."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
