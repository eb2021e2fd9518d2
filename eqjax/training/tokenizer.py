"""Training the column tokenizer.

    image ─encoder─▶ posterior ─draw─▶ latents ─decoder─▶ reconstruction;   loss = L1 + w · KL

Sums over values, divided by the batch. `objective` is the place where further terms belong.

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from eqjax import pixels, pretrained, sharding
from eqjax.data import default_config as default_data_config
from eqjax.data import eval_batches, make_source
from eqjax.training import loop, optim
from eqjax.training.state import TrainState, ema_update, stream


def default_config():
    """The full configuration of a tokenizer's training, published sizes and rates."""
    config = loop.default_config()
    config.stage = "tokenizer"
    config.tokenizer = ml_collections.ConfigDict(
        pretrained.module_config(pretrained.Tokenizer()), convert_dict=False, type_safe=False
    )
    config.kl_weight = 0.01
    config.eval_images = 256  # Held-out pictures for PSNR; at most what there is.
    config.data = default_data_config()
    config.optimizer = optim.default_config()
    config.optimizer.update(dict(learning_rate=1.92e-4, warmup_steps=3000.0, schedule="step", b1=0.5, b2=0.9))
    config.optimizer.update(dict(ema_decay=0.99, ema_warmup=True))
    return config


def train_and_evaluate(config, workdir):
    """Trains a tokenizer; see `loop.train` for what lies in `workdir` afterwards.

    Args:
      config: as `default_config`.
      workdir: a folder; a run that was cut off there is continued.

    Returns:
      The final `TrainState`.

    Raises:
      ValueError: an unknown or impossible field.
    """
    loop.check_config(config, default_config())
    config = loop.resolve(config)
    return loop.train(config, workdir, make_stage(config))


def objective(tokenizer, params, images, key, kl_weight):
    """The loss and its terms, per image: L1 summed over values, and the weighted KL term.

    Args:
      images: [B, H, W, 3] in [-1, 1].
      key: for the posterior's draw.

    Returns:
      scalar loss, {"l1": per value, "kl": per latent value}.
    """
    variables = {"params": params}
    posterior = tokenizer.apply(variables, images, method="encode")
    reconstructions = tokenizer.apply(variables, posterior.sample(key), method="decode").images
    l1 = jnp.abs(images - reconstructions)
    kl = jnp.mean(posterior.kl())
    loss = jnp.sum(l1) / images.shape[0] + kl_weight * kl
    return loss, {"l1": jnp.mean(l1), "kl": kl / np.prod(posterior.mean.shape[1:])}


def make_stage(config):
    """The `loop.Stage` of a tokenizer configuration."""
    tokenizer = pretrained.make_module("tokenizer", dict(config.tokenizer))
    optimizer, schedule = optim.make_optimizer(config.optimizer, config.total_steps, optim.kernel_matrices)

    def init(key):
        params = tokenizer.init_params(key)
        return TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))

    def step(state, batch, key):
        images = pixels.from_uint8(batch["image"])

        def loss_fn(params):
            return objective(tokenizer, params, images, stream(key, "posterior"), config.kl_weight)

        (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = optim.ema_decay(config.optimizer, state.step + 1)
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads), "learning_rate": schedule(state.step)}
        return TrainState(state.step + 1, params, ema_update(state.ema_params, params, decay), opt_state), metrics

    @jax.jit
    def reconstruct(params, images):
        images = pixels.from_uint8(images)
        out = tokenizer.apply({"params": params}, images)
        return pixels.psnr(images, out.images), pixels.to_uint8(out.images)

    def evaluate(state):
        values, mesh = [], sharding.mesh_of(state)
        for batch in eval_batches(config.data, batch_size=config.batch_size, num_images=config.eval_images):
            batch = sharding.shard_batch(batch, mesh)
            psnr, _ = reconstruct(state.ema_params, batch["image"])
            values.append(sharding.gather(psnr)[sharding.gather(batch["mask"])])
        return {"eval_psnr": float(np.mean(np.concatenate(values)))}

    def pictures(state, batch):
        images = np.asarray(batch["image"])[:8]
        _, out = reconstruct(sharding.local(state.ema_params), images)
        pairs = np.concatenate([images, np.asarray(out)], axis=1)  # Each above its reconstruction.
        return {"reconstructions": pixels.grid(pairs, columns=8)}

    def export(state, path):
        params = sharding.gather(state.ema_params)
        if jax.process_index():
            return
        scale = measure_latent_scale(tokenizer, params, config)
        source = make_source(config.data)
        weights = pretrained.Weights(
            {"tokenizer": tokenizer},
            {"tokenizer": params},
            latent_scale=scale,
            class_names=tuple(source.class_names),
            notes=f"tokenizer after {int(state.step)} steps; config: {config.to_json_best_effort()}",
        )
        pretrained.save(path, weights)

    return loop.Stage(init, step, evaluate, pictures, export)


def measure_latent_scale(tokenizer, params, config, num_batches=16):
    """One over the root mean square of sampled latents over training batches.

    What the published 0.05493 is for the published tokenizer: scaled latents, posterior noise
    included, have unit scale.
    """
    from eqjax.data import make_iterator

    @jax.jit
    def mean_square(images, key):
        posterior = tokenizer.apply({"params": params}, pixels.from_uint8(images), method="encode")
        return jnp.mean(jnp.square(posterior.sample(key)))

    with make_iterator(config.data, batch_size=config.batch_size, seed=config.seed) as data:
        keys = jax.random.split(jax.random.key(config.seed), num_batches)
        squares = [float(mean_square(next(data)["image"], key)) for key in keys]
    return float(1 / np.sqrt(np.mean(squares)))
