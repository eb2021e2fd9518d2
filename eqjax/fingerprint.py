"""Identifies weights by their content."""

import hashlib
import json
from typing import Any

import jax
import numpy as np

from eqjax.typing import Tree


def fingerprint(params: Tree, fields: Any = None) -> str:
    """Returns a SHA-256 that changes with any array, name, shape or field.

    Arrays are converted to float32 first, so weights that are stored in a wider dtype keep their fingerprint.

    Args:
      params: tree of arrays, on devices or on the host.
      fields: JSON values that are part of the identity, such as a module's fields; None: the arrays alone.

    Returns:
      64 hexadecimal digits.

    Example:
      >>> fingerprint({"kernel": np.zeros((2, 3))})[:8]
      'ee7a5311'
    """
    digest = hashlib.sha256()
    if fields is not None:
        digest.update(json.dumps(fields, sort_keys=True).encode())
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in sorted(((jax.tree_util.keystr(path), leaf) for path, leaf in leaves), key=lambda item: item[0]):
        array = np.ascontiguousarray(np.asarray(leaf, np.float32))
        digest.update(f"{path}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
