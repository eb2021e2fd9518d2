"""An interpreter of pickles that executes nothing and works within fixed bounds.

A pickle is a program that may call any function by its name, nest values without end and ask for any
amount of work in a few bytes. This interpreter knows the opcodes that torch.save emits. Names of functions and classes
become what a subclass puts in their place, or `Inert` placeholders: nothing is imported, and nothing that a pickle
names is called.

Time and memory grow with the number of opcodes only: values are shared, never copied, compared, hashed or
printed as a whole.
"""

from collections.abc import Callable
import dataclasses
import mmap
import pickle
from typing import Any

from eqjax.convert.pickle_bytes import MAX_NAME
from eqjax.convert.pickle_stack import PickleStack, opcode
from eqjax.convert.torch_pickle import Inert

# Integers within 64 bits cannot be chosen such that many of them have one hash, which makes dicts slow.
MAX_KEY = 2**63
# The functions known here take at most 8 arguments.
MAX_ARGUMENTS = 16


class Replacement:
    """What takes the place of a global that a pickle names."""


@dataclasses.dataclass(frozen=True, eq=False)
class Known(Replacement):
    """A function that is called where a pickle names another."""

    function: Callable[..., Any]


class PickleMachine(PickleStack):
    """Interprets the opcodes of one pickle; a subclass adds the globals that it knows, and what references mean."""

    def __init__(self, path: str, data: bytes | mmap.mmap, start: int) -> None:
        super().__init__(path, data, start)
        # What stands for the globals that a pickle names.
        self._globals: dict[str, Any] = {"collections.OrderedDict": Known(self._ordered_dict)}

    def persistent(self, reference: Any) -> Any:
        """Returns the object outside the pickle that a reference means."""
        raise pickle.UnpicklingError(f"a {type(reference).__name__} that refers to something outside the pickle")

    # --- Containers

    @opcode(pickle.EMPTY_TUPLE)
    def _empty_tuple(self) -> None:
        self._stack.append(())

    @opcode(pickle.TUPLE1)
    def _tuple1(self) -> None:
        self._tuple_of(1)

    @opcode(pickle.TUPLE2)
    def _tuple2(self) -> None:
        self._tuple_of(2)

    @opcode(pickle.TUPLE3)
    def _tuple3(self) -> None:
        self._tuple_of(3)

    def _tuple_of(self, size: int) -> None:
        if len(self._stack) < size:
            raise pickle.UnpicklingError("a tuple of more values than there are")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    @opcode(pickle.TUPLE)
    def _tuple(self) -> None:
        values = self._since_mark()
        self._stack.append(tuple(values))

    @opcode(pickle.EMPTY_LIST)
    def _empty_list(self) -> None:
        self._stack.append([])

    @opcode(pickle.LIST)
    def _list(self) -> None:
        values = self._since_mark()
        self._stack.append(values)

    @opcode(pickle.APPEND)
    def _append(self) -> None:
        self._extend([self._stack.pop()])

    @opcode(pickle.APPENDS)
    def _appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    @opcode(pickle.EMPTY_DICT)
    def _empty_dict(self) -> None:
        self._stack.append({})

    @opcode(pickle.DICT)
    def _dict(self) -> None:
        values = self._since_mark()
        self._stack.append({})
        self._update(values)

    @opcode(pickle.SETITEM)
    def _setitem(self) -> None:
        value = self._stack.pop()
        self._update([self._stack.pop(), value])

    @opcode(pickle.SETITEMS)
    def _setitems(self) -> None:
        self._update(self._since_mark())

    def _update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict) and len(values) % 2 == 0:
            target.update(zip(map(self._key, values[::2]), values[1::2], strict=True))
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"{len(values)} keys and values for a {type(target).__name__}")

    def _key(self, key: Any) -> Any:
        """Checks a key of a dict or an item of a set: hashing nested tuples may take any time."""
        if isinstance(key, int) and not -MAX_KEY <= key < MAX_KEY:
            raise self._refused("with a key of more than 64 bits")
        if not isinstance(key, (str, int, float, bytes, type(None), Inert, Replacement)):
            raise self._refused(f"with a key of type {type(key).__name__}")
        return key

    @opcode(pickle.EMPTY_SET)
    def _empty_set(self) -> None:
        self._stack.append(set())

    @opcode(pickle.ADDITEMS)
    def _additems(self) -> None:
        values, target = self._since_mark(), self._stack[-1]
        if isinstance(target, set):
            target.update(map(self._key, values))
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    @opcode(pickle.FROZENSET)
    def _frozenset(self) -> None:
        values = self._since_mark()
        self._stack.append(frozenset(map(self._key, values)))

    # --- Objects

    @opcode(pickle.GLOBAL)
    def _global(self) -> None:
        module = self._take_line()
        self._find(module, self._take_line())

    @opcode(pickle.STACK_GLOBAL)
    def _stack_global(self) -> None:
        name = self._stack.pop()
        self._find(self._stack.pop(), name)

    def _find(self, module: Any, name: Any) -> None:
        """Pushes the replacement of a global, never the global itself."""
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > 2 * MAX_NAME:
            raise pickle.UnpicklingError("a global without a name of reasonable length")
        full = f"{module}.{name}"
        if full not in self._globals:
            self._globals[full] = Inert(full)
        self._stack.append(self._globals[full])

    @opcode(pickle.REDUCE, pickle.NEWOBJ)
    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, arguments))

    @opcode(pickle.NEWOBJ_EX)
    def _newobj_ex(self) -> None:
        self._stack.pop()  # Keyword arguments; none of the functions known here has any.
        self._reduce()

    def _call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Inert):
            return Inert(function.name)
        if not isinstance(function, Known) or not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
            raise pickle.UnpicklingError(
                f"a call of a {type(function).__name__} with arguments of type {type(arguments).__name__}"
            )
        return function.function(*arguments)

    @opcode(pickle.BUILD)
    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Inert):
            target.state = state if isinstance(state, dict) else {"state": state}
        elif not isinstance(target, dict):  # Attributes that PyTorch adds to a dict (_metadata) are dropped.
            raise pickle.UnpicklingError(f"a state for a {type(target).__name__}")

    def _ordered_dict(self, items: Any = ()) -> dict[Any, Any]:
        if not isinstance(items, (list, tuple)):
            raise pickle.UnpicklingError("a dict of no items")
        self._count(len(items))
        return {self._key(key): value for key, value in map(_pair, items)}

    @opcode(pickle.BINPERSID)
    def _binpersid(self) -> None:
        self._stack.append(self.persistent(self._stack.pop()))


def _pair(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, (list, tuple)) or len(item) != 2:
        raise pickle.UnpicklingError("an item of a dict that is no pair")
    return item[0], item[1]
