"""Strict rules that carry arrays between the reference's flat names and Flax trees.

A table pairs modules by name; the conversion of their arrays follows from the kind of layer. Every
array of the source is consumed, every one of the target filled, every shape equal. Results are numpy;
under a transformation of JAX they are traced arrays: jax.eval_shape checks a full-size model at no cost.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

from flax import traverse_util
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eqjax.arguments import check_arguments
from eqjax.messages import shorten
from eqjax.rules import Instance, Text
from eqjax.typing import AnyArray, Params, StateDict

# A row of a table: Flax module (a pattern), reference module (with the pattern's groups; a * counts stacked
# layers), kind of layer.
Row = tuple[str, str, str]
Shape = tuple[int, ...]
# Arguments of the conversions.
STATE_DICT = Instance(Mapping, "a state_dict: names to arrays, as eqjax.convert.pick_weights returns it")
PARAMS = Instance(Mapping, "a tree of parameters: nested dicts of arrays")
# Lines of a list in a message: all names of a published model, not the millions of a hostile file.
_MAX_LISTED = 1000


class ConversionError(ValueError):
    """Names or shapes do not match; one message lists what differs."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Axes of one array in the reference and in Flax: they are permuted, then reshaped.

    Attributes:
      kind: "same"; "flat" (one axis in the reference); "row" (a leading axis of size 1 there); "conv"
        (output, input, *spatial there); "linear" and "join" (outputs × inputs there; in Flax the
        first axis, or all but the last, are the inputs).
      axis: axis that counts the layers, if several layers of the reference are stacked in Flax.
    """

    kind: str
    axis: int = 0

    def reference_shape(self, shape: Shape) -> Shape:
        """Returns the reference's shape of an array of the given Flax shape."""
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

    def to_flax(self, array: AnyArray, shape: Shape) -> AnyArray:
        """Converts the reference's array to a Flax array of the given shape."""
        return array.transpose(self._permutation(array.ndim)).reshape(shape)

    def to_reference(self, array: AnyArray) -> AnyArray:
        """Converts a Flax array to the reference's, the inverse of `to_flax`."""
        reference = self.reference_shape(array.shape)
        permutation = self._permutation(len(reference))
        inverse = [permutation.index(axis) for axis in range(len(permutation))]
        return array.reshape([reference[axis] for axis in permutation]).transpose(inverse)

    def _permutation(self, ndim: int) -> list[int]:
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
    """A Flax array and the reference arrays that it is made of: one, or one per stacked layer.

    Attributes:
      path: keys of the array in the Flax tree.
      shape: its shape.
      names: reference names, one or one per layer.
      layout: how each of them is converted.
      stacked: whether layers are stacked.
    """

    path: tuple[str, ...]
    shape: Shape
    names: tuple[str, ...]
    layout: Layout
    stacked: bool

    @property
    def layer_shape(self) -> Shape:
        """The Flax shape of one reference array."""
        axis = self.layout.axis
        return self.shape[:axis] + self.shape[axis + 1 :] if self.stacked else self.shape


def make_rules(module: Any, table: tuple[Row, ...]) -> tuple[Rule, ...]:
    """Makes one `Rule` per parameter of a module.

    Args:
      module: a Flax module with `init_params`.
      table: the names.

    Returns:
      The rules.

    Raises:
      ConversionError: no row of the table describes a parameter.
    """
    return _make_rules(module, table)


@functools.lru_cache(maxsize=16)
def _make_rules(module: Any, table: tuple[Row, ...]) -> tuple[Rule, ...]:
    params: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(
        jax.eval_shape(module.init_params, jax.random.key(0))
    )
    return tuple(_make_rule(path, tuple(leaf.shape), table) for path, leaf in params.items())


def _make_rule(path: tuple[str, ...], shape: Shape, table: tuple[Row, ...]) -> Rule:
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


