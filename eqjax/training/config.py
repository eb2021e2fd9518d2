"""The configuration of a training run: all fields with their defaults, the checks, and `resolve`.

`tokenizer_config` and `generator_config` return complete configurations with the published values; the files in
`configs/` change them. The data's fields are in `eqjax.data.config`, as evaluation uses them too.

An optional field is None where it is off. A command line sets it with --config.NAME=None, or for text with
--config.NAME= and nothing behind it.
"""

from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections import config_dict

from eqjax.data import default_config as data_config
from eqjax.typing import Config

# ── Fields and defaults ─────────────────────────────────────────────────────────────────────────


def _optional(value: Any = None) -> config_dict.FieldReference:
    """Returns a field that holds a number (or another Python literal), or None, also from a command line."""
    return config_dict.FieldReference(value, field_type=object)


def _optional_text() -> config_dict.FieldReference:
    return config_dict.placeholder(str)


def run_config() -> Config:
    """Returns the fields of a run, which both trainers have."""
    config: Config = ml_collections.ConfigDict()
    config.seed = 0  # Seed of parameters, batches and noise.
    config.batch_size = 256  # Images per step, of all processes and devices together.
    config.accumulation_steps = 1  # Microbatches per step, computed one after another to save memory.
    config.total_steps = 100_000  # Length of the run, steps.
    config.total_epochs = _optional()  # Length in passes over the training images; overrides total_steps.
    config.mesh = "data:-1"  # Devices along the axes data, fsdp and tensor; -1: all others. See eqjax.sharding.
    config.log_every = _optional(100)  # Steps between lines of metrics; None: no metrics.
    config.eval_every = _optional(1000)  # Steps between evaluations on held-out images; None: no evaluation.
    config.eval_images = 256  # Held-out images per evaluation; all of them if there are fewer.
    config.image_every = _optional(1000)  # Steps between images in the logs; None: no images.
    config.checkpoint_every = _optional(1000)  # Steps between checkpoints; None: no checkpoints.
    config.keep_checkpoints = 2  # Number of newest checkpoints that are kept.
    config.keep_every = _optional()  # Checkpoints at multiples of this step are kept for good; None: none of them.
    # "eval_loss:min": the evaluation metric whose best step is kept, its EMA weights as best.safetensors and its
    # checkpoint, if the step has one.
    config.keep_best = _optional_text()
    # Non-finite steps in a row that stop the run; None: it never stops.
    config.max_consecutive_nonfinite = _optional(10)
    config.wandb_project = _optional_text()  # Weights & Biases project to which logs also go; needs the wandb package.
    config.profile_from = _optional()  # First step of a profiler trace, counted from 1; None: no trace.
    config.profile_steps = 10  # Length of the trace, steps.
    return config


def optimizer_config() -> Config:
    """Returns the fields of an optimizer: Adam with a constant learning rate."""
    config: Config = ml_collections.ConfigDict()
    # "adamw"; or, for the tokenizer alone, "muon": orthogonalized updates of kernels, and AdamW elsewhere.
    config.name = "adamw"
    config.learning_rate = 1e-4  # Learning rate after the warm-up.
    # Batch size for which learning_rate is meant: it is scaled in proportion to batch_size; None: it is not scaled.
    config.lr_reference_batch_size = _optional()
    config.warmup_steps = 0.0  # Steps of linear warm-up from 0; may have a fraction.
    config.warmup_epochs = _optional()  # Warm-up in passes over the training images; overrides warmup_steps.
    config.schedule = "constant"  # After the warm-up: "constant", "cosine" or "step".
    config.final_lr_ratio = 0.0  # Cosine: learning rate at total_steps, as a fraction of learning_rate.
    config.decay_every = 30000  # Step: steps between drops, counted from the end of the warm-up.
    config.decay_rate = 0.2  # Step: factor of every drop.
    config.b1 = 0.9  # Decay of Adam's first moment.
    config.b2 = 0.95  # Decay of Adam's second moment.
    config.eps = 1e-8  # Adam's epsilon.
    config.weight_decay = 0.0  # Weight decay on the parameters of optim.weight_decay_mask; 0: Adam.
    config.grad_clip_norm = _optional()  # Largest global norm of the gradients; None: no clipping.
    config.ema_decay = 0.9999  # Decay of the EMA weights per step.
    config.ema_warmup = False  # EMA decay min(ema_decay, (1 + n) / (10 + n)) at step n.
    return config


