"""Strict rules that carry arrays between the reference's flat names and Flax trees.

A table pairs modules by name; what happens to their arrays follows from the kind of layer. Every
array of the source is consumed, every one of the target filled, every shape equal. Numpy comes out;
under a transformation of JAX, traced arrays do: jax.eval_shape checks a full-size model at no cost.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np


class ConversionError(ValueError):
    """Names or shapes do not match; one message lists everything that differs."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one array of the reference lies in Flax: its axes are permuted, then reshaped.

    Attributes:
      kind: "same"; "flat" (one axis in the reference); "row" (a leading axis of size 1 there); "conv"
        (output, input, *spatial there); "linear" and "join" (outputs × inputs there; in Flax the
        first axis, or all but the last, are the inputs).
      axis: where several layers of the reference are stacked in Flax, the axis that counts them.
    """

    kind: str
    axis: int = 0

    def reference_shape(self, shape):
        """Flax shape → the reference's."""
        match self.kind:
            case "flat":
                return (math.prod(shape),)
            case "row":
                return (1, *shape)
            case "conv":
                return (shape[-1], shape[-2], *shape[:-2])
            case "linear":
                return (math.prod(shape[1:]), shape[0])
            case "join":
                return (shape[-1], math.prod(shape[:-1]))
        return tuple(shape)

    def to_flax(self, array, shape):
        """The reference's array → Flax array of the given shape."""
        return array.transpose(self._permutation(array.ndim)).reshape(shape)

    def to_reference(self, array):
        """The inverse of `to_flax`."""
        reference = self.reference_shape(array.shape)
        permutation = self._permutation(len(reference))
        inverse = [permutation.index(axis) for axis in range(len(permutation))]
        return array.reshape([reference[axis] for axis in permutation]).transpose(inverse)

    def _permutation(self, ndim):
        axes = list(range(ndim))
        return [*axes[2:], 1, 0] if self.kind in ("conv", "linear", "join") else axes


_SAME = Layout("same")
# Per kind of layer: Flax leaf → (ending of the reference name, layout). A bare parameter has no leaf.
_KINDS = {
    "bare": {"": ("", _SAME)},
    "bare row": {"": ("", Layout("row"))},
    "norm": {"scale": (".weight", _SAME), "bias": (".bias", _SAME)},
    "conv": {"kernel": (".weight", Layout("conv")), "bias": (".bias", _SAME)},
    "spectral conv": {"kernel": (".weight_orig", Layout("conv")), "bias": (".bias", _SAME)},
    "linear": {"kernel": (".weight", Layout("linear")), "bias": (".bias", Layout("flat"))},
    "join": {"kernel": (".weight", Layout("join")), "bias": (".bias", _SAME)},
    "modulation": {"kernel": (".weight", Layout("linear", axis=1)), "bias": (".bias", Layout("flat"))},
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A Flax array and the reference arrays that make it: one, or one per stacked layer."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    layout: Layout
    stacked: bool

    @property
    def piece(self):
        """Flax shape of what one reference array becomes."""
        axis = self.layout.axis
        return self.shape[:axis] + self.shape[axis + 1 :] if self.stacked else self.shape


@functools.lru_cache(maxsize=16)
def make_rules(module, table):
    """One `Rule` per parameter of a module.

    Args:
      module: has `init_params`.
      table: rows (Flax module, a pattern; reference module, with the pattern's groups, * counting
        stacked layers; kind of layer).

    Raises:
      ConversionError: a parameter that no row describes.
    """
    leaves = _flatten(jax.eval_shape(module.init_params, jax.random.key(0)))
    return tuple(_make_rule(path, tuple(leaf.shape), table) for path, leaf in leaves.items())


def _make_rule(path, shape, table):
    *modules, leaf = path
    for pattern, template, kind in table:
        bare = kind.startswith("bare")
        match = re.fullmatch(pattern, "/".join(path if bare else modules))
        if not match:
            continue
        ending, layout = _KINDS[kind]["" if bare else leaf]
        name = match.expand(template) + ending
        stacked = "*" in name
        layers = shape[layout.axis] if stacked else 1
        return Rule(path, shape, tuple(name.replace("*", str(i)) for i in range(layers)), layout, stacked)
    raise ConversionError(f"the parameter {'/'.join(path)} has no counterpart in the reference.")


def import_arrays(state_dict, rules, unused=lambda name: False):
    """Reference arrays → Flax tree, float32.

    Args:
      state_dict: {reference name: array}.
      rules: from `make_rules`.
      unused: tells of a name whether it may be left over.

    Raises:
      ConversionError: names or shapes differ.
    """
    source = {name: array for name, array in state_dict.items() if not unused(name)}
    check_shapes(source, reference_shapes(rules), "reference state_dict → Flax parameters")
    xp, tree = _namespace(source), {}
    for rule in rules:
        pieces = [rule.layout.to_flax(xp.asarray(source[name]), rule.piece) for name in rule.names]
        array = xp.stack(pieces, rule.layout.axis) if rule.stacked else pieces[0]
        *modules, leaf = rule.path
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), modules, tree)
        node[leaf] = _own(array, np.float32)
    return tree


def export_arrays(params, rules):
    """Flax tree → {reference name: array}, the inverse of `import_arrays`; dtypes are kept.

    Raises:
      ConversionError: names or shapes differ.
    """
    source = _flatten(params)
    flat = {"/".join(path): array for path, array in source.items()}
    check_shapes(flat, {"/".join(rule.path): rule.shape for rule in rules}, "Flax parameters → reference state_dict")
    xp, out = _namespace(source), {}
    for rule in rules:
        array = xp.asarray(source[rule.path])
        pieces = xp.moveaxis(array, rule.layout.axis, 0) if rule.stacked else [array]
        for name, piece in zip(rule.names, pieces, strict=True):
            out[name] = _own(rule.layout.to_reference(piece), piece.dtype)
    return out


def listing(title, items):
    """Lines of a message that name all of the items, below how many there are."""
    return f"\n{title} ({len(items)}):\n  " + "\n  ".join(items) if items else ""


def reference_shapes(rules):
    """{reference name: shape} of all that the rules consume."""
    return {name: rule.layout.reference_shape(rule.piece) for rule in rules for name in rule.names}


def check_shapes(source, wanted, what):
    """Compares {name: array} with {name: shape}.

    Raises:
      ConversionError: one message, that begins with `what`, with all names that are too many, too few,
        or of another shape.
    """
    shapes = {name: tuple(array.shape) for name, array in source.items()}
    unknown = [name for name in shapes if name not in wanted]
    missing = [f"{name} {shape}" for name, shape in wanted.items() if name not in shapes]
    misshapen = [
        f"{name}: source {shapes[name]}, expected {shape}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    if unknown or missing or misshapen:
        raise ConversionError(
            f"{what}: the source does not fit the model's configuration."
            + listing("unknown in the source", unknown)
            + listing("missing in the source", missing)
            + listing("of another shape", misshapen)
        )


def _flatten(tree, path=()):
    """Nested mapping → {path: leaf}."""
    out = {}
    for key, value in tree.items():
        out |= _flatten(value, (*path, key)) if isinstance(value, Mapping) else {(*path, key): value}
    return out


def _namespace(arrays):
    return jnp if any(isinstance(array, jax.core.Tracer) for array in arrays.values()) else np


def _own(array, dtype):
    """A contiguous copy of a numpy array, which may be a transposed view, or a view of a file."""
    return np.array(array, dtype, order="C") if isinstance(array, np.ndarray) else array.astype(dtype)
