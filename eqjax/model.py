"""A loaded model: labels to images, images to latents and back. It holds weights and calls pure functions."""

from collections.abc import Sequence
import contextlib
import dataclasses
from typing import Any, Literal, TypeAlias, Unpack, overload

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, UInt8
import numpy as np

from eqjax import pixels
from eqjax.generator import Generator
from eqjax.messages import did_you_mean, shorten, show
from eqjax.precision import computing_in, jax_name
from eqjax.rules import Array, Choice, as_native
from eqjax.sampling import memory
from eqjax.sampling.checks import NUM_COLUMNS, SEED, as_seeds
from eqjax.sampling.class_schedule import parse_classes
from eqjax.sampling.latents import sample_latents
from eqjax.sampling.options import SamplingKeywords, SamplingOptions
from eqjax.sampling.sampler import compute_params
from eqjax.tokenizer import Tokenizer
from eqjax.tokenizer.tiling import decode_images, encode_images
from eqjax.tokenizer.windows import compiling, decode_columns
from eqjax.tracing import is_tracing
from eqjax.typing import Params, Scalar

# A class, by its label or its name.
ClassLabel: TypeAlias = str | Scalar
# A class, and the number of columns that belong to it; None: to the end.
ClassColumns: TypeAlias = tuple[ClassLabel, Scalar | None]
# One random seed, or several.
Seeds: TypeAlias = Scalar | Sequence[Any]

# Types that a model computes in.
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


def as_floats(images: Any, name: str = "images") -> Float[jax.Array, "..."]:
    """Returns images of any shape, uint8 or floats in [-1, 1], as floats in [-1, 1].

    Args:
      images: the images; lists of numbers count as floats.
      name: name of the argument, for messages.

    Raises:
      TypeError: it is no array of numbers.
      ValueError: they are integers other than uint8, or floats in another range.
    """
    images = Array(None, "number").check(name, images)
    if images.dtype == np.uint8:
        return pixels.from_uint8(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name} is {images.dtype}; expected uint8, or floats in [-1, 1].")
    pixels.check_range(name, images)
    return jnp.asarray(images)