def sampling_config(**changes: Any) -> Config:
    """Returns the fields of `eqjax.sampling.options.SamplingOptions`, which documents them, with `changes`."""
    config: Config = ml_collections.ConfigDict()
    config.guidance_scale = 1.0  # Classifier-free guidance scale; 1: no guidance.
    config.guidance_schedule = "linear"  # Over the columns: "linear" from 1 to the scale, or "constant".
    config.num_flow_steps = 100  # Steps of the ODE solver per column.
    config.solver = "euler"  # "euler", "heun" or "adams_bashforth".
    config.time_grid = "uniform"  # Times of the solver: "uniform", "shifted" or "cosine".
    config.temperature = 1.0  # Factor of the initial noise.
    config.max_position = _optional()  # Largest position in cross-attention; None: no limit.
    config.update(changes)
    return config


def metrics_config() -> Config:
    """Returns the fields of FID and its family, measured on samples during a generator's training."""
    config: Config = ml_collections.ConfigDict()
    config.every = _optional()  # Steps between measurements, a multiple of eval_every; None: none.
    config.num_images = 10_000  # Samples per measurement.
    config.reference = _optional_text()  # Statistics file of the real images; see `eqjax make-statistics`.
    config.nets_folder = _optional_text()  # Folder of Inception's weights; None: where `eqjax fetch-weights` puts them.
    config.sampling = sampling_config(num_flow_steps=50)  # Samples are as wide as training crops.
    return config


def objective_config() -> Config:
    """Returns the fields of the tokenizer's objective (see eqjax.training.tokenizer) with the published weights."""
    config: Config = ml_collections.ConfigDict()
    config.kl_weight = 0.01  # Weight of the KL term.
    config.l2_weight = 0.0  # Weight of the squared error beside L1; not published, useful without LPIPS.
    config.perceptual_weight = 1.0  # Weight of LPIPS; 0 needs no VGG weights.
    config.semantic_weight = 5.0  # Weight of the distance to DINOv2 features; 0 needs no DINOv2 weights.
    config.semantic_start = 20001  # Steps done before the semantic term is on.
    config.discriminator_loss = "hinge"  # "hinge" or "vanilla".
    # Norm of the adversarial term's gradient, as a fraction of the reconstruction terms'; 0: no discriminator.
    config.adversarial_weight = 0.5
    config.adversarial_start = 5001  # Steps done before the adversarial term is on.
    return config


def discriminator_config() -> Config:
    """Returns the fields of the tokenizer's discriminator, as published."""
    config: Config = ml_collections.ConfigDict()
    config.kind = "dino"  # Heads on frozen DINO features; or "patch": PatchGAN, which needs no pretrained file.
    config.channels = 64  # PatchGAN: channels of the first layer.
    config.num_layers = 3  # PatchGAN: layers that halve the image.
    return config


def tokenizer_module_config() -> Config:
    """Returns the fields of `eqjax.Tokenizer`, which documents them, with the published size."""
    config: Config = ml_collections.ConfigDict(convert_dict=False)  # `semantic` is None or a dict.
    config.channels = 128  # Base width.
    config.channel_multipliers = (1, 1, 2, 4, 4)  # Width of every level, in multiples of `channels`.
    config.num_res_blocks = 2  # ResBlocks per level of the encoder; the decoder has one more.
    config.attention_resolutions = (16,)  # Image heights at which ResBlocks are followed by attention.
    config.resolution = 256  # Image height, pixels.
    config.z_channels = 256  # Channels of the feature map before it is cut into columns.
    config.embed_dim = 256  # Channels of a latent.
    config.square_downsamples = 4  # Downsamplings that halve columns too; the others halve rows alone.
    config.semantic = _optional()  # Dict with the fields of a SemanticConfig; None: no semantic head.
    config.norm = "group"  # Or a local norm, such as "pixel".
    config.attention_window = _optional()  # Reach of attention to either side, latent columns; None: all.
    config.patch_size = 1  # Side of the patches on which the first level works, pixels.
    # Features per pixel of a block at full resolution that joins the decoder's patches; None: no such block.
    config.refine_channels = _optional()
    config.posterior_std = 2.5  # Bound of the posterior's standard deviation.
    config.dtype = "float32"  # Dtype of computation; parameters are float32.
    return config