def import_arrays(
    state_dict: StateDict, rules: Sequence[Rule], is_unused: Callable[[str], bool] | None = None
) -> dict[str, Any]:
    """Converts reference arrays to a Flax tree, float32.

    Args:
      state_dict: reference names to arrays.
      rules: from `make_rules`.
      is_unused: whether an array of a name may be left over; None: all must be used.

    Returns:
      The tree.

    Raises:
      ConversionError: names or shapes differ.
    """
    source = {name: array for name, array in state_dict.items() if is_unused is None or not is_unused(name)}
    check_shapes(source, reference_shapes(rules), "reference state_dict → Flax parameters")
    xp, out = _namespace(source), {}
    for rule in rules:
        layers = [rule.layout.to_flax(xp.asarray(source[name]), rule.layer_shape) for name in rule.names]
        array = xp.stack(layers, rule.layout.axis) if rule.stacked else layers[0]
        out[rule.path] = _copy(array, np.float32)
    return traverse_util.unflatten_dict(out)


def export_arrays(params: Params, rules: Sequence[Rule]) -> dict[str, Any]:
    """Converts a Flax tree to reference arrays, the inverse of `import_arrays`; dtypes are kept.

    Args:
      params: the tree.
      rules: from `make_rules`.

    Returns:
      {reference name: array}.

    Raises:
      ConversionError: names or shapes differ.
    """
    source = traverse_util.flatten_dict(params, sep="/")
    shapes = {"/".join(rule.path): rule.shape for rule in rules}
    check_shapes(source, shapes, "Flax parameters → reference state_dict")
    xp, out = _namespace(source), {}
    for rule in rules:
        array = xp.asarray(source["/".join(rule.path)])
        layers = xp.moveaxis(array, rule.layout.axis, 0) if rule.stacked else [array]
        for name, layer in zip(rule.names, layers, strict=True):
            out[name] = _copy(rule.layout.to_reference(layer), layer.dtype)
    return out


def listing(title: str, items: Sequence[str]) -> str:
    """Formats lines of a message that name the items (the first thousand), below their count; empty without items."""
    if not items:
        return ""
    more = [f"… and {len(items) - _MAX_LISTED} more"] if len(items) > _MAX_LISTED else []
    return f"\n{title} ({len(items)}):\n  " + "\n  ".join([*map(shorten, items[:_MAX_LISTED]), *more])


def reference_shapes(rules: Sequence[Rule]) -> dict[str, Shape]:
    """Returns {reference name: shape} of all arrays that the rules consume."""
    return {name: rule.layout.reference_shape(rule.layer_shape) for rule in rules for name in rule.names}


@check_arguments(source=STATE_DICT, expected=Instance(Mapping, "a dict of names to shapes"), what=Text())
def check_shapes(source: StateDict, expected: Mapping[str, Shape], what: str) -> None:
    """Checks names and shapes of arrays.

    Args:
      source: names to arrays.
      expected: names to shapes.
      what: beginning of the message.

    Raises:
      ConversionError: arrays are unknown, missing or of another shape; the message lists all of them.
    """
    shapes = {name: tuple(array.shape) for name, array in source.items()}
    unknown = [name for name in shapes if name not in expected]
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in shapes]
    misshapen = [
        f"{name}: source {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if unknown or missing or misshapen:
        raise ConversionError(
            f"{what}: the source does not fit the model's configuration."
            + listing("unknown in the source", unknown)
            + listing("missing in the source", missing)
            + listing("of another shape", misshapen)
        )


def _namespace(arrays: StateDict) -> Any:
    """Returns jax.numpy if arrays are traced, otherwise numpy."""
    return jnp if any(isinstance(array, jax.core.Tracer) for array in arrays.values()) else np


def _copy(array: AnyArray, dtype: Any) -> AnyArray:
    """Copies a numpy array, which may be a transposed view, or a view of a file, to a contiguous one."""
    return np.array(array, dtype, order="C") if isinstance(array, np.ndarray) else array.astype(dtype)
