r"""Compiles a program for an NVIDIA GPU on a machine that has none: kernels, launches, memory and traffic.

    eqjax gpu-compile sampling --config=L --batch_size=64 --dtype=bfloat16
    eqjax gpu-compile sampling --config=L --batch_size=512 --num_chips=8
    eqjax gpu-compile decoding --config=L --batch_size=16 --chip=L4
    eqjax gpu-compile training --config=L --batch_size=2048 --num_chips=8 --mesh=fsdp:8
    eqjax gpu-compile training --config=imagenet_tokenizer --batch_size=16

Training of a size, or of a generator's configuration, is a step on cached latents; that of a tokenizer has its frozen
networks. The GPU compiler is in JAX's CUDA plugin, which `make gpu-compile` installs into a folder of its own. Nothing
is timed: figures are counted in the compiled program, and times are computed from data sheets.
"""

import dataclasses

from absl import flags

from eqjax.cli import command_line
from eqjax.cli.plan import use_virtual_devices
from eqjax.cli.sampling_flags import define_sampling_flags, sampling_options
from eqjax.io import write_json
from eqjax.progress import announced


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with command_line.flag_group(values, "Program"):
        flags.DEFINE_string(
            "config", "L", "Published size (S, B, L, H) or configuration with :variant.", flag_values=values
        )
        flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Compute dtype.", flag_values=values)
        flags.DEFINE_integer("batch_size", 64, "Images at once, of all devices together.", 1, flag_values=values)
        flags.DEFINE_integer("num_columns", 16, "Columns of an image.", 1, flag_values=values)
    with command_line.flag_group(values, "Machine"):
        flags.DEFINE_string("chip", "H100", "GPU: H100, H200, A100, RTX4090 or L4.", flag_values=values)
        flags.DEFINE_integer("num_chips", 1, "Number of devices, for sampling and training.", 1, flag_values=values)
        flags.DEFINE_string("mesh", "data:-1", "Mesh of the devices, for sampling and training.", flag_values=values)
    with command_line.flag_group(values, "Sampling"):
        # Guided unless asked otherwise: that takes twice the work, whatever the scale.
        define_sampling_flags(values, guidance_scale=7.0)
    with command_line.flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "JSON file to write the figures to.", flag_values=values)


def run(args: flags.FlagValues, words: list[str]) -> None:
    """Compiles, prints the tables and writes JSON.

    Args:
      args: the flags.
      words: the kind of program, one of `eqjax.perf.gpu_report.KINDS`.

    Raises:
      ModuleNotFoundError: the GPU compiler is not installed.
      ValueError: an unknown kind, chip or configuration; a mesh or a batch size that does not fit.
    """
    with announced("Loading the libraries", patience=2.0):
        from eqjax.perf import gpu_report

    if len(words) != 1:
        raise ValueError(f"name one program: {', '.join(gpu_report.KINDS)}; got {' '.join(words) or 'none'}.")
    request = gpu_report.GpuRequest(
        kind=words[0],
        chip=args.chip,
        config=args.config,
        batch_size=args.batch_size,
        num_columns=args.num_columns,
        dtype=args.dtype,
        sampling=sampling_options(args),
        num_chips=args.num_chips,
        mesh=args.mesh,
    )
    use_virtual_devices(1)  # Small constants are computed on the CPU.
    with announced(f"Compiling for {args.chip}; a minute or two for a large model"):
        report = gpu_report.compile_request(request)
    print(gpu_report.format_report(report))
    if args.output:
        write_json(args.output, dataclasses.asdict(report))