def generator_module_config() -> Config:
    """Returns the fields of `eqjax.Generator`, which documents them, with the published size L."""
    config: Config = ml_collections.ConfigDict()
    config.width = 1024  # Channels of the transformer.
    config.depth = 32  # Layers.
    config.num_heads = 16  # Heads of self-attention and of cross-attention.
    config.latent_dim = 256  # Channels of a latent: the tokenizer's embed_dim.
    config.num_classes = 1000  # Number of classes, not counting the null class.
    config.num_cond_tokens = 16  # Tokens that a class becomes for cross-attention.
    config.window_size = _optional(4)  # Columns that a column attends to, itself included; None: all before it.
    config.max_rope_shift = 16  # Positions are shifted by a random number below this, per training step.
    config.flow_width = 1280  # Channels of the flow head.
    config.flow_depth = 12  # Residual blocks of the flow head.
    config.flow_batch_mult = 4  # Flow times drawn per column and training step.
    config.dropout_rate = 0.1  # Dropout on attention weights, attention outputs and in the MLP.
    config.label_dropout_rate = 0.1  # Probability that training replaces a label by the null class.
    config.remat = "none"  # Rematerialization: "none", "full", "dots" or "projections".
    config.dtype = "float32"  # Dtype of computation; parameters are float32.
    return config


def tokenizer_config() -> Config:
    """Returns the complete configuration of a tokenizer's training: published sizes, weights and optimizers."""
    config = run_config()
    config.trainer = "tokenizer"
    config.tokenizer = tokenizer_module_config()
    config.objective = objective_config()
    config.discriminator = discriminator_config()
    config.freeze_encoder = False  # Stage 2: trains the decoder's side alone; needs stage1_weights.
    config.stage1_weights = _optional_text()  # Name, file or workdir whose EMA weights the run starts from.
    config.data = data_config()
    config.optimizer = optimizer_config()
    config.optimizer.update(
        learning_rate=1.92e-4,
        warmup_steps=3000.0,
        schedule="step",
        b1=0.5,
        b2=0.9,
        ema_decay=0.99,
        ema_warmup=True,
    )
    config.discriminator_optimizer = optimizer_config()
    config.discriminator_optimizer.update(learning_rate=1.92e-4, b1=0.5, b2=0.9)
    return config


def generator_config() -> Config:
    """Returns the complete configuration of a generator's training: published size L and optimizer."""
    config = run_config()
    config.trainer = "generator"
    config.generator = generator_module_config()
    config.tokenizer_weights = _optional_text()  # Name, file or workdir of the frozen tokenizer; required.
    # Indices of the columns whose loss is trained, (0, 1, 2, 3), to test transfer to the others; None: all.
    config.loss_columns = config_dict.placeholder(tuple)
    config.sampling = sampling_config(guidance_scale=3.0, num_flow_steps=50)  # For images in the logs.
    config.sampling.num_columns = 16  # Width of these images, columns.
    config.metrics = metrics_config()
    config.data = data_config()
    config.optimizer = optimizer_config()
    config.optimizer.update(learning_rate=1e-4, weight_decay=0.02, grad_clip_norm=3.0, ema_decay=0.9999)
    return config


# ── Checks ──────────────────────────────────────────────────────────────────────────────────────

