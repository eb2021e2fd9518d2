"""Calls the public functions with wrong values for each argument in turn, as a program of its own.

    python -m tests.wrong_arguments           # all but the samplers
    python -m tests.wrong_arguments sampling  # Model.sample, outpaint, panorama and sample_latents

Prints a JSON object {"tried": number, "functions": number, "problems": [[call, error], …]}. It runs without the checks
of annotations that tests install: errors must be the functions' own.
"""

import itertools
import json
import os
import re
import sys
import tempfile
from typing import Any
import warnings

import jax
import numpy as np

import eqjax
from eqjax import convert, data, pixels

WRONG: dict[str, Any] = {
    "None": None,
    "text": "no such value",
    "boolean": True,
    "float": 1.5,
    "nested": [[1], {"a": 2}],
    "nan": float("nan"),
    "huge": 10**30,
    "object": object(),
}
_TOKENIZER = eqjax.Tokenizer(
    channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(), resolution=16, z_channels=2,
    embed_dim=4, norm="pixel", attention_window=1,
)  # fmt: skip
_GENERATOR = eqjax.Generator(
    width=16, depth=1, num_heads=2, latent_dim=4, num_classes=3, num_cond_tokens=2, window_size=2, flow_width=8,
    flow_depth=1,
)  # fmt: skip
_SAMPLERS = ("Model.sample", "outpaint", "panorama", "sample_latents", "two_sides")
_KEY = jax.random.key(0)
_MODEL = eqjax.Model(
    tokenizer=_TOKENIZER, tokenizer_params=jax.jit(_TOKENIZER.init_params)(_KEY), generator=_GENERATOR,
    generator_params=jax.jit(_GENERATOR.init_params)(_KEY), latent_scale=1.0, class_names=("cat", "dog", "eel"),
)  # fmt: skip
_IMAGE, _WIDE_IMAGE = np.zeros((16, 8, 3), np.uint8), np.zeros((16, 12, 3), np.uint8)
_STATE = {"w": np.zeros(3, np.float32)}
_OPTIONS: dict[str, Any] = {
    "guidance_scale": 1.0, "guidance_schedule": "linear", "num_flow_steps": 1, "solver": "euler",
    "time_grid": "uniform", "temperature": 1.0, "max_position": None,
    "modulation_times": None, "parallel_steps": None, "parallel_tolerance": 1e-4, "gpu_kernels": "auto",
}  # fmt: skip
_SAMPLING: dict[str, Any] = {"seed": 0, "seeds": None, "transition": 0, "mesh": None, "progress": None, **_OPTIONS}


def _fields(module):
    """Returns the fields of a module by name."""
    return {f: getattr(module, f) for f in type(module).__dataclass_fields__ if f not in ("parent", "name")}


