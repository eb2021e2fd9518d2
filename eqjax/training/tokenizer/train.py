"""Training the column tokenizer, both stages.

Stage 1 trains everything. Stage 2 starts from stage 1's averaged weights, keeps encoder and quant layer as they are,
and trains the decoder's side. A step updates the tokenizer, then the discriminator on fresh reconstructions.

    image ─encoder─▶ posterior ─draw─▶ latents ─decoder─▶ reconstruction ─▶ the terms of `eqjax.training.objective`

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.1 and appendix.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from eqjax import pixels, pretrained, sharding
from eqjax.data import make_iterator, make_source
from eqjax.tokenizer import ENCODER_PARTS
from eqjax.training import adversary, loop, nan_report, optim
from eqjax.training.config import check_config, resolve
from eqjax.training.config import tokenizer_config as default_config
from eqjax.training.state import ema_update, stream
from eqjax.training.updates import TokenizerState, Updates


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
    check_config(config, default_config())
    config = resolve(config)
    return loop.train(config, workdir, make_stage(config))


def make_stage(config):
    """The `loop.Stage` of a tokenizer configuration.

    Raises:
      ValueError: fields that do not fit together; stage 2 without stage 1, or with one of another architecture.
      FileNotFoundError: the file of a frozen network is missing.
    """
    tokenizer = pretrained.build_module("tokenizer", dict(config.tokenizer))
    stage1 = load_stage1(config, tokenizer)
    terms, discriminator, frozen = adversary.make_objective(config, tokenizer)
    optimizer, schedule = optim.make_optimizer(config.optimizer, config.total_steps, optim.muon_dimension_numbers)
    discriminator_optimizer, _ = optim.make_optimizer(config.discriminator_optimizer, config.total_steps)
    updates = Updates(
        terms,
        optimizer,
        discriminator_optimizer,
        config.accumulation_steps,
        config.objective.semantic_start,
        config.objective.adversarial_start,
    )

    def split(params):
        names = ENCODER_PARTS if config.freeze_encoder else ()
        fixed = {name: params[name] for name in names if name in params}
        return {name: part for name, part in params.items() if name not in fixed}, fixed

    def init(key):
        params = tokenizer.init_params(key)
        variables = None
        if discriminator is not None:
            variables = discriminator.init(stream(key, "discriminator"), config.data.height, config.data.width)
            variables["opt_state"] = discriminator_optimizer.init(variables["params"])
        return TokenizerState(jnp.zeros((), jnp.int32), params, params, optimizer.init(split(params)[0]), variables)

    def warm_start(state):
        if stage1 is None:
            return state
        stored = stage1.params["tokenizer"]
        params = sharding.put(stored, jax.tree.map(lambda leaf: leaf.sharding, state.params))
        return state.replace(params=params, ema_params=jax.tree.map(jnp.copy, params))

    def step(frozen, state, batch, key):
        images = pixels.from_uint8(batch["image"])
        _, fixed = split(state.params)
        trained, opt_state, spectral, metrics = updates.tokenizer(state, fixed, frozen, images, key)
        params, judge = {**fixed, **trained}, None
        if discriminator is not None:
            judge, more = updates.discriminator(state, params, spectral, frozen, images, key)
            metrics |= more
        decay = optim.ema_decay(config.optimizer, state.step + 1)
        ema = ema_update({name: state.ema_params[name] for name in trained}, trained, decay)
        metrics["learning_rate"] = schedule(state.step)
        return TokenizerState(state.step + 1, params, {**state.ema_params, **ema}, opt_state, judge), metrics

    def diagnose(state, batch, key):
        on_mesh = sharding.put(frozen, sharding.replicated(sharding.mesh_of(state)))
        fixed, images = tuple(split(state.params)[1]), jax.jit(pixels.from_uint8)(batch["image"])
        return nan_report.first_nonfinite_term(updates, fixed, on_mesh, state, images, key)

    # Latents of a frozen encoder are those of stage 1, and so is their scale: generators of either fit both.
    scale = stage1.latent_scale if config.freeze_encoder else None
    return loop.Stage(
        init,
        jax.tree_util.Partial(step, frozen),
        **make_results(config, tokenizer, scale),
        diagnose=diagnose,
        warm_start=warm_start,
    )


def make_results(config, tokenizer, latent_scale=None):
    """What a run shows and leaves: the functions of a `loop.Stage` around evaluation, images and export.

    Without a `latent_scale` it is measured at the export.
    """

    @jax.jit
    def reconstruct(params, images):
        images = pixels.from_uint8(images)
        out = tokenizer.apply({"params": params}, images)
        return pixels.psnr(images, out.images), pixels.to_uint8(out.images)

    open_evaluation = functools.partial(loop.held_out, config)

    def evaluate(state):
        values, mesh = [], sharding.mesh_of(state)
        for batch in open_evaluation(mesh):
            batch = sharding.shard_batch(batch, mesh)
            psnr, _ = reconstruct(state.ema_params, batch["image"])
            values.append(sharding.gather(psnr)[sharding.gather(batch["mask"])])
        return {"eval_psnr": float(np.mean(np.concatenate(values)))}

    def show_images(state, batch):
        images = np.asarray(batch["image"])[:8]
        _, out = reconstruct(sharding.local(state.ema_params), images)
        pairs = np.concatenate([images, np.asarray(out)], axis=1)  # Each above its reconstruction.
        return {"reconstructions": pixels.grid(pairs, columns=8)}

    def export(state, path):
        params = sharding.gather(state.ema_params)
        if jax.process_index():
            return
        scale = latent_scale
        if scale is None:
            scale = measure_latent_scale(tokenizer, params, config, sharding.mesh_of(state))
        source = make_source(config.data)
        weights = pretrained.Weights(
            {"tokenizer": tokenizer},
            {"tokenizer": params},
            latent_scale=scale,
            class_names=tuple(source.class_names),
            notes=f"tokenizer after {int(state.step)} steps; config: {config.to_json_best_effort()}",
        )
        pretrained.save(path, weights)

    return dict(evaluate=evaluate, images=show_images, export=export, open_evaluation=open_evaluation)


def load_stage1(config, tokenizer):
    """`pretrained.Weights` that a run starts from, or None where it starts from random ones.

    Raises:
      ValueError: stage 2 without stage 1; a file without a tokenizer, or with another one.
    """
    if not config.stage1_weights:
        if config.freeze_encoder:
            raise ValueError(
                "freeze_encoder=True trains the decoder of a tokenizer that exists: set stage1_weights to the workdir "
                "of its first stage, or to a weights file."
            )
        return None
    path = pretrained.resolve_path(config.stage1_weights)
    weights = pretrained.load(path)
    if "tokenizer" not in weights.modules:
        raise ValueError(f"{path} holds no tokenizer; give stage1_weights a file written by tokenizer training.")
    have, want = (_architecture(module) for module in (weights.modules["tokenizer"], tokenizer))
    different = [f"  {k}: stage 1 {have[k]!r}, this run {want[k]!r}" for k in want if have[k] != want[k]]
    if different:
        raise ValueError(f"the tokenizer of {path} is not the one to be trained:\n" + "\n".join(different))
    return weights


def _architecture(tokenizer):
    """The fields of a tokenizer that decide what its parameters are and mean."""
    fields = pretrained.module_to_dict(tokenizer)
    del fields["dtype"]
    if tokenizer.semantic is not None:
        # Converted files state the widths through another common factor.
        del fields["semantic"]["channels"], fields["semantic"]["channel_multipliers"]
        fields["semantic"]["widths"] = tokenizer.semantic.widths
    return fields


def measure_latent_scale(tokenizer, params, config, mesh, num_batches=16):
    """One over the root mean square of sampled latents over training batches.

    What the published 0.05493 is for the published tokenizer: scaled latents, posterior noise
    included, have unit scale. Measured by one process, on its share of the batches of a run on `mesh`.
    """

    @jax.jit
    def mean_square(images, key):
        posterior = tokenizer.apply({"params": params}, pixels.from_uint8(images), method="encode")
        return jnp.mean(jnp.square(posterior.sample(key)))

    share = loop.batch_share(mesh)
    with make_iterator(config.data, batch_size=config.batch_size, seed=config.seed, **share) as data:
        keys = jax.random.split(jax.random.key(config.seed), num_batches)
        squares = [float(mean_square(next(data)["image"], key)) for key in keys]
    return float(1 / np.sqrt(np.mean(squares)))
