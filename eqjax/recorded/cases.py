"""The recorded cases: tiny models of the original code with its outputs, and the comparison with ours."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import importlib.resources
import json
from typing import Any

import jax
import numpy as np

from eqjax import convert
from eqjax.generator import Generator, gpu_kernels
from eqjax.precision import computing_in
from eqjax.recorded import weights
from eqjax.sampling.latents import sample_latents
from eqjax.tokenizer import Tokenizer
from eqjax.typing import AnyArray, Params

TOKENIZERS = ("tokenizer_tiny", "tokenizer_anisotropic")
# Largest relative errors by precision: of float32 arithmetic, and of factors rounded to 10 and to 7 bits.
BOUNDS = {"highest": 1e-5, "tf32": 1e-2, "bfloat16": 1e-1}

# Copies of a recorded batch with which there are more rows than 128.
MANY = 65


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An output beside the recorded one.

    Attributes:
      case: its name.
      precision: that of products of float32 numbers.
      error: ‖ours − recorded‖ / ‖recorded‖, over all values.
      bound: the largest error that is right at this precision.
    """

    case: str
    precision: str
    error: float
    bound: float

    @property
    def is_close(self) -> bool:
        """Whether the error is within the bound; an error that is not a number never is."""
        return self.error <= self.bound


def relative_error(out: Any, reference: Any) -> float:
    """Returns ‖out − reference‖ / ‖reference‖ over all values.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> relative_error([3.0, 4.5], [3.0, 4.0])
      0.1
    """
    out, reference = np.asarray(out, np.float64), np.asarray(reference, np.float64)
    if out.shape != reference.shape:
        raise ValueError(f"the output has shape {out.shape}, the recorded one {reference.shape}.")
    return float(np.linalg.norm(out - reference) / np.linalg.norm(reference))


def compare(precision: str = "highest") -> Iterator[Comparison]:
    """Runs all recorded cases on this machine's first device.

    Args:
      precision: of products of float32 numbers: "highest", "tf32" or "bfloat16". On CPUs all are float32.

    Yields:
      A comparison for every output.

    Raises:
      ValueError, TypeError: the precision is unknown.
    """
    with computing_in(precision):
        for case, run, recorded in outputs(precision):
            yield Comparison(case, precision, relative_error(run(), recorded), BOUNDS[precision])


def outputs(precision: str = "highest") -> Iterator[tuple[str, Callable[[], Any], AnyArray]]:
    """Yields (case, function that computes the output, recorded output) of all recorded cases.

    Args:
      precision: that samples are computed at.
    """
    for name in TOKENIZERS:
        yield from _tokenizer_outputs(name)
    yield from _generator_outputs(precision)


def _tokenizer_outputs(name: str) -> Iterator[tuple[str, Callable[[], Any], AnyArray]]:
    tokenizer, params, arrays = tokenizer_case(name)

    @functools.partial(jax.jit, static_argnames="method")
    def apply(inputs: Any, method: str) -> Any:
        return tokenizer.apply({"params": params}, inputs, method=method)

    for size in sorted({key.split("/")[0] for key in arrays}):
        encode = functools.partial(apply, arrays[f"{size}/images"], "encode")
        decode = functools.partial(apply, arrays[f"{size}/latents"], "decode")
        yield f"{name}/{size}/mean", lambda encode=encode: encode().mean, arrays[f"{size}/mean"]
        yield f"{name}/{size}/images", lambda decode=decode: decode().images, arrays[f"{size}/decoded"]
        yield f"{name}/{size}/semantic", lambda decode=decode: decode().semantic, arrays[f"{size}/semantic"]


def _generator_outputs(precision: str) -> Iterator[tuple[str, Callable[[], Any], AnyArray]]:
    generator, params, arrays = generator_case()

    @functools.partial(jax.jit, static_argnames="method")
    def apply(*inputs: Any, method: str) -> Any:
        return generator.apply({"params": params}, *inputs, method=method)

    for length in sorted({int(key.split("/")[1]) for key in arrays if key.startswith("hidden/")}):
        inputs = arrays[f"hidden/{length}/latents"], arrays["labels"]
        context = functools.partial(apply, *inputs, method="context")
        yield f"generator_tiny/context/{length}", context, arrays[f"hidden/{length}/hidden"]
    inputs = (arrays[f"velocity/{name}"] for name in "xtc")
    velocity = functools.partial(apply, *inputs, method="velocity")
    yield "generator_tiny/velocity", velocity, arrays["velocity/velocity"]
    loss = functools.partial(jax.jit(lambda params: training_loss(generator, params, arrays)), params)
    yield "generator_tiny/loss", loss, arrays["train/loss"]
    for run in sorted({key.split("/")[1] for key in arrays if key.startswith("sample/")}):
        case = {key.split("/")[2]: arrays[key] for key in arrays if key.startswith(f"sample/{run}/")}
        sample = functools.partial(_sample, generator, params, arrays["labels"], precision, case)
        yield f"generator_tiny/sample/{run}", functools.partial(sample, "plain"), case["latents"]
        if not _has_fused_kernels(generator):
            continue
        # Few images, and so many that their flow has other kernels.
        for repeats in (1, MANY):
            fused = functools.partial(sample, "fused", repeats)
            yield f"generator_tiny/sample/{run}/fused/{repeats}", fused, np.concatenate([case["latents"]] * repeats)


