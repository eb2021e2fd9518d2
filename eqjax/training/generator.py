"""Training the windowed causal generator on a frozen tokenizer.

    image ─encoder─▶ posterior ─draw, × latent scale─▶ latents ─generator─▶ rectified-flow loss

Images are encoded inside the jitted step, or the latents' means come from a cache (see `latents`).

Source: Equivariant Image Modeling, arXiv 2503.18948, section 3.2 and appendix.
"""

import functools

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqjax import pixels, pretrained, published, sharding
from eqjax.data import make_source
from eqjax.evaluation import Extractor, GenerationEvaluator, GenerationOptions, networks, statistics
from eqjax.generator import LOGICAL_AXES, column_weights, mean_loss
from eqjax.latent_cache import check
from eqjax.latent_cache.encode import LatentEncoder, encoder_params, latent_scale
from eqjax.model import Model
from eqjax.training import loop, nan_report, optim
from eqjax.training.config import check_config, resolve
from eqjax.training.config import generator_config as default_config
from eqjax.training.state import TrainState, ema_update, stream


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
    check_config(config, default_config())
    config = resolve(config)
    return loop.train(config, workdir, make_stage(config, workdir))


def load_tokenizer(config):
    """The frozen tokenizer's `Weights`, checked against data and generator.

    Raises:
      ValueError: no tokenizer in the file, or another latent size or image height.
    """
    if not config.tokenizer_weights:
        raise ValueError("set tokenizer_weights: a shipped model's name, a weights file, or a tokenizer run's workdir.")
    path = pretrained.resolve_path(config.tokenizer_weights)
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
        logging.warning("%s states no latent scale; taking the published %s.", path, published.LATENT_SCALE)
    return weights


def make_stage(config, workdir=None):
    """The `loop.Stage` of a generator configuration; `workdir` is where `config.metrics` draws its images."""
    generator = pretrained.build_module("generator", dict(config.generator))
    weights = load_tokenizer(config)
    names = _check_data(config, generator.num_classes, weights)
    tokenizer = weights.modules["tokenizer"]
    scale = latent_scale(weights)
    # Frozen parameters are arguments of every program that uses them, never its constants.
    frozen = weights.params["tokenizer"]
    encoder = {} if config.data.source == "latents" else encoder_params(frozen)
    optimizer, _ = optim.make_optimizer(config.optimizer, config.total_steps)
    encode = LatentEncoder(tokenizer, scale)
    steps = make_steps(generator, optimizer, encode, config)
    # Its parameters are not made yet: their shapes.
    model = Model(tokenizer, frozen, generator, pretrained.abstract_params(generator), scale, names)
    sample_metrics = _make_sample_metrics(config, model, workdir) if config.metrics.every else None

    def init(key):
        params = generator.init_params(key)
        return TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))

    @jax.jit
    def eval_losses(frozen, params, batch, key):
        latents, labels = encode(frozen, batch, stream(key, "posterior"))
        rngs = {name: stream(key, name) for name in ("flow", "rope")}
        return generator.apply(
            {"params": params}, latents, labels, deterministic=True, method="per_image_losses", rngs=rngs
        )

    open_evaluation = functools.partial(loop.held_out, config)

    def evaluate(state):
        # The same noise every time, so that values can be compared from step to step.
        key, losses, mesh = jax.random.key(0), [], sharding.mesh_of(state)
        on_mesh = sharding.put(encoder, sharding.replicated(mesh))
        for i, batch in enumerate(open_evaluation(mesh)):
            batch = sharding.shard_batch(batch, mesh)
            values = eval_losses(on_mesh, state.ema_params, batch, jax.random.fold_in(key, i))
            losses.append(sharding.gather(values)[sharding.gather(batch["mask"])])
        columns, step = np.mean(np.concatenate(losses), axis=0), int(state.step)
        results = {"eval_loss": float(np.mean(columns)), "eval_column_loss": columns}
        if config.metrics.every and (step % config.metrics.every == 0 or step == config.total_steps):
            results |= sample_metrics(step, model_of(state))
        return results

    def model_of(state):
        return model.replace(generator_params=sharding.local(state.ema_params))

    def show_images(state, batch):
        del batch
        images = model_of(state).sample(
            list(range(min(16, generator.num_classes))),
            **config.sampling,
        )
        return {"samples": pixels.grid(images, columns=2)}

    def export(state, path):
        params = sharding.gather(state.ema_params)
        if jax.process_index():
            return
        exported = pretrained.Weights(
            {"tokenizer": tokenizer, "generator": generator},
            {"tokenizer": frozen, "generator": params},
            latent_scale=scale,
            class_names=names,
            notes=f"generator after {int(state.step)} steps; config: {config.to_json_best_effort()}\n{weights.notes}",
        )
        pretrained.save(path, exported)

    def diagnose(state, batch, key):
        params, batch = sharding.gather(state.params), sharding.gather(batch)
        rows = functools.partial(jax.jit(encode), encoder)
        return nan_report.first_nonfinite_module(generator, params, rows, batch, key, config.accumulation_steps)

    step, plain_step = (jax.tree_util.Partial(step, encoder) for step in steps)
    return loop.Stage(
        init, step, evaluate, show_images, export, LOGICAL_AXES, diagnose, plain_step,
        tokenizer=check.encoder_fingerprint(frozen), open_evaluation=open_evaluation,
    )  # fmt: skip


