"""A loaded model: labels to images, images to latents and back, on pure functions underneath."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import pixels
from eqjax.generator import Generator
from eqjax.sampling.class_schedule import parse_classes
from eqjax.sampling.sampler import sample_latents
from eqjax.tokenizer import Tokenizer
from eqjax.tokenizer.tiling import decode_images, encode_images


def as_floats(images):
    """Images of any shape, uint8 or floats in [-1, 1], as floats.

    Raises:
      ValueError: of another type.
    """
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return pixels.from_uint8(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; expected uint8, or floats in [-1, 1].")
    return images


def _integers(labels):
    try:
        found = jnp.asarray(labels)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found.dtype, jnp.integer):
        raise ValueError(f"labels must be class names or integers, not {labels!r}.")
    return found


@flax.struct.dataclass
class Model:
    """Tokenizer and generator with their weights; made by `eqjax.load_pretrained`.

    A pytree whose leaves are the weights, so that it can be handed to a jitted function. Either half
    may be missing (None); what needs it then says so.

    Attributes:
      tokenizer, generator: modules.
      tokenizer_params, generator_params: their parameters.
      latent_scale: scaled latents = posterior mean · latent_scale, of about unit scale.
      class_names: names of labels 0 … num_classes − 1, or None.
    """

    tokenizer: Tokenizer | None = flax.struct.field(pytree_node=False)
    tokenizer_params: Any
    generator: Generator | None = flax.struct.field(pytree_node=False)
    generator_params: Any
    latent_scale: float = flax.struct.field(pytree_node=False)
    class_names: tuple[str, ...] | None = flax.struct.field(pytree_node=False)

    def sample(self, labels, *, num_columns, seed=0, seeds=None, prefix=None, **options):
        """Draws images.

        Args:
          labels: integers or class names, [B] (or one of them). Or classes along the columns,
            [(class, columns), …], for all images; the last columns may be None: to the end.
          num_columns: width of the images in columns (`tokenizer.column_width` pixels each).
          seed: an integer; the same seed gives the same images.
          seeds: integers [B] instead: image i depends on labels[i] and seeds[i], not on its place. A
            single label or a schedule serves all seeds.
          prefix: scaled latents [B, P, D] that the images begin with.
          options: as `eqjax.sample_latents`: guidance_scale, guidance_schedule, num_flow_steps, solver,
            time_grid, temperature, transition, max_position, mesh, progress.

        Returns:
          uint8 [B, H, W, 3].

        Raises:
          ValueError: as `eqjax.sample_latents`; an unknown class name; a missing half.
        """
        if isinstance(labels, list | tuple) and labels and isinstance(labels[0], list | tuple):
            names, options["class_columns"] = parse_classes(labels)
            labels = self.labels(names)[None]  # [1, S]
        else:
            labels = self.labels(labels)
        key = jax.random.key(seed)
        if seeds is not None:
            seeds = np.atleast_1d(seeds)
            if labels.shape[0] == 1:
                labels = jnp.repeat(labels, len(seeds), axis=0)
            if len(seeds) != labels.shape[0]:
                raise ValueError(f"{len(seeds)} seeds for {labels.shape[0]} labels; give one seed per label.")
            key = jax.vmap(jax.random.key)(seeds)
        generator = self.require("generator")
        latents = sample_latents(
            generator, self.generator_params, labels, num_columns=num_columns, key=key, prefix=prefix, **options
        )
        return self.decode(latents)

    def encode(self, images):
        """Images [B, H, W, 3], uint8 or floats in [-1, 1] → scaled latents [B, L, D] (no noise).

        Raises:
          ValueError: a shape that does not fit the tokenizer; integers other than uint8.
        """
        images = as_floats(images)
        return encode_images(self.require("tokenizer"), self.tokenizer_params, images) * self.latent_scale

    def decode(self, latents):
        """Scaled latents [B, L, D] → uint8 images [B, H, W, 3].

        Raises:
          ValueError: latents of another size.
        """
        tokenizer = self.require("tokenizer")
        return pixels.to_uint8(
            decode_images(tokenizer, self.tokenizer_params, jnp.asarray(latents) / self.latent_scale)
        )

    def labels(self, labels):
        """Class names or integers, one or many → int32 [B].

        Raises:
          ValueError: a name that is not among `class_names`; neither names nor integers.
        """
        if isinstance(labels, str) or not np.ndim(labels):
            labels = [labels]
        if all(not isinstance(label, str) for label in labels):
            return _integers(labels)
        names = list(self.class_names or ())
        unknown = [label for label in labels if isinstance(label, str) and label not in names]
        if unknown:
            raise ValueError(f"classes {unknown} are not among this model's: {names or 'it has no class names'}.")
        return _integers([names.index(label) if isinstance(label, str) else label for label in labels])

    def require(self, half):
        """The module "tokenizer" or "generator".

        Raises:
          ValueError: the model was loaded without it.
        """
        module = getattr(self, half)
        if module is None:
            raise ValueError(f"this model was loaded without a {half}; give load_pretrained a file that has one too.")
        return module
