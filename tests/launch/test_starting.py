"""Starting commands: numbers of processes, exit codes, the local starter, the cluster scripts with fake programs."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from eqjax.cli import processes, runner
from eqjax.cli.main import COMMANDS
from launch import local
from tests import subprocesses

ROOT = pathlib.Path(__file__).parents[2]
# In front of the name of a module of the tests.
PYTHON = (sys.executable, "-m")
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


def test_processes_are_numbered_by_our_variables_or_those_of_torchrun():
    ours = dict(COORDINATOR_ADDRESS="node0:1234", NUM_PROCESSES="4", PROCESS_ID="3")
    expected = dict(coordinator_address="node0:1234", num_processes=4, process_id=3)
    assert processes.distributed_arguments(ours) == expected
    torchrun = dict(MASTER_ADDR="node0", MASTER_PORT="1234", WORLD_SIZE="4", RANK="3")
    # The port itself is taken by torchrun's agent.
    assert processes.distributed_arguments(torchrun) == {**expected, "coordinator_address": "node0:1235"}
    local = processes.distributed_arguments(dict(torchrun, LOCAL_WORLD_SIZE="4", LOCAL_RANK="3"))
    assert local is not None and local["local_device_ids"] == [3]
    alone = processes.distributed_arguments(dict(torchrun, LOCAL_WORLD_SIZE="1", LOCAL_RANK="0"))
    assert alone is not None and alone.keys() == expected.keys()
    assert processes.distributed_arguments({}) is None
    assert processes.distributed_arguments(dict(ours, NUM_PROCESSES="1", PROCESS_ID="0")) is None
    assert processes.distributed_arguments(dict(EQJAX_DISTRIBUTED="auto")) == {}
    with pytest.raises(ValueError, match="COORDINATOR_ADDRESS is not set, but the others of .* are"):
        processes.distributed_arguments(dict(NUM_PROCESSES="2", PROCESS_ID="0"))
    with pytest.raises(ValueError, match="PROCESS_ID=4 must be a number below NUM_PROCESSES=4"):
        processes.distributed_arguments(dict(ours, PROCESS_ID="4"))


def test_process_numbers_without_a_coordinator():
    assert processes.process_numbers(dict(NUM_PROCESSES="4", PROCESS_ID="3")) == (3, 4)
    assert processes.process_numbers(dict(WORLD_SIZE="2", RANK="1", MASTER_ADDR="node0")) == (1, 2)
    assert processes.process_numbers({}) == (0, 1)
    assert processes.process_numbers(dict(EQJAX_DISTRIBUTED="auto")) is None
    with pytest.raises(ValueError, match="PROCESS_ID is not set, but NUM_PROCESSES is; set both"):
        processes.process_numbers(dict(NUM_PROCESSES="2"))
    with pytest.raises(ValueError, match="WORLD_SIZE is not set, but RANK is"):
        processes.process_numbers(dict(RANK="0"))


def test_gpus_are_divided_among_the_processes():
    found = local.environments(2, 4, 99)
    assert [names["CUDA_VISIBLE_DEVICES"] for names in found] == ["0,1", "2,3"]
    assert [(names["PROCESS_ID"], names["COORDINATOR_ADDRESS"]) for names in found] == [
        ("0", "localhost:99"),
        ("1", "localhost:99"),
    ]
    with pytest.raises(ValueError, match="--num_gpus=3 do not divide among --num_processes=2"):
        local.environments(2, 3, 99)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_starter_trains_with_two_processes_until_told_to_stop(tmp_path, number):
    run, options = tmp_path / "run", dict(total_steps=4000, mesh="data:2", delay=0.01, checkpoint_every=100_000)
    process = subprocesses.start("launch.local", "--", *PYTHON, "tests.training.toy_trainer", run, json.dumps(options))
    subprocesses.wait_for_step(run, 2, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == runner.EXIT_PREEMPTED, output[-3000:]
    (saved,) = (int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, saved + 1))  # One process writes.


@pytest.mark.parametrize("code", [0, 75])
def test_local_starter_waits_for_processes_that_save(code):
    script = f"import os, sys, time; time.sleep(int(os.environ['PROCESS_ID']) / 2); print('saved'); sys.exit({code})"
    done = local_run("--grace=0.1", "--", sys.executable, "-c", script)
    assert (done.returncode, done.stdout) == (code, "saved\n" * 2), done.stderr


def test_local_starter_stops_the_others_when_one_fails():
    script = "import os, sys, time; sys.exit(3) if os.environ['PROCESS_ID'] == '1' else time.sleep(60)"
    code = local_run("--grace=0.2", "--", sys.executable, "-c", script)
    assert code.returncode == 3, code.stderr


def local_run(*arguments):
    full = [sys.executable, "-m", "launch.local", *arguments]
    return subprocess.run(full, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def test_local_starter_prints_its_commands_on_a_dry_run():
    out = local_run("--dry_run", "--num_processes=2", "--port=7", "--", "eqjax", "train-generator").stdout
    expected = "COORDINATOR_ADDRESS=localhost:7 NUM_PROCESSES=2 PROCESS_ID=1 LOCAL_WORLD_SIZE=2 eqjax train-generator"
    assert out.splitlines()[1] == expected
    assert local_run("--dry_run").returncode == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


def dry(script, *arguments, **variables):
    environment = {**os.environ, "DRY_RUN": "1", **variables}
    return subprocess.run(
        [ROOT / "launch" / script, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_scripts_print_their_commands_on_a_dry_run():
    command = ("eqjax", "train-generator", "--config=a b")
    out = dry("slurm.sh", *command, SLURM_SUBMIT_DIR=str(ROOT)).stdout
    assert "COORDINATOR_ADDRESS=localhost:29500 srun" in out and r"eqjax train-generator --config=a\ b" in out
    out = dry("tpu_pod.sh", "pod", "zone", "/home/me/eqjax", *command).stdout
    assert "gcloud compute tpus tpu-vm ssh pod --zone=zone --worker=all" in out and "EQJAX_DISTRIBUTED=auto" in out
    out = dry("gpu_nodes.sh", "/eqjax", *command, HOSTS="first second", GPUS="4").stdout.splitlines()
    assert [line.split()[1] for line in out] == ["first", "second"]
    assert all("COORDINATOR_ADDRESS=first:29500" in line and "NUM_PROCESSES=8" in line for line in out)
    assert all("LOCAL_WORLD_SIZE=4" in line for line in out)
    assert dry("tpu_pod.sh", "pod").returncode == 2 and dry("gpu_nodes.sh", "/eqjax").returncode == 2


def program(path, text):
    """A shell program in the place of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_a_machine_script_numbers_its_processes(tmp_path):
    """What ssh would run on the second machine, run here with a fake interpreter."""
    program(
        tmp_path / ".venv" / "bin" / "python",
        'echo "$PROCESS_ID of $NUM_PROCESSES on $CUDA_VISIBLE_DEVICES: $*"\n[ "$PROCESS_ID" != 3 ]',
    )
    program(tmp_path / "ssh", '[ "$2" = second ] || exit 0\nexec bash -c "$3"')
    environment = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}", HOSTS="first second", GPUS="2")
    done = subprocess.run(
        [ROOT / "launch" / "gpu_nodes.sh", tmp_path, "python", "-m", "x", "--y=a b"],
        env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert set(done.stdout.splitlines()) == {"2 of 4 on 0: -m x --y=a b", "3 of 4 on 1: -m x --y=a b"}, done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_machines_are_told_to_stop_and_waited_for(stop, tmp_path):
    """Also when the script that started them is killed."""
    save = 'trap "sleep 0.3; echo saved $PROCESS_ID; exit 75" TERM\necho ready\nfor _ in {1..200}; do sleep 0.05; done'
    program(tmp_path / ".venv" / "bin" / "python", save)
    program(tmp_path / "ssh", 'exec bash -c "$3"')
    environment = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}", HOSTS="first second", GPUS="2")
    script = [ROOT / "launch" / "gpu_nodes.sh", tmp_path, "python", "-m", "x"]
    # A shell cannot catch what is ignored when it starts, as Ctrl-C is in programs that run in the background.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=heed)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(4)] == ["ready\n"] * 4
    process.send_signal(stop)
    assert sorted(process.stdout.read().split("\n")) == ["", *(f"saved {i}" for i in range(4))]
    assert process.wait(timeout=60) == (75 if stop != signal.SIGKILL else -signal.SIGKILL)


