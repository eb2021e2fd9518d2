"""The fields of both trainers' configurations: the default of each, the values it may have, and what it means.

`TOKENIZER` and `GENERATOR` are the complete tables, with the published values; but generators' EMA warms up, which the
files of the published recipes turn off. The fields of modules and of sampling
are in `eqjax.module_fields`, those of the data in `eqjax.data.config`.

An optional field is None where it is off. A command line sets it with --config.NAME=None, or for text with
--config.NAME= and nothing behind it.
"""

from eqjax import module_fields
from eqjax.config_fields import Field, Table, with_defaults
from eqjax.data.config import FIELDS as DATA
from eqjax.module_fields import PRECISION
from eqjax.rules import Boolean, Choice, Integer, Items, Number, Text

_COUNT = Integer(least=1)
_EVERY = Integer(least=1, optional=True, none_means="off")
_TEXT = Text(optional=True, may_be_empty=True)
_WEIGHT = Number(least=0)
_FRACTION = Number(least=0, most=1)
_DECAY = Number(least=0, below=1)

RUN: Table = {
    "seed": Field(0, Integer(least=0, most=2**32 - 1), "Seed of parameters, batches and noise."),
    "batch_size": Field(256, _COUNT, "Images per step, of all processes and devices together."),
    "accumulation_steps": Field(1, _COUNT, "Microbatches per step, computed one after another to save memory."),
    "total_steps": Field(100_000, Integer(least=0), "Length of the run, steps."),
    "total_epochs": Field(
        None,
        Number(above=0, optional=True, none_means="total_steps counts"),
        "Length in passes over the training images; overrides total_steps.",
    ),
    "mesh": Field(
        "data:-1", Text(), "Devices along the axes data, fsdp and tensor; -1: all others. See eqjax.sharding."
    ),
    "precision": Field(
        "highest", PRECISION, "Of products of float32 numbers: highest is float32, as published; tf32; bfloat16."
    ),
    "log_every": Field(100, _EVERY, "Steps between lines of metrics; None: no metrics."),
    "eval_every": Field(1000, _EVERY, "Steps between evaluations on held-out images; None: no evaluation."),
    "eval_images": Field(256, _COUNT, "Held-out images per evaluation; all of them if there are fewer."),
    "image_every": Field(1000, _EVERY, "Steps between images in the logs; None: no images."),
    "checkpoint_every": Field(1000, _EVERY, "Steps between checkpoints; None: no checkpoints."),
    "keep_checkpoints": Field(2, _COUNT, "Number of newest checkpoints that are kept."),
    "keep_every": Field(None, _EVERY, "Checkpoints at multiples of this step are kept for good; None: none of them."),
    "keep_best": Field(
        None,
        Text(pattern=r"([^:]+:(min|max))?", form="'name:min' or 'name:max', as in 'eval_loss:min'", optional=True),
        "Evaluation metric whose best step is kept: its EMA weights as best.safetensors, and its checkpoint if any.",
    ),
    "max_consecutive_nonfinite": Field(
        10, Integer(least=1, optional=True), "Non-finite steps in a row that stop the run; None: it never stops."
    ),
    "wandb_project": Field(None, _TEXT, "Weights & Biases project to which logs also go; needs the wandb package."),
    "profile_from": Field(None, _EVERY, "First step of a profiler trace, counted from 1; None: no trace."),
    "profile_steps": Field(10, _COUNT, "Length of the trace, steps."),
}

OPTIMIZER: Table = {
    "name": Field(
        "adamw",
        Choice(("adamw", "muon")),
        "AdamW; or, for the tokenizer alone, orthogonalized updates of kernels, and AdamW elsewhere.",
    ),
    "learning_rate": Field(1e-4, Number(least=0, most=10), "Learning rate after the warm-up."),
    "lr_reference_batch_size": Field(
        None,
        Integer(least=1, optional=True, none_means="no scaling"),
        "Batch size for which learning_rate is meant: it is scaled in proportion to batch_size; None: it is not.",
    ),
    "warmup_steps": Field(0.0, Number(least=0), "Steps of linear warm-up from 0; may have a fraction."),
    "warmup_epochs": Field(
        None,
        Number(least=0, optional=True, none_means="warmup_steps counts"),
        "Warm-up in passes over the training images; overrides warmup_steps.",
    ),
    "schedule": Field("constant", Choice(("constant", "cosine", "step")), "Learning rate after the warm-up."),
    "final_lr_ratio": Field(0.0, _FRACTION, "Cosine: learning rate at total_steps, as a fraction of learning_rate."),
    "decay_every": Field(30000, Number(above=0), "Step: steps between drops, counted from the end of the warm-up."),
    "decay_rate": Field(0.2, Number(above=0, most=1), "Step: factor of every drop."),
    "b1": Field(0.9, _DECAY, "Decay of Adam's first moment."),
    "b2": Field(0.95, _DECAY, "Decay of Adam's second moment."),
    "eps": Field(1e-8, Number(above=0, most=1), "Adam's epsilon."),
    "weight_decay": Field(0.0, _WEIGHT, "Weight decay on the parameters of optim.weight_decay_mask; 0: Adam."),
    "grad_clip_norm": Field(
        None,
        Number(above=0, optional=True, none_means="no clipping"),
        "Largest global norm of the gradients; None: no clipping.",
    ),
    "ema_decay": Field(0.9999, _DECAY, "Decay of the EMA weights per step."),
    "ema_warmup": Field(
        True,
        Boolean(),
        "EMA decay min(ema_decay, (1 + n) / (10 + n)) at step n, which forgets the random start; not as published.",
    ),
}