# Smallest values of integer fields; optional ones may also be None.
_LEAST = {
    "batch_size": 1,
    "accumulation_steps": 1,
    "keep_checkpoints": 1,
    "total_steps": 0,
    "profile_steps": 1,
}
_LEAST_OPTIONAL = {
    "log_every": 1,
    "eval_every": 1,
    "image_every": 1,
    "checkpoint_every": 1,
    "keep_every": 1,
    "max_consecutive_nonfinite": 1,
    "profile_from": 1,
    "metrics.every": 1,
    "optimizer.lr_reference_batch_size": 1,
    "discriminator_optimizer.lr_reference_batch_size": 1,
}


def check_config(config: Config, default: Config) -> None:
    """Checks that a configuration has the fields of `default`, with values in their ranges.

    The fields of modules and of the data are checked where modules and data are made.

    Args:
      config: the configuration.
      default: `tokenizer_config()` or `generator_config()`.

    Raises:
      ValueError: the configuration is another trainer's; fields are unknown, missing or out of range.
    """
    if (found := config.get("trainer")) != default.trainer:
        raise ValueError(
            f"the configuration has trainer={found!r}, this command trains {default.trainer!r}; give it a "
            f"configuration made from {default.trainer}_config()."
        )
    given, known = dict(_fields(config)), dict(_fields(default))
    unknown, missing = sorted(given.keys() - known.keys()), sorted(known.keys() - given.keys())
    if unknown or missing:
        raise ValueError(
            f"the configuration does not have the fields of {default.trainer}_config().\n"
            f"  unknown: {unknown}\n  missing: {missing}\n  known: {sorted(known)}"
        )
    for name, least in (_LEAST | _LEAST_OPTIONAL).items():
        if name in given:
            _check_integer(name, given[name], least, optional=name in _LEAST_OPTIONAL)
    if config.batch_size % config.accumulation_steps:
        raise ValueError(
            f"batch_size={config.batch_size} is not a multiple of accumulation_steps={config.accumulation_steps}."
        )
    if config.keep_best and config.eval_every is None:
        raise ValueError(f"keep_best={config.keep_best!r} needs evaluations, but eval_every is None: set it.")
    if config.total_epochs is not None and not config.total_epochs > 0:
        raise ValueError(f"total_epochs={config.total_epochs} must be above 0, or None to count total_steps.")
    for name, value in given.items():
        if name.endswith("warmup_epochs") and value is not None and not value >= 0:
            raise ValueError(f"{name}={value} must be at least 0, or None to count warmup_steps.")


def _fields(part: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (name, value) of every field, except in the sections of modules."""
    for key, value in part.items():
        if isinstance(value, ml_collections.ConfigDict) and key not in ("tokenizer", "generator"):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_integer(name: str, value: Any, least: int, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        alternative = ", or None to turn it off" if optional else ""
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}{alternative}.")


# ── Epochs to steps ─────────────────────────────────────────────────────────────────────────────


def resolve(config: Config) -> Config:
    """Converts epochs to steps, and scales learning rates to the batch size.

    Args:
      config: a configuration with the fields of `run_config`, `data` and `optimizer`, in their ranges.

    Returns:
      A copy without `total_epochs`, `warmup_epochs` and `lr_reference_batch_size`; resolving it again changes nothing.
    """
    config = config.copy_and_resolve_references()
    optimizers = [config[name] for name in ("optimizer", "discriminator_optimizer") if name in config]
    if config.total_epochs is not None:
        config.total_steps = max(1, round(config.total_epochs * _steps_per_epoch(config)))
    for optimizer in optimizers:
        if optimizer.warmup_epochs is not None:
            optimizer.warmup_steps = float(optimizer.warmup_epochs * _steps_per_epoch(config))
        if optimizer.lr_reference_batch_size is not None:
            optimizer.learning_rate *= config.batch_size / optimizer.lr_reference_batch_size
        optimizer.warmup_epochs = optimizer.lr_reference_batch_size = None
    config.total_epochs = None
    return config


def _steps_per_epoch(config: Config) -> float:
    from eqjax.data import make_source  # Imports JAX, which configurations that count steps need not wait for.

    return len(make_source(config.data)) / config.batch_size
