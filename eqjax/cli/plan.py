r"""What a generator's training step will take on machines that are not here: memory, FLOPs, traffic, time.

    python -m eqjax.cli.plan --config=configs/imagenet_generator.py:size=L --chips=256 --mesh=data:16,fsdp:16

Compiles the real step, latents in, for as many virtual CPU devices, without allocating any array: the
partitioning is the one of the real machine, while memory for intermediate values and the choice of
collectives are the CPU compiler's (bfloat16 is widened there, and a reduce-scatter appears as an
all-reduce), so both are rather too high. Where images are read and not latents (data.source), the encoder's
parameters count as memory, and --encoder_gflop per image is added to the compute time; its intermediate
values are left out.
"""

import json
import os
import sys

from absl import app, flags
from ml_collections import config_flags

from eqjax.cli import runner
from eqjax.perf import step_plan

_CONFIG = config_flags.DEFINE_config_file("config", None, "A generator's configuration file.")
_CHIPS = flags.DEFINE_integer("chips", 8, "Devices.", lower_bound=1)
_MESH = flags.DEFINE_string("mesh", "", "Mesh of the devices; default: that of the configuration.")
_COLUMNS = flags.DEFINE_integer("columns", 16, "Columns of a training image.", lower_bound=1)
_KINDS = flags.DEFINE_list("on", ["H100", "v5e", "v5p"], "Chips to estimate for, see eqjax/perf/chips.py.")
_ENCODER = flags.DEFINE_float(
    "encoder_gflop", 0.0, "FLOPs per image of an encoder in the step, in 1e9 (154 as published)."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of text.")


def with_devices(count):
    """Starts this program again with `count` virtual devices, which must be set before JAX is used."""
    flag = f"--xla_force_host_platform_device_count={count}"
    if flag in os.environ.get("XLA_FLAGS", "").split():
        return
    kept = [f for f in os.environ.get("XLA_FLAGS", "").split() if "platform_device_count" not in f]
    # Nothing runs: an optimized program for a CPU would be compile time lost.
    optimisation = "--xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*kept, optimisation, flag]))
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.execv(sys.executable, [sys.executable, "-m", "eqjax.cli.plan", *sys.argv[1:]])


def _main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; all are given as --name=value")
    config = _CONFIG.value
    if _MESH.value:
        config.mesh = _MESH.value
    try:
        for kind in _KINDS.value:
            step_plan.find_chip(kind)  # Before minutes of compiling.
        with_devices(_CHIPS.value)
        plan = step_plan.analyze(config, _CHIPS.value, _COLUMNS.value)
        estimates = [step_plan.estimate(plan, kind, _ENCODER.value * 1e9) for kind in _KINDS.value]
    except ValueError as error:
        raise SystemExit(f"eqjax.cli.plan: {error}") from error
    if _JSON.value:
        print(json.dumps({**plan, "estimates": estimates}))
    else:
        print(step_plan.text(plan, estimates))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(_main, flags_parser=runner.parse_flags)