METRICS: Table = {
    "every": Field(None, _EVERY, "Steps between measurements, a multiple of eval_every; None: none."),
    "num_images": Field(10_000, Integer(least=2), "Samples per measurement."),
    "reference": Field(None, _TEXT, "Statistics file of the real images; see `eqjax make-statistics`."),
    "nets_folder": Field(None, _TEXT, "Folder of Inception's weights; None: where `eqjax fetch-weights` puts them."),
    "sampling": with_defaults(module_fields.SAMPLING, num_flow_steps=50),
}

EQUIVARIANCE: Table = {
    "implicit_probability": Field(
        0.0,
        _FRACTION,
        "Fraction of the steps that decode transformed latents and compare with transformed images; 0.5 as in EQ-VAE.",
    ),
    "explicit_weight": Field(
        0.0,
        _WEIGHT,
        "Weight of the relative errors of encoder and decoder under a transform beside L1; needs stage1_weights.",
    ),
    "transforms": Field(
        ("scale", "flip"),
        Items(Choice(("scale", "flip", "shift", "warp")), least=1),
        "Kinds of horizontal transforms that are drawn; a step's transform is a product of one of each.",
    ),
    "scales": Field(
        ("1/4", "1/2", "3/4", "1"),
        Items(Text(pattern=r"[0-9]{1,4}(/[0-9]{1,4})?", form="a fraction in text, such as '3/4'"), least=1),
        "Scale: widths of transformed images over those of images; each is a program of its own.",
    ),
    "shift_columns": Field(0.5, Number(above=0, most=1000), "Shift: the largest to either side, columns."),
    "warp_strength": Field(0.25, Number(above=0, most=10), "Warp: standard deviation of the log of local scales."),
    "warp_knots": Field(8, Integer(least=1, most=1000), "Warp: intervals between its knots over the image's width."),
    "interpolation": Field(
        "linear", Choice(("linear", "fourier")), "Interpolation of images and columns; fourier is band-limited."
    ),
    "start": Field(0, Integer(least=0), "Steps done before transforms and the stereo term are on."),
    "soft_power": Field(
        None,
        Number(above=0, most=100, optional=True, none_means="off"),
        "Weigh each kind of transforms by the overlap of transformed data with data to this power, one kind per step, "
        "so that kinds which the data lack are let go of; 2 as in PER. None: all weigh alike.",
    ),
    "soft_steps": Field(
        500, Integer(least=1, most=1_000_000), "Steps of the critic that measures each kind's overlap before the run."
    ),
    "collapse_threshold": Field(
        0.5,
        _FRACTION,
        "Explicit errors are off for good once the spread of latents is below this fraction of its start; 0: never.",
    ),
    "stereo_weight": Field(
        0.0, _WEIGHT, "Weight of the retrieval of columns over the two views of stereo pairs, beside L1; 0: none."
    ),
    "stereo_pairs": Field(
        None, _TEXT, "Rectified pairs: an .npz file or a folder of them; None: the pair that scikit-image ships."
    ),
    "stereo_windows": Field(8, Integer(least=1, most=10_000), "Corresponding windows per step and microbatch."),
    "stereo_columns": Field(4, Integer(least=1, most=10_000), "Width of these windows, columns."),
    "stereo_temperature": Field(
        0.01, Number(above=0, most=100), "Width of the smooth step of the retrieval, in units of the cosine."
    ),
}

