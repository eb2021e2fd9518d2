"""The codec of a model, through which everything here looks at it."""

from typing import Any

from jaxtyping import Float

from eqjax.equivariance.geometry import Codec, ColumnGeometry
from eqjax.model import Model
from eqjax.rules import Instance
from eqjax.tokenizer.tiling import decode_images, encode_images
from eqjax.typing import AnyArray


def model_codec(model: Any, boundary: Any = "crop", interpolation: Any = "linear") -> Codec:
    """Returns the codec of a model's tokenizer.

    Latents are scaled as `Model.encode` scales them. Images stay floats and are not clipped.

    Args:
      model: an `eqjax.Model` with a tokenizer.
      boundary: see `ColumnGeometry`.
      interpolation: see `ColumnGeometry`.

    Raises:
      TypeError: it is no model.
      ValueError: the model has no tokenizer, or an option is unknown.

    Example:
      >>> import eqjax, jax.numpy as jnp
      >>> codec = model_codec(eqjax.load_pretrained("photos"))
      >>> codec.encode(jnp.zeros((1, 128, 128, 3))).shape
      (1, 8, 128)
    """
    Instance(Model, "an eqjax.Model, as eqjax.load_pretrained returns").check("model", model)
    tokenizer, params = model.require("tokenizer"), model.tokenizer_params

    def encode(images: Float[AnyArray, "B H W 3"]) -> Float[AnyArray, "B N D"]:
        with model.with_precision():
            return encode_images(tokenizer, params, images) * model.latent_scale

    def decode(latents: Float[AnyArray, "B N D"]) -> Float[AnyArray, "B H W 3"]:
        with model.with_precision():
            return decode_images(tokenizer, params, latents / model.latent_scale)

    geometry = ColumnGeometry(tokenizer.column_width, tokenizer.resolution, boundary, interpolation)
    return Codec(encode, decode, geometry)
