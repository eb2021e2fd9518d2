"""Entries of a protocol: the evaluated model, and the device."""

from typing import Any

import jax
import jax.numpy as jnp

from eqjax import pretrained
from eqjax.fingerprint import fingerprint
from eqjax.model import Model

# Entries that record where a result was computed; the other entries determine the result.
DEVICE_ENTRIES = ("jax", "device")


def weights_id(model: Model) -> str:
    """Returns sixteen hexadecimal digits that change with any weight and any field of the modules."""
    modules = {name: getattr(model, name) for name in ("tokenizer", "generator")}
    fields = {name: pretrained.module_to_dict(module) for name, module in modules.items() if module is not None}
    params = {name: getattr(model, f"{name}_params") for name in fields}
    return fingerprint(params, {**fields, "latent_scale": model.latent_scale})[:16]


def model_entries(model: Model) -> dict[str, Any]:
    """Returns what a result depends on besides options: {"weights": …, "dtype": …, "precision": …}."""
    modules = [module for module in (model.tokenizer, model.generator) if module is not None]
    dtypes = dict.fromkeys(jnp.dtype(module.dtype).name for module in modules)
    return {"weights": weights_id(model), "dtype": "/".join(dtypes), "precision": model.precision}


def device_entries() -> dict[str, str]:
    """Returns JAX's version and the kind of device, {"jax": …, "device": …}."""
    return dict(zip(DEVICE_ENTRIES, (jax.__version__, jax.devices()[0].device_kind), strict=True))
