r"""Compares this machine's outputs with recorded ones of the original code, at every precision.

    eqjax check
    eqjax check --precision=highest --output=outputs/check.json

Tokenizers and a generator of tiny sizes, whose recorded outputs are part of the package: encoding, decoding, contexts,
velocities, the loss, sampling. On CPUs every precision is float32, and errors are about 1e-6. On GPUs and TPUs only
"highest" is; the others round the factors of products, and have wider bounds.
"""

from absl import flags

from eqjax.cli import command_line
from eqjax.io import write_json
from eqjax.progress import announced


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with command_line.flag_group(values, "Cases"):
        flags.DEFINE_list(
            "precision", ["highest", "tf32", "bfloat16"], "Precisions of products of float32 numbers.",
            flag_values=values,
        )  # fmt: skip
    with command_line.flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "JSON file to write the errors to.", flag_values=values)


def run(args: flags.FlagValues) -> None:
    """Runs the cases, prints the errors and writes JSON.

    Raises:
      ValueError: a precision is unknown.
      FloatingPointError: an output is further from the recorded one than the precision explains.
    """
    import jax

    from eqjax.model import check_precision
    from eqjax.recorded import compare
    from eqjax.tables import markdown_table

    precisions = [check_precision(name) for name in args.precision]
    found = []
    for precision in precisions:
        with announced(f"Running the recorded cases at precision {precision}", patience=2.0):
            found += compare(precision)
    errors = {(item.case, item.precision): item for item in found}
    rows = [
        (case, *(f"{errors[case, p].error:.1e}{'' if errors[case, p].is_close else ' FAR'}" for p in precisions))
        for case in dict.fromkeys(item.case for item in found)
    ]
    bounds = [f"{next(item.bound for item in found if item.precision == p):.0e}" for p in precisions]
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}: relative errors\n")
    print(markdown_table(("case", *precisions), [*rows, ("bound", *bounds)]))
    if args.output:
        device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        cases = [
            {"case": item.case, "precision": item.precision, "error": item.error, "bound": item.bound} for item in found
        ]
        write_json(args.output, {**device, "cases": cases})
    far = [item for item in found if not item.is_close]
    if far:
        worst = max(far, key=lambda item: item.error / item.bound)
        raise FloatingPointError(
            f"{len(far)} of {len(found)} outputs are not those recorded; the worst is {worst.case} at precision "
            f"{worst.precision}, {worst.error:.1e} from the recorded one where at most {worst.bound:.0e} is right."
        )
