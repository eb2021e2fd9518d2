"""Arrays recorded from the reference implementation, and the models that they belong to."""

import functools
import json
import pathlib

import numpy as np

from eqjax import Generator, Tokenizer, convert
from tests import reference_weights

GOLDEN = pathlib.Path(__file__).parent / "golden"


def relative_error(out, reference):
    """Returns |out − reference| / |reference| over all values."""
    out, reference = np.asarray(out, np.float64), np.asarray(reference, np.float64)
    assert out.shape == reference.shape
    return np.linalg.norm(out - reference) / np.linalg.norm(reference)


def recorded_tokenizer(fields, semantic, embed_dim):
    """Returns the `Tokenizer` of a recorded configuration, which has the reference's names."""
    return Tokenizer(
        channels=fields["ch"],
        channel_multipliers=fields["ch_mult"],
        num_res_blocks=fields["num_res_blocks"],
        attention_resolutions=fields["attn_resolutions"],
        resolution=fields["resolution"],
        z_channels=fields["z_channels"],
        embed_dim=embed_dim,
        square_downsamples=fields["len_down_scale"],
        semantic=dict(
            channels=semantic["ch"],
            channel_multipliers=semantic["ch_mult"],
            num_res_blocks=semantic["num_res_blocks"],
            out_channels=semantic["out_ch"],
            downsamples=semantic["downsample_scale"],
        ),
    )


@functools.cache
def tokenizer_case(name):
    """Returns (tokenizer, parameters, arrays) of a recorded tokenizer."""
    meta = json.loads((GOLDEN / f"{name}.json").read_text())
    tokenizer = recorded_tokenizer(meta["ddconfig"], meta["semanticconfig"], meta["embed_dim"])
    state = reference_weights.state_dict(meta["parameters"])
    return tokenizer, convert.tokenizer_params(state, tokenizer), np.load(GOLDEN / f"{name}.npz")


@functools.cache
def generator_case(window_size=4):
    """Returns (generator, parameters, arrays) of the recorded generator; its window can be changed."""
    meta = json.loads((GOLDEN / "generator_tiny.json").read_text())
    fields = meta["config"]
    assert fields["cond_length"] + 1 == 4
    generator = Generator(
        width=fields["width"],
        depth=fields["depth"],
        num_heads=fields["heads"],
        latent_dim=fields["latent_dim"],
        num_classes=fields["classes"],
        num_cond_tokens=fields["buffer"],
        window_size=window_size,
        max_rope_shift=fields["shift_num"],
        flow_width=fields["head_width"],
        flow_depth=fields["head_depth"],
        flow_batch_mult=fields["batch_mul"],
        dropout_rate=0.0,
        label_dropout_rate=0.0,
    )
    state = reference_weights.state_dict(meta["parameters"])
    return generator, convert.generator_params(state, generator), np.load(GOLDEN / "generator_tiny.npz")


def training_loss(generator, params, arrays):
    """Returns the generator's loss on the recorded training batch."""
    return generator.apply(
        {"params": params},
        arrays["train/latents"],
        arrays["labels"],
        time=arrays["train/t"][:, 0],
        noise=arrays["train/noise"],
        rope_shift=int(arrays["train/shift"]),
        method="loss",
    )