def _check_data(config, num_classes, weights):
    """Names of the classes of a configuration's data, which fit the generator and the tokenizer.

    Raises:
      ValueError: another number of classes; a cache of another tokenizer; columns that there are not.
    """
    source = make_source(config.data)
    if len(source.class_names) != num_classes:
        few = ", ".join([*source.class_names[:5], *["…"][: len(source.class_names) > 5]])
        raise ValueError(
            f"generator.num_classes={num_classes}, but the data has {len(source.class_names)} classes "
            f"({few}): add --config.generator.num_classes={len(source.class_names)}."
        )
    if config.data.source == "latents":
        evaluation = make_source(config.data, train=not config.eval_every)  # Where it is wanted.
        check.check_caches(source, evaluation, weights, config.data, config.tokenizer_weights)
    if config.loss_columns is not None:
        column_weights(config.data.width // weights.modules["tokenizer"].column_width, config.loss_columns)
    return tuple(source.class_names)


def _make_sample_metrics(config, model, workdir):
    """(step, model) → {"fid": …}; what cannot be drawn or compared is refused here, before the first step."""
    metrics = config.metrics
    if not config.eval_every or metrics.every % config.eval_every:
        raise ValueError(f"metrics.every={metrics.every} must be a multiple of eval_every={config.eval_every}.")
    if not metrics.reference:
        raise ValueError("set metrics.reference: a statistics file, written by `eqjax make-statistics` or ADM's.")
    evaluator = GenerationEvaluator(
        model,
        GenerationOptions(num_columns=config.data.width // model.tokenizer.column_width, **metrics.sampling),
        metrics.num_images,
        extractor=Extractor(networks.inception(metrics.nets_folder)),
        reference=statistics.load(metrics.reference),
        reference_name=metrics.reference,
    )
    return functools.partial(evaluator.evaluate_step, workdir=workdir)


def make_steps(generator, optimizer, encode, config):
    """The training step, (frozen, state, batch, key) → (state, metrics), and the same without recomputation."""
    schedule = optim.make_schedule(config.optimizer, config.total_steps)

    def make_step(generator):
        def loss_fn(params, frozen, batch, key):
            latents, labels = encode(frozen, batch, stream(key, "posterior"))
            rngs = {name: stream(key, name) for name in ("flow", "rope", "label", "dropout")}
            losses = generator.apply({"params": params}, latents, labels, method="column_losses", rngs=rngs)
            return mean_loss(losses, config.loss_columns), losses

        def step(frozen, state, batch, key):
            def compute(_, batch, key):
                return jax.value_and_grad(loss_fn, has_aux=True)(state.params, frozen, batch, key), None

            ((loss, columns), grads), _ = optim.accumulate_gradients(compute, batch, key, config.accumulation_steps)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema_params = ema_update(state.ema_params, params, optim.ema_decay(config.optimizer, state.step + 1))
            metrics = {
                "loss": loss,
                "grad_norm": optax.tree.norm(grads),
                "learning_rate": schedule(state.step),
                "column_loss": columns,
            }
            return TrainState(state.step + 1, params, ema_params, opt_state), metrics

        return step

    return make_step(generator), make_step(generator.clone(remat=False))
