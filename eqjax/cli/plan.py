r"""Estimates the cost of a generator's training step on other machines: memory, FLOPs, traffic and time.

    eqjax plan --config=imagenet_generator:size=L --num_chips=256 --mesh=data:16,fsdp:16 --chips=H100,v5p

The command compiles the real step, from latents, and allocates no array. For GPUs it uses the GPU compiler where that
is installed (`make gpu-compile`; no GPU is needed): memory and collectives are then those of the chip. For TPUs, and
where there is no GPU compiler, it uses the CPU compiler on virtual devices, which widens bfloat16 and writes a
reduce-scatter as an all-reduce, so both are upper estimates. The output says which it was. If the step reads
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
            "chips", ["H100", "v5e", "v5p"],
            "Chips to estimate for: H100, H200, A100, RTX4090, L4, v4, v5e, v5p, v6e.", flag_values=values,
        )  # fmt: skip
        flags.DEFINE_enum(
            "compiler", "auto", ["auto", "gpu", "cpu"],
            "Compiler for GPUs: the GPU's own, that of the CPU, or the first where it is installed (auto).",
            flag_values=values,
        )  # fmt: skip
    with command_line.flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "JSON file to write the plan and the estimates to.", flag_values=values)


def use_virtual_devices(count: int) -> None:
    """Makes JAX run on `count` virtual CPU devices; call it before anything uses a device."""
    import jax

    flag = "--xla_force_host_platform_device_count"
    kept = [item for item in os.environ.get("XLA_FLAGS", "").split() if not item.startswith(flag)]
    os.environ["XLA_FLAGS"] = " ".join(kept)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def run(args: flags.FlagValues) -> None:
    """Plans the step, prints the tables and writes JSON.

    Raises:
      ModuleNotFoundError: --compiler=gpu, and the GPU compiler is not installed.
      ValueError: an unknown chip; a configuration, mesh or batch size that does not fit.
    """
    with announced("Loading the libraries", patience=2.0):
        from eqjax.perf import chips, gpu_compiler, step_plan

    found = [chips.find_chip(name) for name in args.chips]  # An unknown name fails here, before minutes of compiling.
    if args.compiler == "gpu":
        gpu_compiler.check_installed()
    config = args.config
    if args.mesh is not None:
        config.mesh = args.mesh
    use_virtual_devices(args.num_chips)
    uses_gpu = args.compiler == "gpu" or (args.compiler == "auto" and gpu_compiler.is_installed())
    # A program for every GPU, and one of the CPU compiler (None) for all other chips.
    chips_of: dict[str | None, list[str]] = {}
    for chip in found:
        chips_of.setdefault(chip.name if uses_gpu and chip.cuda is not None else None, []).append(chip.name)
    written = []
    for compiled_for, names in chips_of.items():
        target = f"{args.num_chips} {compiled_for or 'virtual'} devices"
        with announced(f"Compiling the training step for {target}; minutes for a large model"):
            plan = step_plan.plan_step(config, args.num_chips, args.num_columns, compiled_for)
        estimates = [step_plan.estimate(plan, name, args.encoder_gflop * 1e9) for name in names]
        print(step_plan.format_plan(plan, estimates), end="\n\n")
        written.append(dataclasses.asdict(plan) | {"estimates": list(map(dataclasses.asdict, estimates))})
    if args.output:
        write_json(args.output, {"plans": written})
