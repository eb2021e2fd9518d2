"""Training the windowed causal generator on a frozen tokenizer.

    image ─encoder─▶ posterior ─draw, × latent scale─▶ latents ─generator─▶ rectified-flow loss

Images are encoded inside the jitted step, or the latents' means come from a cache (see `latents`).

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.2 and appendix.
"""

import functools

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict
import numpy as np
import optax

from eqjax import pixels, pretrained
from eqjax.data import default_config as default_data_config
from eqjax.data import eval_batches, make_source
from eqjax.sampling import Model
from eqjax.training import latents, loop, optim
from eqjax.training.state import TrainState, ema_update, stream


def default_config():
    """The full configuration of a generator's training: published L size and recipe on ImageNet."""
    config = loop.default_config()
    config.stage = "generator"
    config.generator = ml_collections.ConfigDict(
        pretrained.module_config(pretrained.Generator()), convert_dict=False, type_safe=False
    )
    config.tokenizer_weights = config_dict.placeholder(str)  # A name, file or workdir; see load_pretrained.
    config.eval_images = 256  # Held-out pictures for the loss; at most what there is.
    config.sample_columns = 16  # Of the pictures drawn during training.
    config.sample_guidance = 3.0
    config.sample_flow_steps = 50
    config.data = default_data_config()
    config.optimizer = optim.default_config()
    config.optimizer.update(dict(learning_rate=1e-4, weight_decay=0.02, clip_norm=3.0, ema_decay=0.9999))
    return config


def train_and_evaluate(config, workdir):
    """Trains a generator; see `loop.train` for what lies in `workdir` afterwards.

    The exported weights hold the tokenizer too: `eqjax.load_pretrained(workdir)` is a ready model.

    Args:
      config: as `default_config`.
      workdir: a folder; a run that was cut off there is continued.

    Returns:
      The final `TrainState`.

    Raises:
      ValueError: an unknown or impossible field; a tokenizer that does not fit.
    """
    loop.check_config(config, default_config())
    return loop.train(config, workdir, make_stage(config))


def load_tokenizer(config):
    """The frozen tokenizer's `Weights`, checked against data and generator.

    Raises:
      ValueError: no tokenizer in the file, or another latent size or picture height.
    """
    if not config.tokenizer_weights:
        raise ValueError("set tokenizer_weights: a shipped model's name, a weights file, or a tokenizer run's workdir.")
    path = pretrained.find(config.tokenizer_weights)
    weights = pretrained.load(path)
    if "tokenizer" not in weights.modules:
        raise ValueError(f"{path} holds no tokenizer; give tokenizer_weights a file written by tokenizer training.")
    tokenizer = weights.modules["tokenizer"]
    for name, have, want in (
        ("generator.latent_dim", config.generator.latent_dim, tokenizer.embed_dim),
        ("data.height", config.data.height, tokenizer.resolution),
    ):
        if have != want:
            raise ValueError(f"{name}={have} does not fit the tokenizer of {path}, which needs {want}.")
    if weights.latent_scale is None:
        logging.warning("%s states no latent scale; taking the published %s.", path, pretrained.PUBLISHED_LATENT_SCALE)
    return weights


def make_stage(config):
    """The `loop.Stage` of a generator configuration."""
    generator = pretrained.make_module("generator", dict(config.generator))
    weights = load_tokenizer(config)
    source = make_source(config.data)
    if len(source.class_names) != generator.num_classes:
        raise ValueError(
            f"generator.num_classes={generator.num_classes}, but the data has {len(source.class_names)} classes: "
            f"{list(source.class_names)[:5]} …"
        )
    if config.data.source == "latents":
        latents.check_cache(source, weights, config.data, config.tokenizer_weights)
    tokenizer = weights.modules["tokenizer"]
    scale = pretrained.PUBLISHED_LATENT_SCALE if weights.latent_scale is None else weights.latent_scale
    optimizer, schedule = optim.make_optimizer(config.optimizer, config.total_steps)
    tokenizer_params = jax.tree.map(jnp.asarray, weights.params["tokenizer"])

    encode = latents.make_encode(tokenizer, tokenizer_params, scale)

    def loss_fn(params, batch, key, deterministic):
        return generator.apply(
            {"params": params},
            encode(batch, stream(key, "posterior")),
            batch["label"],
            deterministic=deterministic,
            method="loss",
            rngs={name: stream(key, name) for name in ("flow", "rope", "label", "dropout")},
        )

    def init(key):
        params = generator.init_params(key)
        return TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))

    def step(state, batch, key):
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, key, False)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = optim.ema_decay(config.optimizer, state.step + 1)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), "learning_rate": schedule(state.step)}
        return TrainState(state.step + 1, params, ema_update(state.ema_params, params, decay), opt_state), metrics

    eval_loss = jax.jit(functools.partial(loss_fn, deterministic=True))

    def evaluate(state):
        # The same noise every time, so that values can be compared from step to step.
        key, losses = jax.random.key(0), []
        for i, batch in enumerate(
            eval_batches(config.data, batch_size=config.batch_size, num_images=config.eval_images)
        ):
            losses.append(float(eval_loss(state.ema_params, batch, jax.random.fold_in(key, i))))
        return {"eval_loss": float(np.mean(losses))}

    def model(state):
        return Model(tokenizer, tokenizer_params, generator, state.ema_params, scale, tuple(source.class_names))

    def pictures(state, batch):
        del batch
        images = model(state).sample(
            list(range(min(16, generator.num_classes))),
            num_columns=config.sample_columns,
            guidance_scale=config.sample_guidance,
            num_flow_steps=config.sample_flow_steps,
        )
        return {"samples": pixels.grid(images, columns=2)}

    def export(state, path):
        exported = pretrained.Weights(
            {"tokenizer": tokenizer, "generator": generator},
            {"tokenizer": weights.params["tokenizer"], "generator": jax.device_get(state.ema_params)},
            latent_scale=scale,
            class_names=tuple(source.class_names),
            notes=f"generator after {int(state.step)} steps; config: {config.to_json_best_effort()}\n{weights.notes}",
        )
        pretrained.save(path, exported)

    return loop.Stage(init, step, evaluate, pictures, export)
