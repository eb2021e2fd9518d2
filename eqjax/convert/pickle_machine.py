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
import gc
import mmap
import pickle
import struct
from typing import Any

from eqjax.convert.pickle_bytes import MAX_NAME, PickleBytes
from eqjax.convert.pickle_nesting import check_nesting
from eqjax.convert.torch_pickle import CheckpointFileError, Inert

# A tensor takes about 35 opcodes, so this is a training state of 15 000 tensors (published ones have up to 4 000). The
# largest are read within a second; each opcode makes at most one object, the largest of 300 bytes.
MAX_OPCODES = 2**19
# PyTorch's integers have 8 bytes, the magic number of legacy files 10, states of random generators 16.
MAX_INTEGER_BYTES = 16
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


_HANDLERS: dict[int, Callable[["PickleMachine"], None]] = {}


def _opcode(*codes: bytes) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a method as the handler of opcodes."""

    def register(handler: Callable[..., None]) -> Callable[..., None]:
        _HANDLERS.update({code[0]: handler for code in codes})
        return handler

    return register


class PickleMachine(PickleBytes):
    """Interprets the opcodes of one pickle; a subclass adds the globals that it knows, and what references mean."""

    def __init__(self, path: str, data: bytes | mmap.mmap, start: int) -> None:
        super().__init__(path, data, start)
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # Stacks under the marks.
        self._memo: dict[int, Any] = {}
        self._work = 0
        # What stands for the globals that a pickle names.
        self._globals: dict[str, Any] = {"collections.OrderedDict": Known(self._ordered_dict)}

    def load(self) -> Any:
        """Interprets the pickle up to its end and returns its value.

        Raises:
          CheckpointFileError: a bound is exceeded, or a value contains itself.
          Exception: the pickle is damaged; the error may be of any type.
        """
        # With up to a million new objects, Python would search all of them for garbage again and again: most of the
        # time.
        collects = gc.isenabled()
        gc.disable()
        try:
            value = self._interpret()
            check_nesting(self._path, value)
        finally:
            if collects:
                gc.enable()
        return value

    def persistent(self, reference: Any) -> Any:
        """Returns the object outside the pickle that a reference means."""
        raise pickle.UnpicklingError(f"a {type(reference).__name__} that refers to something outside the pickle")

    def _interpret(self) -> Any:
        handlers, stop, data = _HANDLERS, pickle.STOP[0], self._data
        while True:
            if self.position >= self._end:
                self._take(1)  # Raises.
            code = data[self.position]
            self.position += 1
            if code == stop:
                return self._stack.pop()
            if code not in handlers:
                raise pickle.UnpicklingError(f"opcode {code:#x}, which PyTorch does not write")
            self._work += 1
            if self._work > MAX_OPCODES:
                self._count(0)  # Raises.
            handlers[code](self)

    def _count(self, work: int) -> None:
        """Counts items of which an opcode handles any number."""
        self._work += work
        if self._work > MAX_OPCODES:
            raise self._refused(f"of more than {MAX_OPCODES} opcodes")

    def _since_mark(self) -> list[Any]:
        """Removes the values above the last mark, and the mark, from the stack."""
        values, self._stack = self._stack, self._below.pop()
        return values

    # --- Plain values

    @_opcode(pickle.PROTO)
    def _proto(self) -> None:
        if (protocol := self._take_byte()) > pickle.HIGHEST_PROTOCOL:
            raise pickle.UnpicklingError(f"pickle protocol {protocol}")

    @_opcode(pickle.FRAME)
    def _frame(self) -> None:
        self._take(8)

    @_opcode(pickle.NONE)
    def _none(self) -> None:
        self._stack.append(None)

    @_opcode(pickle.NEWTRUE)
    def _true(self) -> None:
        self._stack.append(True)

    @_opcode(pickle.NEWFALSE)
    def _false(self) -> None:
        self._stack.append(False)

    @_opcode(pickle.BININT)
    def _binint(self) -> None:
        self._stack.append(self._take_int(4, signed=True))

    @_opcode(pickle.BININT1)
    def _binint1(self) -> None:
        self._stack.append(self._take_byte())

    @_opcode(pickle.BININT2)
    def _binint2(self) -> None:
        self._stack.append(self._take_int(2))

    @_opcode(pickle.LONG1)
    def _long1(self) -> None:
        self._long(self._take_byte())

    @_opcode(pickle.LONG4)
    def _long4(self) -> None:
        self._long(self._take_int(4))

    def _long(self, size: int) -> None:
        if size > MAX_INTEGER_BYTES:
            raise self._refused(f"with an integer of {size} bytes")
        self._stack.append(self._take_int(size, signed=True))

    @_opcode(pickle.BINFLOAT)
    def _binfloat(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    # Python 2 wrote its strings, of unknown encoding, as BINSTRING.
    @_opcode(pickle.SHORT_BINUNICODE, pickle.SHORT_BINSTRING)
    def _short_text(self) -> None:
        self._text(self._take_byte())

    @_opcode(pickle.BINUNICODE, pickle.BINSTRING)
    def _long_text(self) -> None:
        self._text(self._take_int(4))

    @_opcode(pickle.BINUNICODE8)
    def _longest_text(self) -> None:
        self._text(self._take_int(8))

    def _text(self, size: int) -> None:
        self._stack.append(self._take(size).decode("utf-8", "surrogatepass"))

    @_opcode(pickle.SHORT_BINBYTES)
    def _short_bytes(self) -> None:
        self._stack.append(self._take(self._take_byte()))

    @_opcode(pickle.BINBYTES)
    def _long_bytes(self) -> None:
        self._stack.append(self._take(self._take_int(4)))

    @_opcode(pickle.BINBYTES8, pickle.BYTEARRAY8)
    def _longest_bytes(self) -> None:
        self._stack.append(self._take(self._take_int(8)))

    # --- Stack and memo

    @_opcode(pickle.MARK)
    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    @_opcode(pickle.POP)
    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    @_opcode(pickle.POP_MARK)
    def _pop_mark(self) -> None:
        self._since_mark()

    @_opcode(pickle.DUP)
    def _dup(self) -> None:
        self._stack.append(self._stack[-1])

    @_opcode(pickle.BINPUT)
    def _binput(self) -> None:
        self._put(self._take_byte())

    @_opcode(pickle.LONG_BINPUT)
    def _long_binput(self) -> None:
        self._put(self._take_int(4))

    @_opcode(pickle.MEMOIZE)
    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _put(self, index: int) -> None:
        # Picklers count from 0. Python's own reader allocates its memo up to the largest index.
        if index > self._work:
            raise CheckpointFileError(f"{self._path} holds a malformed pickle (memo index {index}); refused.")
        self._memo[index] = self._stack[-1]

    @_opcode(pickle.BINGET)
    def _binget(self) -> None:
        self._stack.append(self._memo[self._take_byte()])

    @_opcode(pickle.LONG_BINGET)
    def _long_binget(self) -> None:
        self._stack.append(self._memo[self._take_int(4)])

    # --- Containers

    @_opcode(pickle.EMPTY_TUPLE)
    def _empty_tuple(self) -> None:
        self._stack.append(())

    @_opcode(pickle.TUPLE1)
    def _tuple1(self) -> None:
        self._tuple_of(1)

    @_opcode(pickle.TUPLE2)
    def _tuple2(self) -> None:
        self._tuple_of(2)

    @_opcode(pickle.TUPLE3)
    def _tuple3(self) -> None:
        self._tuple_of(3)

    def _tuple_of(self, size: int) -> None:
        if len(self._stack) < size:
            raise pickle.UnpicklingError("a tuple of more values than there are")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    @_opcode(pickle.TUPLE)
    def _tuple(self) -> None:
        values = self._since_mark()
        self._stack.append(tuple(values))

    @_opcode(pickle.EMPTY_LIST)
    def _empty_list(self) -> None:
        self._stack.append([])

    @_opcode(pickle.LIST)
    def _list(self) -> None:
        values = self._since_mark()
        self._stack.append(values)

    @_opcode(pickle.APPEND)
    def _append(self) -> None:
        self._extend([self._stack.pop()])

    @_opcode(pickle.APPENDS)
    def _appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    @_opcode(pickle.EMPTY_DICT)
    def _empty_dict(self) -> None:
        self._stack.append({})

    @_opcode(pickle.DICT)
    def _dict(self) -> None:
        values = self._since_mark()
        self._stack.append({})
        self._update(values)

    @_opcode(pickle.SETITEM)
    def _setitem(self) -> None:
        value = self._stack.pop()
        self._update([self._stack.pop(), value])

    @_opcode(pickle.SETITEMS)
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

    @_opcode(pickle.EMPTY_SET)
    def _empty_set(self) -> None:
        self._stack.append(set())

    @_opcode(pickle.ADDITEMS)
    def _additems(self) -> None:
        values, target = self._since_mark(), self._stack[-1]
        if isinstance(target, set):
            target.update(map(self._key, values))
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    @_opcode(pickle.FROZENSET)
    def _frozenset(self) -> None:
        values = self._since_mark()
        self._stack.append(frozenset(map(self._key, values)))

    # --- Objects

    @_opcode(pickle.GLOBAL)
    def _global(self) -> None:
        module = self._take_line()
        self._find(module, self._take_line())

    @_opcode(pickle.STACK_GLOBAL)
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

    @_opcode(pickle.REDUCE, pickle.NEWOBJ)
    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, arguments))

    @_opcode(pickle.NEWOBJ_EX)
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

    @_opcode(pickle.BUILD)
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

    @_opcode(pickle.BINPERSID)
    def _binpersid(self) -> None:
        self._stack.append(self.persistent(self._stack.pop()))


def _pair(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, (list, tuple)) or len(item) != 2:
        raise pickle.UnpicklingError("an item of a dict that is no pair")
    return item[0], item[1]
