r"""Estimates the cost of a generator's training step on other machines: memory, FLOPs, traffic and time.

    eqjax plan --config=imagenet_generator:size=L --num_chips=256 --mesh=data:16,fsdp:16 --chips=H100,v5p

The command compiles the real step, from latents, for as many virtual CPU devices, and allocates no array. The
partitioning is that of the real machine. Activation memory and the choice of collectives are the CPU compiler's,
which widens bfloat16 and writes a reduce-scatter as an all-reduce, so both are upper estimates. If the step reads
images instead of cached latents (data.source), the encoder's parameters count as memory and --encoder_gflop per
image is added to the compute time; the encoder's activations are left out.
"""

import dataclasses
import os

from absl import flags

from eqjax.cli import command_line
from eqjax.io import write_json
from eqjax.progress import announced


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with command_line.flag_group(values, "Step"):
        command_line.define_config(values, "Generator's configuration: a shipped name or a file, with :variant.")
        flags.DEFINE_integer("num_columns", 16, "Columns of a training image.", 1, flag_values=values)
        flags.DEFINE_float(
            "encoder_gflop", 0.0, "GFLOP per image of an encoder in the step (published: 154).", 0.0, flag_values=values
        )
    with command_line.flag_group(values, "Machine"):
        flags.DEFINE_integer("num_chips", 8, "Number of devices.", 1, flag_values=values)
        flags.DEFINE_string(
            "mesh", None, "Mesh of the devices; default: that of the configuration.", flag_values=values
        )
        flags.DEFINE_list(
            "chips", ["H100", "v5e", "v5p"], "Chips to estimate for: H100, H200, A100, v4, v5e, v5p, v6e.",
            flag_values=values,
        )  # fmt: skip
    with command_line.flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "JSON file to write the plan and the estimates to.", flag_values=values)


def use_virtual_devices(count: int) -> None:
    """Makes JAX run on `count` virtual CPU devices; call it before anything uses a device."""
    import jax

    flag = "--xla_force_host_platform_device_count"
    kept = [item for item in os.environ.get("XLA_FLAGS", "").split() if not item.startswith(flag)]
    # Nothing runs, so time spent on optimizing the CPU program would be lost.
    os.environ["XLA_FLAGS"] = " ".join([*kept, "--xla_backend_optimization_level=0"])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def run(args: flags.FlagValues) -> None:
    """Plans the step, prints the tables and writes JSON.

    Raises:
      ValueError: an unknown chip; a configuration, mesh or batch size that does not fit.
    """
    with announced("Loading the libraries", patience=2.0):
        from eqjax.perf import chips, step_plan

    for name in args.chips:
        chips.find_chip(name)  # An unknown name fails here, before minutes of compiling.
    config = args.config
    if args.mesh is not None:
        config.mesh = args.mesh
    use_virtual_devices(args.num_chips)
    with announced(f"Compiling the training step for {args.num_chips} devices; minutes for a large model"):
        plan = step_plan.plan_step(config, args.num_chips, args.num_columns)
    estimates = [step_plan.estimate(plan, name, args.encoder_gflop * 1e9) for name in args.chips]
    print(step_plan.format_plan(plan, estimates))
    if args.output:
        write_json(args.output, dataclasses.asdict(plan) | {"estimates": list(map(dataclasses.asdict, estimates))})
