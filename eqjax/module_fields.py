"""The fields of the modules and of sampling, by which these check themselves: defaults, values, meanings.

The fields of training runs are in `eqjax.training.fields`, those of the data in `eqjax.data.config`.
"""

from eqjax.config_fields import Field, Fields
from eqjax.rules import Boolean, Choice, Either, FloatDtype, Integer, Items, Number

# A tokenizer with more levels would need images of 2**32 rows.
_MAX_LEVELS = 32

NORMS = ("group", "pixel")
PADDINGS = ("reflect", "circular")
RESAMPLINGS = ("shuffle", "kaiser", "fft")
REMAT = ("none", "full", "dots", "projections")
GUIDANCE_SCHEDULES = ("linear", "constant")
SOLVERS = ("euler", "heun", "adams_bashforth")
# Of products of float32 numbers, see `eqjax.precision`.
PRECISION = Choice(("highest", "tf32", "bfloat16"))
GPU_KERNELS = ("auto", "fused", "plain")
TIME_GRIDS = ("uniform", "shifted", "cosine")

_COUNT = Integer(least=1)
_MULTIPLIERS = Items(_COUNT, least=1, most=_MAX_LEVELS)

SEMANTIC: dict[str, Field] = {
    "channels": Field(64, _COUNT, "Base width."),
    "channel_multipliers": Field((8, 12), _MULTIPLIERS, "Width of every level, in multiples of `channels`."),
    "num_res_blocks": Field(2, _COUNT, "ResBlocks per level."),
    "out_channels": Field(768, _COUNT, "Channels of the predicted features; 768 for DINOv2 ViT-B/14."),
    "downsamples": Field(0, Integer(least=0), "Number of levels that halve rows and columns."),
}

TOKENIZER: dict[str, Field] = {
    "channels": Field(128, _COUNT, "Base width."),
    "channel_multipliers": Field((1, 1, 2, 4, 4), _MULTIPLIERS, "Width of every level, in multiples of `channels`."),
    "num_res_blocks": Field(2, _COUNT, "ResBlocks per level of the encoder; the decoder has one more."),
    "attention_resolutions": Field(
        (16,), Items(_COUNT, most=_MAX_LEVELS), "Image heights at which ResBlocks are followed by attention."
    ),
    "resolution": Field(256, _COUNT, "Image height, pixels."),
    "z_channels": Field(256, _COUNT, "Channels of the feature map before it is cut into columns."),
    "embed_dim": Field(256, _COUNT, "Channels of a latent."),
    "square_downsamples": Field(4, Integer(least=0), "Downsamplings that halve columns too; others halve rows alone."),
    "semantic": Field(
        None, Fields(SEMANTIC, optional=True), "Dict with the fields of a SemanticConfig; None: no semantic head."
    ),
    "norm": Field("group", Choice(NORMS), "Norms over the whole image, as published; or of each position: local."),
    "attention_window": Field(
        None, Integer(least=0, optional=True), "Reach of attention to either side, latent columns; None: all."
    ),
    "patch_size": Field(1, _COUNT, "Side of the patches on which the first level works, pixels."),
    "refine_channels": Field(
        None,
        Integer(least=1, optional=True, none_means="no such block"),
        "Features per pixel of a block at full resolution that joins the decoder's patches; None: no such block.",
    ),
    "padding": Field(
        "reflect", Choice(PADDINGS), "Beyond the left and right ends: mirrored, as published; or the other end."
    ),
    "resample": Field(
        "shuffle", Choice(RESAMPLINGS), "Resampling along the width: as published; or alias-free, with these filters."
    ),
    "posterior_std": Field(2.5, Number(least=0), "Bound of the posterior's standard deviation."),
    "dtype": Field("float32", FloatDtype(), "Dtype of computation; parameters are float32."),
}

GENERATOR: dict[str, Field] = {
    "width": Field(1024, _COUNT, "Channels of the transformer, a multiple of 2 · num_heads."),
    "depth": Field(32, _COUNT, "Layers."),
    "num_heads": Field(16, _COUNT, "Heads of self-attention and of cross-attention."),
    "latent_dim": Field(256, _COUNT, "Channels of a latent: the tokenizer's embed_dim."),
    "num_classes": Field(1000, _COUNT, "Number of classes, not counting the null class."),
    "num_cond_tokens": Field(16, _COUNT, "Tokens that a class becomes for cross-attention."),
    "window_size": Field(
        4, Integer(least=1, optional=True), "Columns that a column attends to, itself included; None: all before it."
    ),
    "max_rope_shift": Field(16, _COUNT, "Positions are shifted by a random number below this, per training step."),
    "cross_rope": Field(
        True, Boolean(), "Rotates cross-attention's queries by the column index, as published; False: no column index."
    ),
    "flow_width": Field(1280, _COUNT, "Channels of the flow head."),
    "flow_depth": Field(12, _COUNT, "Residual blocks of the flow head."),
    "flow_batch_mult": Field(4, _COUNT, "Flow times drawn per column and training step."),
    "dropout_rate": Field(
        0.1, Number(least=0, below=1), "Dropout on attention weights, attention outputs and in the MLP."
    ),
    "label_dropout_rate": Field(
        0.1, Number(least=0, most=1), "Probability that training replaces a label by the null class."
    ),
    "context_noise": Field(
        0.0,
        Number(least=0, most=10),
        "Largest standard deviation of noise on the latents that columns attend to in training; not published, against "
        "errors that grow along a strip.",
    ),
    "remat": Field("none", Choice((*REMAT, False, True)), "Rematerialization, which trades time for memory."),
    "dtype": Field("float32", FloatDtype(), "Dtype of computation; parameters are float32."),
}

_SCALE = Number(least=0, traceable=True)

SAMPLING: dict[str, Field] = {
    "guidance_scale": Field(
        1.0, Either((_SCALE, Items(_SCALE, least=1)), traceable=True), "Classifier-free guidance scale; 1: no guidance."
    ),
    "guidance_schedule": Field(
        "linear", Choice(GUIDANCE_SCHEDULES), "Over the columns: the scale rises from 1, or is constant."
    ),
    # Times are float32: with more steps the first ones would fall together.
    "num_flow_steps": Field(100, Integer(least=1, most=2**24), "Steps of the ODE solver per column."),
    "solver": Field("euler", Choice(SOLVERS), "ODE solver; heun evaluates the flow head twice per step."),
    "time_grid": Field(
        "uniform",
        Either((Choice(TIME_GRIDS), Items(Number(least=0, most=1), least=2))),
        "Times of the solver: a named grid, or num_flow_steps + 1 times that fall from 1 to 0.",
    ),
    "temperature": Field(1.0, Number(least=0, traceable=True), "Factor of the initial noise."),
    "max_position": Field(
        None, Integer(least=0, optional=True, traceable=True), "Largest position in cross-attention; None: no limit."
    ),
    "modulation_times": Field(
        None,
        Integer(least=2, most=64, optional=True, none_means="at every evaluation"),
        "Times at which modulations are computed, to be interpolated; None: at every evaluation, exactly.",
    ),
    "parallel_steps": Field(
        None,
        Integer(least=2, optional=True, none_means="one after another"),
        "Solver steps computed at once, in sweeps until they settle; None: one after another.",
    ),
    "parallel_tolerance": Field(
        1e-4,
        Number(above=0, most=1, traceable=True),
        "Largest difference (RMS of a latent) from steps one after another; of parallel_steps alone.",
    ),
    "gpu_kernels": Field(
        "auto", Choice(GPU_KERNELS), "Kernels of a column: XLA's (plain); fused, for an NVIDIA GPU; or chosen."
    ),
}