def _has_fused_kernels(generator: Generator) -> bool:
    """Returns whether this machine's first device has the fused kernels."""
    return gpu_kernels.check("auto", generator) != "plain"


def training_loss(generator: Generator, params: Any, arrays: Mapping[str, Any]) -> Any:
    """Returns the generator's loss on the recorded training batch.

    Args:
      generator: the module.
      params: its parameters.
      arrays: the recorded arrays of the generator.
    """
    return generator.apply(
        {"params": params},
        arrays["train/latents"],
        arrays["labels"],
        time=arrays["train/t"][:, 0],
        noise=arrays["train/noise"],
        rope_shift=int(arrays["train/shift"]),
        method="loss",
    )


def _sample(
    generator: Generator, params: Params, labels: Any, precision: str, case: Mapping[str, Any], kernels: str,
    repeats: int = 1,
) -> Any:  # fmt: skip
    """Samples a recorded batch, or several of it at once."""
    labels, noise = (np.concatenate([rows] * repeats) for rows in (labels, case["noise"]))
    prefix = np.concatenate([case["prefix"]] * repeats) if "prefix" in case else None
    return sample_latents(
        generator,
        params,
        labels,
        num_columns=int(case["meta"][0]),
        num_flow_steps=_read_json("generator_tiny")["config"]["steps"],
        guidance_scale=float(case["guidance"]),
        guidance_schedule=str(case["schedule"]),
        noise=noise,
        prefix=prefix,
        precision=precision,
        gpu_kernels=kernels,
    )


# ── Models ──────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def tokenizer_case(name: str) -> tuple[Tokenizer, Params, dict[str, Any]]:
    """Returns (tokenizer, parameters, arrays) of a recorded tokenizer, one of `TOKENIZERS`."""
    recorded = _read_json(name)
    tokenizer = recorded_tokenizer(recorded["ddconfig"], recorded["semanticconfig"], recorded["embed_dim"])
    state = weights.state_dict(recorded["parameters"])
    return tokenizer, convert.tokenizer_params(state, tokenizer), _read_arrays(name)


def recorded_tokenizer(fields: Mapping[str, Any], semantic: Mapping[str, Any], embed_dim: int) -> Tokenizer:
    """Returns the tokenizer of a recorded configuration, which has the original's names.

    Args:
      fields: the networks' fields.
      semantic: those of the semantic head.
      embed_dim: channels of a latent.
    """
    return Tokenizer(
        channels=fields["ch"],
        channel_multipliers=fields["ch_mult"],
        num_res_blocks=fields["num_res_blocks"],
        attention_resolutions=fields["attn_resolutions"],
        resolution=fields["resolution"],
        z_channels=fields["z_channels"],
        embed_dim=embed_dim,
        square_downsamples=fields["len_down_scale"],
        semantic=dict(
            channels=semantic["ch"],
            channel_multipliers=semantic["ch_mult"],
            num_res_blocks=semantic["num_res_blocks"],
            out_channels=semantic["out_ch"],
            downsamples=semantic["downsample_scale"],
        ),
    )


@functools.cache
def generator_case(window_size: int | None = 4) -> tuple[Generator, Params, dict[str, Any]]:
    """Returns (generator, parameters, arrays) of the recorded generator; its window can be changed."""
    recorded = _read_json("generator_tiny")
    fields = recorded["config"]
    generator = Generator(
        width=fields["width"],
        depth=fields["depth"],
        num_heads=fields["heads"],
        latent_dim=fields["latent_dim"],
        num_classes=fields["classes"],
        num_cond_tokens=fields["buffer"],
        window_size=window_size,
        max_rope_shift=fields["shift_num"],
        flow_width=fields["head_width"],
        flow_depth=fields["head_depth"],
        flow_batch_mult=fields["batch_mul"],
        dropout_rate=0.0,
        label_dropout_rate=0.0,
    )
    state = weights.state_dict(recorded["parameters"])
    return generator, convert.generator_params(state, generator), _read_arrays("generator_tiny")


def _read_json(name: str) -> Any:
    return json.loads((importlib.resources.files("eqjax.recorded") / f"{name}.json").read_text(encoding="utf-8"))


def _read_arrays(name: str) -> dict[str, Any]:
    with (importlib.resources.files("eqjax.recorded") / f"{name}.npz").open("rb") as file, np.load(file) as arrays:
        return dict(arrays)