def calls(folder) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Returns {name: (function, right arguments)}."""
    config = data.default_config()
    config.update(height=16, width=16, classes=("cat",), num_threads=0)
    batches = {"config": config, "batch_size": 2, "process_index": 0, "process_count": 1}
    frozen = {"state_dict": _STATE, "module": _TOKENIZER}
    return {
        "Tokenizer": (eqjax.Tokenizer, _fields(_TOKENIZER)),
        "Generator": (eqjax.Generator, _fields(_GENERATOR)),
        "load_pretrained": (eqjax.load_pretrained, {"source": "photos", "dtype": None, "precision": "highest"}),
        "Model.sample": (_MODEL.sample, {"labels": "cat", "num_columns": 2, "prefix": None, **_SAMPLING}),
        "Model.encode": (_MODEL.encode, {"images": _IMAGE[None]}),
        "Model.decode": (_MODEL.decode, {"latents": np.zeros((1, 2, 4), np.float32)}),
        "Model.labels": (_MODEL.labels, {"labels": [0]}),
        "Model.astype": (_MODEL.astype, {"dtype": "float32"}),
        "Model.require": (_MODEL.require, {"name": "tokenizer"}),
        "outpaint": (
            eqjax.outpaint,
            {"model": _MODEL, "image": _IMAGE, "label": "cat", "right": 1, "left": 0, "resize": False,
             "keep_pixels": True, **_SAMPLING},
        ),
        "panorama": (
            eqjax.panorama,
            {"model": _MODEL, "labels": "cat", "num_columns": 2, "seed": 0, "seeds": None, "transition": 0,
             "prefix": None, "strip_columns": 2, "state": None, **_OPTIONS},
        ),
        "two_sides": (
            eqjax.two_sides,
            {"model": _MODEL, "image": _WIDE_IMAGE, "labels": "cat", "resize": False, "seed": 0, "transition": 0,
             "strip_columns": 2, **_OPTIONS},
        ),
        "sample_latents": (
            eqjax.sample_latents,
            {"generator": _GENERATOR, "params": _MODEL.generator_params, "labels": np.array([0]), "num_columns": 2,
             "noise": None, "key": _KEY, "prefix": None, "class_columns": None, "transition": 0, "mesh": None,
             "progress": None, "precision": "highest", **_OPTIONS},
        ),
        # The name of the repository is refused before anything is pushed.
        "push_to_hub": (
            eqjax.push_to_hub,
            {"source": "photos", "repo": "no owner", "revision": None, "private": False, "message": "m",
             "results_folder": None, "samples": True, "license": None, "base_model": None},
        ),
        "save_image": (eqjax.save_image, {"path": f"{folder}/a.png", "image": _IMAGE}),
        "save_animation": (
            eqjax.save_animation,
            {"path": f"{folder}/a.gif", "strips": _IMAGE, "frame_width": None, "pixels_per_frame": 4},
        ),
        "pixels.from_uint8": (pixels.from_uint8, {"images": _IMAGE}),
        "pixels.to_uint8": (pixels.to_uint8, {"images": np.zeros((1, 2, 2, 3))}),
        "pixels.check_range": (pixels.check_range, {"name": "image", "images": np.zeros(3)}),
        "pixels.grid": (pixels.grid, {"images": _IMAGE[None], "columns": None, "gap": 2}),
        "data.make_iterator": (data.make_iterator, {**batches, "seed": 0}),
        "data.eval_batches": (data.eval_batches, {**batches, "num_images": None}),
        "data.make_source": (data.make_source, {"config": config, "train": True}),
        "data.check_config": (data.check_config, {"config": config}),
        "convert.read_reference": (convert.read_reference, {"path": f"{folder}/none.ckpt"}),
        "convert.pick_weights": (
            convert.pick_weights, {"checkpoint": {"class_emb.weight": _STATE["w"]}, "where": "w", "variant": "ema"}
        ),
        "convert.published_checkpoint": (
            convert.published_checkpoint, {"kind": "generator", "state_dict": _STATE}
        ),
        "convert.check_shapes": (convert.check_shapes, {"source": _STATE, "expected": {"w": (3,)}, "what": "w"}),
        "convert.infer_tokenizer_config": (convert.infer_tokenizer_config, {"state_dict": _STATE}),
        "convert.infer_generator_config": (
            convert.infer_generator_config,
            {"state_dict": _STATE, "arguments": None, "num_heads": 2, "window_size": 2, "max_rope_shift": 2},
        ),
        "convert.ema_tokenizer_state_dict": (convert.ema_tokenizer_state_dict, {"full_state_dict": _STATE}),
        "convert.raw_tokenizer_state_dict": (convert.raw_tokenizer_state_dict, {"full_state_dict": _STATE}),
        "convert.full_tokenizer_state_dict": (convert.full_tokenizer_state_dict, {"state_dict": _STATE}),
        "convert.tokenizer_params": (convert.tokenizer_params, {"state_dict": _STATE, "tokenizer": _TOKENIZER}),
        "convert.tokenizer_state_dict": (convert.tokenizer_state_dict, {"params": _STATE, "tokenizer": _TOKENIZER}),
        "convert.generator_params": (convert.generator_params, {"state_dict": _STATE, "generator": _GENERATOR}),
        "convert.generator_state_dict": (convert.generator_state_dict, {"params": _STATE, "generator": _GENERATOR}),
        "convert.discriminator_variables": (convert.discriminator_variables, frozen),
        **{f"convert.{name}_params": (getattr(convert, f"{name}_params"), frozen)
           for name in ("lpips", "dino", "dinov2", "inception")},
        "convert.frozen_shapes": (convert.frozen_shapes, {"network": "dino", "module": _TOKENIZER}),
        "convert.unused_in_frozen": (convert.unused_in_frozen, {"network": "dino", "name": "x"}),
    }  # fmt: skip


# Values that are right after all, or that only fail where they are used; with the reason.
ACCEPTED: dict[tuple[str, str], set[str]] = {
    # Whole numbers or fractions of any size are as good as others.
    ("Tokenizer", "posterior_std"): {"float", "huge"},
    ("Generator", "context_noise"): {"float"},
    # None turns something off, or lets the function choose.
    ("Tokenizer", "attention_window"): {"None"},
    ("Generator", "window_size"): {"None"},
    ("convert.infer_generator_config", "num_heads"): {"None"},
    ("convert.infer_generator_config", "window_size"): {"None"},
    ("panorama", "num_columns"): {"None"},
    **{
        (name, argument): {"boolean"}
        for name, argument in (
            ("data.make_source", "train"),
            ("outpaint", "resize"),
            ("two_sides", "resize"),
            ("outpaint", "keep_pixels"),
        )
    },
    ("Generator", "cross_rope"): {"boolean"},
    ("Generator", "remat"): {"boolean"},
    # Any text is a message's, or a name without a counterpart.
    **{
        ("push_to_hub", name): {"text"}
        for name in ("source", "repo", "revision", "message", "results_folder", "license", "base_model")
    },
    ("push_to_hub", "private"): {"boolean"},
    ("push_to_hub", "samples"): {"boolean", "text"},
    ("convert.check_shapes", "what"): {"text"},
    ("convert.unused_in_frozen", "name"): {"text"},
    ("convert.pick_weights", "where"): {"text"},
    ("pixels.check_range", "name"): {"text"},
}
ACCEPTED_ANYWHERE = {
    "guidance_scale": {"float", "huge"},
    "temperature": {"float", "huge"},
}
# Messages may call an argument by another name.
OTHER_NAMES = {
    "labels": "labels|classes|class", "label": "label|classes|class", "seeds": "seeds|seed", "left": "left|columns",
    "right": "right|columns", "image": "image", "params": "params|parameters", "key": "key|noise", "noise": "key|noise",
    "class_columns": "class_columns|schedule|columns", "state": "state|labels", "path": "path|extension|object|value",
    "checkpoint": "holds", "source": "source|weights file",
}  # fmt: skip
# Errors that are the functions' own.
KINDS = (TypeError, ValueError, FileNotFoundError, MemoryError)


def main(group):
    """Tries the samplers, or all other functions."""
    warnings.simplefilter("ignore")
    problems, tried = [], 0
    with tempfile.TemporaryDirectory() as folder:
        everything = calls(folder)
        table = {name: call for name, call in everything.items() if (name in _SAMPLERS) == (group == "sampling")}
        for name, (function, right) in table.items():
            for argument, (kind, value) in itertools.product(right, WRONG.items()):
                if value is None and right[argument] is None:
                    continue
                tried += 1
                accepted = ACCEPTED.get((name, argument), set()) | ACCEPTED_ANYWHERE.get(argument, set())
                try:
                    function(**{**right, argument: value})
                    error = None if kind in accepted else "accepted"
                except KINDS as found:
                    if kind in accepted:
                        continue  # It failed later, for another reason.
                    names = OTHER_NAMES.get(argument, re.escape(argument))
                    error = None if re.search(rf"(?<![a-z])({names})", str(found)) else f"{found!r:.300}"
                except Exception as found:
                    error = f"{found!r:.300}"
                if error is not None:
                    problems.append([f"{name}({argument}={kind})", error])
    exported = [name for name in eqjax.__all__ if not any(call.split(".")[0] == name for call in everything)]
    print(json.dumps({"tried": tried, "functions": len(table), "problems": problems, "untried": exported}))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main(*sys.argv[1:] or ["others"])