def test_a_preempted_job_goes_back_into_the_queue(tmp_path):
    """With a srun that, as the real one, returns the highest code, and ends the others at the first where told so."""
    srun = """
        while [[ $1 == --* ]]; do [ "$1" != --kill-on-bad-exit=1 ] || strict=1; shift; done
        for i in 0 1; do SLURM_NTASKS=2 SLURM_PROCID=$i "$@" & pids+=($!); done
        for i in 0 1; do
            wait -n; code=$?; highest=$((code > highest ? code : highest))
            [ -z "$strict" ] || [ $code = 0 ] || kill "${pids[@]}"
        done
        exit $highest"""
    program(tmp_path / "srun", srun)
    program(tmp_path / "scontrol", '[ "$1" != requeue ] || echo again $2')
    program(tmp_path / "python", 'sleep 0.$((PROCESS_ID * 3 + 2)); exit "$1"')
    variables = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="12", DRY_RUN="")
    for code in (75, 1):
        done = dry("slurm.sh", "python", str(code), SLURM_SUBMIT_DIR=str(tmp_path), **variables)
        assert done.returncode == code and ("again 12" in done.stdout) == (code == 75), done.stderr


def test_tasks_of_slurm_see_all_gpus_of_their_node_and_take_their_own(tmp_path):
    numbers = "SLURM_NTASKS=8 SLURM_PROCID=5 SLURM_NTASKS_PER_NODE=4 SLURM_LOCALID=1"
    program(tmp_path / "srun", f'while [[ $1 == --* ]]; do shift; done; {numbers} "$@"')
    program(tmp_path / "scontrol", "")
    program(tmp_path / "python", "env")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = dry("slurm.sh", "python", SLURM_SUBMIT_DIR=str(tmp_path), PATH=path, DRY_RUN="")
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    arguments = processes.distributed_arguments(variables)
    assert arguments is not None and arguments["local_device_ids"] == [1], done.stderr
    assert (arguments["process_id"], arguments["num_processes"]) == (5, 8)
    asked = [line for line in (ROOT / "launch" / "slurm.sh").read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --gpus-per-node=8" in asked and not any("per-task=" in line and "gpus" in line for line in asked)


def test_every_command_has_a_script_of_the_same_name():
    scripts = {path.stem for path in (ROOT / "launch").glob("*.py")} - {"local", "study_sampling", "study_shortcuts"}
    assert scripts == {command.module for command in COMMANDS.values()}
    done = subprocess.run(
        [sys.executable, "-m", "launch.train_generator", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: eqjax train-generator ")
