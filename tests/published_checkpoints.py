"""Small files in the published formats, and the names and shapes of the full-size ones.

EMA weights follow `reference_weights.weight`, raw ones the same with the salt "live:", so that mixing them
up shows.
"""

import gzip
import json
import pathlib
from typing import Any
import zipfile

import numpy as np

from tests import reference_weights

GOLDEN = pathlib.Path(__file__).parent / "golden"
GENERATOR = GOLDEN / "generator.ckpt"
RAW = "live:"
# Configuration of the two small files.
TOKENIZER_FIELDS: dict[str, Any] = dict(
    channels=32, channel_multipliers=(1, 1, 2), num_res_blocks=1, attention_resolutions=(8,), resolution=32,
    z_channels=4, embed_dim=12, square_downsamples=1,
    semantic=dict(channels=64, channel_multipliers=(1, 1), num_res_blocks=1, out_channels=64, downsamples=0),
)  # fmt: skip
GENERATOR_FIELDS: dict[str, Any] = dict(
    width=64, depth=4, num_heads=4, latent_dim=16, num_classes=7, num_cond_tokens=5, window_size=4,
    max_rope_shift=16, flow_width=48, flow_depth=2,
)  # fmt: skip


def read_json(name):
    """Returns a compressed table from the golden folder."""
    return json.loads(gzip.decompress((GOLDEN / name).read_bytes()))


def lightning_shapes():
    """Returns {name: shape} of everything in the small tokenizer file."""
    return read_json("tokenizer_lightning.json.gz")


def raw_shapes():
    """Returns {name: shape} of its raw weights."""
    return {k: v for k, v in lightning_shapes().items() if not k.startswith(("ema_", "loss."))}


def write_lightning(path):
    """Writes the small tokenizer file: its recorded pickle, and the storages filled by the rule."""
    raw_names = {}
    for name in raw_shapes():
        part, rest = name.split(".", 1)
        raw_names[f"ema_{part}.{rest.replace('.', '')}"] = name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tokenizer/data.pkl", gzip.decompress((GOLDEN / "tokenizer_lightning.pkl.gz").read_bytes()))
        for key, (name, shape) in enumerate(lightning_shapes().items()):
            if name.endswith(".num_updates"):
                array = np.int32(1234)
            elif name.endswith(".decay"):
                array = np.float32(0.99)
            else:
                array = reference_weights.weight(raw_names.get(name, name), shape, "" if name in raw_names else RAW)
            archive.writestr(f"tokenizer/data/{key}", array.tobytes())
    return path
