r"""Predicts what a generator's training step takes on machines that are not here: memory, FLOPs, traffic, time.

    eqjax plan --config=configs/imagenet_generator.py:size=L --num_chips=256 --mesh=data:16,fsdp:16 --chips=H100,v5p

The command compiles the real step, from latents, for as many virtual CPU devices, and allocates no array. The
partitioning is that of the real machine. Activation memory and the choice of collectives are the CPU compiler's,
which widens bfloat16 and writes a reduce-scatter as an all-reduce, so both are upper estimates. If the step reads
images instead of cached latents (data.source), the encoder's parameters count as memory and --encoder_gflop per
image is added to the compute time; the encoder's activations are left out.
"""

import dataclasses
import os

from absl import app, flags
import jax
from ml_collections import config_flags

from eqjax.cli import runner
from eqjax.io import write_json
from eqjax.perf import step_plan
from eqjax.perf.chips import find_chip

_CONFIG = config_flags.DEFINE_config_file("config", None, "A generator's config file, with a variant after a colon.")
_NUM_CHIPS = flags.DEFINE_integer("num_chips", 8, "Number of devices.", lower_bound=1)
_CHIPS = flags.DEFINE_list("chips", ["H100", "v5e", "v5p"], "Chips to estimate for, by their names in perf/chips.py.")
_MESH = flags.DEFINE_string("mesh", None, "Mesh of the devices; default: that of the config.")
_NUM_COLUMNS = flags.DEFINE_integer("num_columns", 16, "Columns of a training image.", lower_bound=1)
_ENCODER = flags.DEFINE_float(
    "encoder_gflop", 0.0, "GFLOP per image of an encoder in the step (154 for the published one)."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the plan and the estimates to.")


def use_virtual_devices(count: int) -> None:
    """Makes JAX run on `count` virtual CPU devices; call it before anything uses a device."""
    flag = "--xla_force_host_platform_device_count"
    kept = [item for item in os.environ.get("XLA_FLAGS", "").split() if not item.startswith(flag)]
    # Nothing runs, so time spent on optimizing the CPU program would be lost.
    os.environ["XLA_FLAGS"] = " ".join([*kept, "--xla_backend_optimization_level=0"])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def main(argv: list[str]) -> None:
    """Plans, prints the tables, writes JSON."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; give all as --name=value")
    config = _CONFIG.value
    if _MESH.value is not None:
        config.mesh = _MESH.value
    try:
        for name in _CHIPS.value:
            find_chip(name)  # An unknown name fails here, before minutes of compiling.
        use_virtual_devices(_NUM_CHIPS.value)
        plan = step_plan.plan_step(config, _NUM_CHIPS.value, _NUM_COLUMNS.value)
        estimates = [step_plan.estimate(plan, name, _ENCODER.value * 1e9) for name in _CHIPS.value]
    except ValueError as error:
        raise SystemExit(f"eqjax plan: {error}") from error
    print(step_plan.format_plan(plan, estimates))
    if _OUTPUT.value:
        write_json(_OUTPUT.value, dataclasses.asdict(plan) | {"estimates": list(map(dataclasses.asdict, estimates))})


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=runner.parse_flags)
