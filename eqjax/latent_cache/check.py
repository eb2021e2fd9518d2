"""Where a generator's latents come from: images, encoded inside the jitted step, or a cache of posterior means.

Both give the same latents for the same image, crop, flip and key, but for the rounding of the cache.
"""

import hashlib
import math

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import pixels, pretrained, published
from eqjax.latent_cache.format import CacheError
from eqjax.tokenizer import ENCODER_PARTS
from eqjax.tokenizer.posterior import Posterior


def tokenizer_hash(params):
    """SHA-256 over names, shapes and float32 values of the parameters of a tokenizer that encode.

    Not of the file, which changes when a generator joins it; nor of the decoder, which the second stage of training
    changes alone.
    """
    digest = hashlib.sha256()
    encoding = jax.tree_util.tree_leaves_with_path(encoding_params(params))
    for path, leaf in sorted((jax.tree_util.keystr(p), x) for p, x in encoding):
        array = np.ascontiguousarray(np.asarray(leaf, np.float32))
        digest.update(f"{path}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def encoding_fields(tokenizer):
    """The fields of a tokenizer that decide what it encodes, as JSON values; its compute dtype does not."""
    fields = pretrained.module_to_dict(tokenizer)
    skipped = ("dtype", "semantic")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items() if k not in skipped}


def noise_mean_square(std):
    """E[s²] of a `Posterior`'s noise level s ~ N(0, std/0.8), clipped to ±std: what draws add to the mean's square.

    With c = 0.8, φ the normal density and Q its upper tail: (std/c)² · (1 − 2Q(c) − 2cφ(c) + 2c²Q(c)).
    """
    c = 0.8
    density, tail = math.exp(-c * c / 2) / math.sqrt(2 * math.pi), math.erfc(c / math.sqrt(2)) / 2
    return (std / c) ** 2 * (1 - 2 * tail - 2 * c * density + 2 * c * c * tail)


def check_cache(source, weights, config, where):
    """Compares a cache of latents with the tokenizer and the data configuration of a run.

    Args:
      source: the `LatentSource`.
      weights: the tokenizer's `Weights`.
      config: the data configuration.
      where: the tokenizer's file, for messages.

    Raises:
      CacheError: another tokenizer, or another size of images; both sides are named.
    """
    plan, tokenizer = source.plan, weights.modules["tokenizer"]
    have, want = plan.tokenizer, encoding_fields(tokenizer)
    differing = [
        f"{k}: cache {have.get(k)}, run {want.get(k)}" for k in sorted(have | want) if have.get(k) != want.get(k)
    ]
    ours = tokenizer_hash(weights.params["tokenizer"])
    if differing or plan.tokenizer_hash != ours:
        detail = "; ".join(differing) or "same architecture, other weights"
        raise CacheError(
            f"the cache {source.root} was made by another tokenizer: its encoder's weights have the hash "
            f"{plan.tokenizer_hash[:16]}…, those of {where} {ours[:16]}… ({detail}). Give the tokenizer that made it, "
            "or make a cache with this one: python -m eqjax.cli.cache_latents"
        )
    size = (config.height, config.width)
    cached = (plan.data["height"], plan.data["width"])
    if size != cached:
        raise CacheError(
            f"data.height × data.width = {size[0]} × {size[1]}, but the cache {source.root} holds crops of "
            f"{cached[0]} × {cached[1]} pixels ({plan.shape[0]} columns). Set the cache's size, or make another cache."
        )
    measured, used = source.manifest["latent_scale"], latent_scale(weights)
    if abs(measured / used - 1) > 0.1:
        says = "states none: the published" if weights.latent_scale is None else "states"
        logging.warning(
            "The latents of %s want a scale of %.5f, the tokenizer %s %s %.5f, which is used.",
            *(source.root, measured, where, says, used),
        )


def check_caches(train, evaluation, weights, config, where):
    """As `check_cache` of the caches for training and for evaluation, which may be the same one.

    Raises:
      CacheError: as `check_cache`, or caches of other classes; both sides are named.
    """
    check_cache(train, weights, config, where)
    if evaluation.root == train.root:
        return
    check_cache(evaluation, weights, config, where)
    if evaluation.class_names != train.class_names:
        differing = sorted({*evaluation.class_names} ^ {*train.class_names})[:5]
        raise CacheError(
            f"the cache {evaluation.root} has {len(evaluation.class_names)} classes, {train.root} "
            f"{len(train.class_names)}, and not the same in the same order ({differing} …): labels would mean other "
            "things. Make both from the same classes."
        )


def latent_scale(weights):
    """What a run multiplies latents by: what the tokenizer's file states, else the published number."""
    return published.LATENT_SCALE if weights.latent_scale is None else weights.latent_scale


def encoding_params(params):
    """Those of a tokenizer's parameters that encode: all that a generator's training needs on its devices."""
    return {name: params[name] for name in ENCODER_PARTS if name in params}


def make_encode(tokenizer, scale):
    """How a batch becomes what the generator sees, in training and in evaluation; to be traced.

    Args:
      tokenizer: the frozen tokenizer.
      scale: what latents are multiplied by.

    Returns:
      A function of the tokenizer's parameters (those of `encoding_params`; none for cached latents), a batch with
      "label" and either "image" (uint8 [B, H, W, 3]) or "latents" (posterior means [B, L, D]), and a key. It returns a
      draw from the posterior, scaled, float32 [B, L, D], and the labels [B].
    """

    def encode(params, batch, key):
        if "latents" in batch:
            posterior = Posterior(jnp.asarray(batch["latents"], jnp.float32), tokenizer.posterior_std)
        else:
            images = pixels.from_uint8(batch["image"])
            posterior = tokenizer.apply({"params": params}, images, method="encode")
        return posterior.sample(key) * scale, batch["label"]

    return encode