@flax.struct.dataclass
class Model:
    """A tokenizer and a generator with their weights; `eqjax.load_pretrained` returns one.

    A model is a pytree whose leaves are the weights, so it can be passed to a jitted function. Either module
    may be missing (None); methods that need it raise an error.

    Attributes:
      tokenizer: the tokenizer.
      tokenizer_params: its parameters; empty without a tokenizer.
      generator: the generator.
      generator_params: its parameters; empty without a generator.
      latent_scale: factor from posterior means to scaled latents, which have about unit scale.
      class_names: names of labels 0 … num_classes − 1, or None.
      precision: of products of float32 numbers, in every method and wherever a model is sampled: "highest", float32;
        "tf32", TensorFloat-32 on NVIDIA GPUs and three passes of bfloat16 on TPUs; "bfloat16", the fastest of the
        device, one pass of bfloat16 on TPUs. CPUs compute all of them in float32.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> images = model.sample(["flower", "rocket"], num_columns=8, num_flow_steps=2)
      >>> images.shape, model.encode(images).shape
      ((2, 128, 128, 3), (2, 8, 128))
    """

    tokenizer: Tokenizer | None = flax.struct.field(pytree_node=False)
    tokenizer_params: Params
    generator: Generator | None = flax.struct.field(pytree_node=False)
    generator_params: Params
    latent_scale: float = flax.struct.field(pytree_node=False)
    class_names: tuple[str, ...] | None = flax.struct.field(pytree_node=False)
    precision: str = flax.struct.field(pytree_node=False, default="highest")

    def sample(
        self,
        labels: Any,
        *,
        num_columns: Any,
        seed: Any = 0,
        seeds: Any = None,
        transition: Any = 0,
        prefix: Any = None,
        mesh: Any = None,
        progress: Any = None,
        **options: Unpack[SamplingKeywords],
    ) -> UInt8[jax.Array, "B H W 3"]:
        """Samples images.

        The first call with a batch size compiles programs, which takes seconds. The sampler's serve all numbers of
        columns and all values of the options, but not another `num_flow_steps`, `guidance_scale` = 1, or number of
        classes in a schedule. The decoder has a program for images of up to 16 columns, one for up to 64 and one for
        all wider ones, each compiled when it is first needed; where the tokenizer sees whole images, as the published
        one does, one for up to 16, 32, 64, 128 … columns.

        Args:
          labels: classes [B] as integers or names, or one of them. Or classes along the columns of all images,
            [(class, columns), …]; None for the last number of columns: to the end.
          num_columns: width of the images in columns (`tokenizer.column_width` pixels each).
          seed: an integer; the same seed gives the same images.
          seeds: integers [B] instead: image i depends on labels[i] and seeds[i], not on its place. A single label
            or schedule is used for all seeds.
          transition: columns over which one class blends into the next.
          prefix: scaled latents [B, P, D] with which the images begin.
          mesh: a mesh of `eqjax.sharding.make_mesh`, along whose data axes the batch is sharded; for one of several
            processes see `eqjax.sample_latents`.
          progress: called with the number of columns sampled since its last call, see `eqjax.sample_latents`.
          **options: fields of `SamplingOptions`, with its defaults: guidance_scale (1.0, or one per column),
            guidance_schedule ("linear"), num_flow_steps (100), solver ("euler"), time_grid ("uniform"),
            temperature (1.0), max_position (None), modulation_times (None), parallel_steps (None),
            parallel_tolerance (0.0001),
            gpu_kernels ("auto").

        Returns:
          Images of the width of num_columns.

        Raises:
          ValueError: an argument is out of its range or has another shape, a class name is unknown, or the model has no
            generator or no tokenizer.
          TypeError: an argument is of another type, or unknown.
          MemoryError: the images do not fit into memory; the message says what they take.
        """
        # Raises errors before anything is computed.
        checked = SamplingOptions(**options)
        generator, tokenizer, class_columns = self.require("generator"), self.require("tokenizer"), None
        num_columns = NUM_COLUMNS.check("num_columns", num_columns)
        if isinstance(labels, list | tuple) and labels and isinstance(labels[0], list | tuple):
            names, class_columns = parse_classes(labels)
            rows = self.labels(names)[None]  # [1, S]
        else:
            rows = self.labels(labels)
        key = jax.random.key(dataclasses.replace(SEED, traceable=True).check("seed", seed))
        if seeds is not None:
            rows_seeds = as_seeds(seeds)
            if rows.shape[0] == 1:
                rows = jnp.repeat(rows, len(rows_seeds), axis=0)
            if len(rows_seeds) != rows.shape[0]:
                raise ValueError(f"{len(rows_seeds)} seeds for {rows.shape[0]} labels; give one seed per label.")
            key = jax.vmap(jax.random.key)(np.asarray(rows_seeds))
        devices = memory.count_devices(rows, mesh)
        memory.check_latents(
            generator, rows.shape, num_columns, checked.is_guided, devices, checked.modulations_at_once
        )
        memory.check_images(tokenizer, rows.shape[0], num_columns)
        window: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if mesh is None and not is_tracing(self, rows, key, prefix):  # With several devices threads can hang.
            precision = jax_name(self.precision)
            window = compiling(tokenizer, self.tokenizer_params, rows.shape[0], num_columns, precision)
        with window:
            latents = sample_latents(
                generator,
                self.generator_params,
                rows,
                num_columns=num_columns,
                class_columns=class_columns,
                transition=transition,
                key=key,
                prefix=prefix,
                mesh=mesh,
                progress=progress,
                precision=self.precision,
                **options,
            )
        return self.decode(latents)

    def encode(self, images: Any) -> Float[jax.Array, "B L D"]:
        """Returns the scaled latents of images, the posterior means without noise.

        Args:
          images: [B, H, W, 3], uint8 or floats in [-1, 1], such as `eqjax.pixels.from_uint8` returns. Floats that look
            like 0 … 1 are taken as they are, with a warning, see `eqjax.pixels.check_range`.

        Raises:
          TypeError: it is no array of numbers.
          ValueError: the shape does not fit the tokenizer, or the images are integers other than uint8, or floats in
            another range, such as 0 … 255.
        """
        floats = as_floats(images)
        with self.with_precision():
            return encode_images(self.require("tokenizer"), self.tokenizer_params, floats) * self.latent_scale

    def decode(self, latents: Any) -> UInt8[jax.Array, "B H W 3"]:
        """Returns the images of scaled latents [B, L, D].

        Raises:
          TypeError: the latents are no floating-point array.
          ValueError: the latents have another shape, or values that are not finite.
        """
        tokenizer, params = self.require("tokenizer"), self.tokenizer_params
        latents = Array(("batch", "columns", tokenizer.embed_dim)).check("latents", latents)
        with self.with_precision():
            if not is_tracing(params, latents):
                return decode_columns(tokenizer, params, latents, scale=self.latent_scale, to_uint8=True)
            images = decode_images(tokenizer, params, jnp.asarray(latents) / self.latent_scale)
        return jnp.asarray(pixels.to_uint8(images))

    def labels(self, labels: Any) -> Int[jax.Array, "B"]:
        """Returns classes as integers.

        Args:
          labels: class names or integers, one or many.

        Raises:
          ValueError: a name is not one of `class_names`, or the labels are neither names nor integers.
        """
        is_one = isinstance(labels, str) or not (isinstance(labels, list | tuple) or np.ndim(labels))
        rows: Any = [labels] if is_one else labels
        if all(not isinstance(label, str) for label in rows):
            return _integers(rows)
        names = list(self.class_names or ())
        unknown = [label for label in rows if isinstance(label, str) and label not in names]
        if unknown:
            known = shorten(str(names)) if names else "it has no class names; give integers"
            raise ValueError(f"classes {unknown} are not among this model's: {known}{did_you_mean(unknown[0], names)}")
        return _integers([names.index(label) if isinstance(label, str) else label for label in rows])

    def with_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which JAX computes in this model's `precision`, for functions of its modules.

        Raises:
          ValueError, TypeError: the precision is unknown.

        Example:
          >>> import eqjax
          >>> model = eqjax.load_pretrained("photos", precision="tf32")
          >>> with model.with_precision():
          ...     jax.config.jax_default_matmul_precision
          'tensorfloat32'
        """
        return computing_in(self.precision)

    def astype(self, dtype: Any) -> "Model":
        """Returns the model with modules that compute in `dtype`, and parameters that are cast to it once.

        Parameters of norms and embeddings keep float32, and so do norms, softmax and the flow's state.

        Args:
          dtype: "float32", "bfloat16" or "float16", or the type itself.

        Raises:
          ValueError, TypeError: it is another type.

        Example:
          >>> import eqjax
          >>> eqjax.load_pretrained("photos").astype("bfloat16").generator.dtype
          dtype(bfloat16)
        """
        return self.cast(check_dtype(dtype))

    def cast(self, dtype: np.dtype | str | None) -> "Model":
        """Returns `astype(dtype)`; None: parameters are cast to the type in which each module computes already."""
        cast: dict[str, Any] = {}
        for name in ("tokenizer", "generator"):
            module = getattr(self, name)
            if module is not None:
                cast[name] = module if dtype is None else module.clone(dtype=check_dtype(dtype))
                cast[f"{name}_params"] = compute_params(cast[name], getattr(self, f"{name}_params"))
        return dataclasses.replace(self, **cast)

    @overload
    def require(self, name: Literal["tokenizer"]) -> Tokenizer: ...
    @overload
    def require(self, name: Literal["generator"]) -> Generator: ...
    def require(self, name: Any) -> Tokenizer | Generator:
        """Returns the module "tokenizer" or "generator".

        Raises:
          TypeError: the name is no string.
          ValueError: the model was loaded without it, or has no such module.
        """
        name = Choice(("tokenizer", "generator")).check("name", name)
        module = self.tokenizer if name == "tokenizer" else self.generator
        if module is None:
            raise ValueError(f"this model was loaded without a {name}; give load_pretrained a file that has one too.")
        return module

    def __repr__(self) -> str:
        """Returns the sizes of the modules and the class names, without the weights."""
        parts = []
        if self.tokenizer is not None:
            size = f"{self.tokenizer.resolution} pixels high, columns of {self.tokenizer.column_width} pixels"
            parts.append(f"tokenizer: {size}, {_count(self.tokenizer_params)} parameters")
        if self.generator is not None:
            size = f"{self.generator.depth} layers of width {self.generator.width}"
            parts.append(f"generator: {size}, {_count(self.generator_params)} parameters")
            names = f" ({', '.join(self.class_names)})" if self.class_names else ""
            parts.append(f"{self.generator.num_classes} classes{names}")
        return f"Model({'; '.join(parts)})"


def check_dtype(dtype: Any) -> np.dtype:
    """Returns a dtype to compute in.

    Raises:
      ValueError, TypeError: it is not one of `COMPUTE_DTYPES`.
    """
    with contextlib.suppress(TypeError):  # It is no dtype: `Choice` says so.
        dtype = dtype if dtype is None else jnp.dtype(dtype).name  # None is NumPy's name for float64.
    return jnp.dtype(Choice(COMPUTE_DTYPES).check("dtype", dtype))


def _integers(labels: Any) -> Int[jax.Array, "..."]:
    """Returns labels as an integer array.

    Raises:
      ValueError: they are not integers.
    """
    try:
        found = jnp.asarray(as_native(labels) if isinstance(labels, np.ndarray) else labels)
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None or not jnp.issubdtype(found.dtype, jnp.integer):
        raise ValueError(f"labels must be class names or integers, not {show(labels)}.")
    return found


def _count(params: Params) -> str:
    """Returns the number of parameters as text, such as "1.3 M"."""
    return f"{sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6:.3g} M"
