"""An independent sampler in numpy: it recomputes the whole sequence at every column, and keeps no KV cache.

`sample` is what tests compare `eqjax.sample_latents` with. The transformer is written again from the parameters, in
float64; the condition tokens and the flow head are the generator's own.
"""

import jax
import jax.numpy as jnp
import numpy as np


def _norm(x, p, epsilon):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def _rotate(x, positions):
    """Rotates x [L, H, d] by positions [L]."""
    d = x.shape[-1]
    angles = positions[:, None] * 10000.0 ** (-np.arange(0, d, 2) / d)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def _attend(query, key, value, mask):
    """Attends from query [Q, H, d] to key and value [Q, K, H, d] (those of each query) under mask [Q, K]."""
    scores = np.einsum("qhd,qkhd->hqk", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,qkhd->qhd", weights / weights.sum(-1, keepdims=True), value)


def context(generator, params, latents, keys, values, max_position):
    """Returns the context of column L after columns 0 … L − 1, [E].

    Args:
      generator: the module.
      params: its parameters, float64.
      latents: latents of the columns, [L, D].
      keys: keys of the condition tokens that each column sees, [depth, L, T, H, d].
      values: their values.
      max_position: bound on the positions of queries in cross-attention.
    """
    length = latents.shape[0]
    positions = np.arange(length)
    distance = positions[:, None] - positions[None]
    mask = (distance >= 0) & (distance < (generator.window_size or length))
    x = latents @ params["latent_proj"]["kernel"] + params["latent_proj"]["bias"]
    x = _norm(x, params["input_norm"], 1e-6)
    gelu = lambda h: np.asarray(jax.nn.gelu(jnp.asarray(h, jnp.float32), approximate=False), np.float64)  # noqa: E731
    for layer in range(generator.depth):
        p = jax.tree.map(lambda a, i=layer: a[i], params["blocks"])
        h = _norm(x, p["self_norm"], 1e-6)
        query, key, value = np.moveaxis(
            np.einsum("le,eshd->lshd", h, p["self_qkv"]["kernel"]) + p["self_qkv"]["bias"], 1, 0
        )
        query, key = _rotate(query, positions), _rotate(key, positions)
        out = _attend(query, *(np.broadcast_to(a, (length, *a.shape)) for a in (key, value)), mask)
        x = x + np.einsum("qhd,hde->qe", out, p["self_out"]["kernel"]) + p["self_out"]["bias"]
        h = _norm(x, p["cross_norm"], 1e-5)
        query = np.einsum("le,ehd->lhd", h, p["cross_query"]["kernel"]) + p["cross_query"]["bias"]
        if generator.cross_rope:
            query = _rotate(query, np.minimum(positions, max_position))
        out = _attend(query, keys[layer], values[layer], np.ones((length, keys.shape[2]), bool))
        x = x + np.einsum("qhd,hde->qe", out, p["cross_out"]["kernel"]) + p["cross_out"]["bias"]
        h = _norm(x, p["mlp_norm"], 1e-6) @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"]
        x = x + gelu(h) @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"]
    return _norm(x[-1], params["output_norm"], 1e-6)


def sample(generator, params, labels, class_weights, noise, scales, solve, prefix, max_position=np.inf):
    """Returns the latents of one row, [L, D].

    Args:
      generator: the module.
      params: its parameters.
      labels: classes of the segments, [S].
      class_weights: weight of each segment's class at each column, [L, S].
      noise: initial noise, [L, D].
      scales: guidance scale per column, [L].
      solve: function of (velocity(z, t), noise) that returns z at time 0.
      prefix: latents of the first columns, [P, D].
      max_position: bound on the positions of queries in cross-attention.
    """
    variables = {"params": params}
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    classes = generator.apply(variables, jnp.asarray([*labels, generator.num_classes]), method="condition")
    classes = jax.tree.map(np.asarray, classes)
    velocity = jax.jit(lambda z, t, c: generator.apply(variables, z, t, c, method="velocity"))
    latents = [*prefix]
    null = np.eye(len(labels) + 1)[-1]
    for k in range(len(prefix), len(noise)):
        contexts = []
        for weights in (np.pad(class_weights, ((0, 0), (0, 1))), np.tile(null, (len(noise), 1))):
            if k == 0:
                contexts.append(weights[0] @ classes.first)
                continue
            # Column j predicts column j + 1, under the classes of column j + 1.
            keys, values = (np.einsum("ls,nsthd->nlthd", weights[1 : k + 1], a) for a in (classes.keys, classes.values))
            contexts.append(context(generator, exact, np.asarray(latents, np.float64), keys, values, max_position))
        both = jnp.asarray(np.stack(contexts), jnp.float32)

        def guided(z, t, both=both, g=scales[k]):
            v = np.asarray(velocity(np.stack([z, z]).astype(np.float32), np.full(2, t, np.float32), both), np.float64)
            return v[1] + g * (v[0] - v[1])

        latents.append(solve(guided, np.asarray(noise[k], np.float64)))
    return np.stack(latents)