OBJECTIVE: Table = {
    "kl_weight": Field(0.01, _WEIGHT, "Weight of the KL term."),
    "l2_weight": Field(0.0, _WEIGHT, "Weight of the squared error beside L1; not published, useful without LPIPS."),
    "spectrum_weight": Field(
        0.0,
        _WEIGHT,
        "Weight of the distance of local amplitudes beside L1; not published, keeps detail without LPIPS.",
    ),
    "seam_weight": Field(
        0.0,
        _WEIGHT,
        "Weight of the distance of roughness by place in a column beside L1; not published, against seams.",
    ),
    "perceptual_weight": Field(1.0, _WEIGHT, "Weight of LPIPS; 0 needs no VGG weights."),
    "semantic_weight": Field(5.0, _WEIGHT, "Weight of the distance to DINOv2 features; 0 needs no DINOv2 weights."),
    "semantic_start": Field(20001, Integer(least=0), "Steps done before the semantic term is on."),
    "discriminator_loss": Field("hinge", Choice(("hinge", "vanilla")), "Loss of the discriminator."),
    "adversarial_weight": Field(
        0.5,
        _WEIGHT,
        "Norm of the adversarial term's gradient, as a fraction of the reconstruction terms'; 0: no discriminator.",
    ),
    "adversarial_start": Field(5001, Integer(least=0), "Steps done before the adversarial term is on."),
    "equivariance": EQUIVARIANCE,
}

DISCRIMINATOR: Table = {
    "kind": Field(
        "dino",
        Choice(("dino", "patch")),
        "Heads on frozen DINO features; or PatchGAN, which needs no pretrained file.",
    ),
    "channels": Field(64, _COUNT, "PatchGAN: channels of the first layer."),
    "num_layers": Field(3, _COUNT, "PatchGAN: layers that halve the image."),
    "norm": Field(
        "batch",
        Choice(("batch", "spectral")),
        "PatchGAN: statistics of the batch, as published; or of kernels, which shows how much detail images have.",
    ),
}

SAMPLED: Table = {
    "generator_weights": Field(
        None,
        _TEXT,
        "Stage 2: name, file or workdir of a generator, whose decoded samples the discriminator sees too; None: none.",
    ),
    "num_images": Field(2048, _COUNT, "Samples that are drawn before the first step, of all classes alike."),
    "sampling": with_defaults(module_fields.SAMPLING, guidance_scale=3.0, num_flow_steps=50),
}

TOKENIZER: Table = {
    **RUN,
    "trainer": Field("tokenizer", Choice(("tokenizer",)), "Which model the configuration trains."),
    "tokenizer": module_fields.TOKENIZER,
    "objective": OBJECTIVE,
    "discriminator": DISCRIMINATOR,
    "sampled": SAMPLED,
    "freeze_encoder": Field(False, Boolean(), "Stage 2: trains the decoder's side alone; needs stage1_weights."),
    "stage1_weights": Field(None, _TEXT, "Name, file or workdir whose EMA weights the run starts from."),
    "data": DATA,
    "optimizer": with_defaults(
        OPTIMIZER,
        learning_rate=1.92e-4,
        warmup_steps=3000.0,
        schedule="step",
        b1=0.5,
        b2=0.9,
        ema_decay=0.99,
    ),
    "discriminator_optimizer": with_defaults(OPTIMIZER, learning_rate=1.92e-4, b1=0.5, b2=0.9),
}

GENERATOR: Table = {
    **RUN,
    "trainer": Field("generator", Choice(("generator",)), "Which model the configuration trains."),
    "generator": module_fields.GENERATOR,
    "tokenizer_weights": Field(None, _TEXT, "Name, file or workdir of the frozen tokenizer; required."),
    "initial_weights": Field(
        None,
        _TEXT,
        "Name, file or workdir of a generator to fine-tune; classes are matched by name. None: random start.",
    ),
    "loss_columns": Field(
        None,
        Items(Integer(least=0), least=1, optional=True, none_means="all"),
        "Indices of the columns whose loss is trained, (0, 1, 2, 3), to test transfer to the others; None: all.",
    ),
    "dropout_rng": Field(
        "threefry2x32",
        Choice(("threefry2x32", "rbg", "unsafe_rbg")),
        "Generator of dropout's random bits; rbg is that of the device, with other numbers on each backend.",
    ),
    # For images in the logs.
    "sampling": {
        **with_defaults(module_fields.SAMPLING, guidance_scale=3.0, num_flow_steps=50),
        "num_columns": Field(16, _COUNT, "Width of the images in the logs, columns."),
    },
    "metrics": METRICS,
    "data": DATA,
    "optimizer": with_defaults(OPTIMIZER, learning_rate=1e-4, weight_decay=0.02, grad_clip_norm=3.0, ema_decay=0.9999),
}
