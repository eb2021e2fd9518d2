"""The core of the interpreter of pickles: its loop and bounds, plain values, the stack and the memo."""

from collections.abc import Callable
import gc
import mmap
import pickle
import struct
from typing import Any

from eqjax.convert.pickle_bytes import PickleBytes
from eqjax.convert.pickle_nesting import check_nesting
from eqjax.convert.torch_pickle import CheckpointFileError

# A tensor takes about 35 opcodes, so this is a training state of 15 000 tensors (published ones have up to 4 000). The
# largest are read within a second; each opcode makes at most one object, the largest of 300 bytes.
MAX_OPCODES = 2**19
# PyTorch's integers have 8 bytes, the magic number of legacy files 10, states of random generators 16.
MAX_INTEGER_BYTES = 16

_HANDLERS: dict[int, Callable[[Any], None]] = {}


def opcode(*codes: bytes) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a method of a `PickleStack` as the handler of opcodes.

    Args:
      codes: the opcodes, a byte each.
    """

    def register(handler: Callable[..., None]) -> Callable[..., None]:
        _HANDLERS.update({code[0]: handler for code in codes})
        return handler

    return register


class PickleStack(PickleBytes):
    """Interprets the opcodes of one pickle; `PickleMachine` adds those of containers and objects."""

    def __init__(self, path: str, data: bytes | mmap.mmap, start: int) -> None:
        super().__init__(path, data, start)
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # Stacks under the marks.
        self._memo: dict[int, Any] = {}
        self._work = 0

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

    @opcode(pickle.PROTO)
    def _proto(self) -> None:
        if (protocol := self._take_byte()) > pickle.HIGHEST_PROTOCOL:
            raise pickle.UnpicklingError(f"pickle protocol {protocol}")

    @opcode(pickle.FRAME)
    def _frame(self) -> None:
        self._take(8)

    @opcode(pickle.NONE)
    def _none(self) -> None:
        self._stack.append(None)

    @opcode(pickle.NEWTRUE)
    def _true(self) -> None:
        self._stack.append(True)

    @opcode(pickle.NEWFALSE)
    def _false(self) -> None:
        self._stack.append(False)

    @opcode(pickle.BININT)
    def _binint(self) -> None:
        self._stack.append(self._take_int(4, signed=True))

    @opcode(pickle.BININT1)
    def _binint1(self) -> None:
        self._stack.append(self._take_byte())

    @opcode(pickle.BININT2)
    def _binint2(self) -> None:
        self._stack.append(self._take_int(2))

    @opcode(pickle.LONG1)
    def _long1(self) -> None:
        self._long(self._take_byte())

    @opcode(pickle.LONG4)
    def _long4(self) -> None:
        self._long(self._take_int(4))

    def _long(self, size: int) -> None:
        if size > MAX_INTEGER_BYTES:
            raise self._refused(f"with an integer of {size} bytes")
        self._stack.append(self._take_int(size, signed=True))

    @opcode(pickle.BINFLOAT)
    def _binfloat(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    # Python 2 wrote its strings, of unknown encoding, as BINSTRING.
    @opcode(pickle.SHORT_BINUNICODE, pickle.SHORT_BINSTRING)
    def _short_text(self) -> None:
        self._text(self._take_byte())

    @opcode(pickle.BINUNICODE, pickle.BINSTRING)
    def _long_text(self) -> None:
        self._text(self._take_int(4))

    @opcode(pickle.BINUNICODE8)
    def _longest_text(self) -> None:
        self._text(self._take_int(8))

    def _text(self, size: int) -> None:
        self._stack.append(self._take(size).decode("utf-8", "surrogatepass"))

    @opcode(pickle.SHORT_BINBYTES)
    def _short_bytes(self) -> None:
        self._stack.append(self._take(self._take_byte()))

    @opcode(pickle.BINBYTES)
    def _long_bytes(self) -> None:
        self._stack.append(self._take(self._take_int(4)))

    @opcode(pickle.BINBYTES8, pickle.BYTEARRAY8)
    def _longest_bytes(self) -> None:
        self._stack.append(self._take(self._take_int(8)))

    # --- Stack and memo

    @opcode(pickle.MARK)
    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    @opcode(pickle.POP)
    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    @opcode(pickle.POP_MARK)
    def _pop_mark(self) -> None:
        self._since_mark()

    @opcode(pickle.DUP)
    def _dup(self) -> None:
        self._stack.append(self._stack[-1])

    @opcode(pickle.BINPUT)
    def _binput(self) -> None:
        self._put(self._take_byte())

    @opcode(pickle.LONG_BINPUT)
    def _long_binput(self) -> None:
        self._put(self._take_int(4))

    @opcode(pickle.MEMOIZE)
    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _put(self, index: int) -> None:
        # Picklers count from 0. Python's own reader allocates its memo up to the largest index.
        if index > self._work:
            raise CheckpointFileError(f"{self._path} holds a malformed pickle (memo index {index}); refused.")
        self._memo[index] = self._stack[-1]

    @opcode(pickle.BINGET)
    def _binget(self) -> None:
        self._stack.append(self._memo[self._take_byte()])

    @opcode(pickle.LONG_BINGET)
    def _long_binget(self) -> None:
        self._stack.append(self._memo[self._take_int(4)])
