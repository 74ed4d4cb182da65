"""Scores out of a pickle that nobody has to trust: a dict of query id → dict of passage id → score, as a stream.

A pickle is a program, and Python's own reader runs it: it may call anything, and holds all of the result (some 160
million scores of a cross-encoder, well over 16 GB as Python objects). This reader knows only the few opcodes that
build dicts of numbers, plain or NumPy's, and refuses every other: it imports nothing, calls nothing, and gives out the
scores while they go by, so that memory stays at a few megabytes.
"""

import gzip
import io
import pickletools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numba import njit

CHUNK = 16 << 20  # bytes read at a time
OUTPUT = 1 << 20  # scores given out at a time
STACK, MEMO, LONGEST = 8192, 256, 1024  # pickle adds to a dict 1000 items at a time; LONGEST opcode that is looked at
MORE, RARE, FULL, STOPPED, REFUSED = range(5)  # why the machine paused
# What may lie on its stack. ARGS: a dtype and the bytes of a number, about to become one. OBJECT: kept in Python.
INT, FLOAT, DICT, BYTES, ARGS, SCALAR, DTYPE, OBJECT = range(8)

# The only names that a dict of numbers needs; they stand for themselves and are never looked up.
NAMES = {
    "numpy.core.multiarray scalar": SCALAR, "numpy._core.multiarray scalar": SCALAR, "numpy dtype": OBJECT,
    "collections defaultdict": OBJECT, "builtins dict": OBJECT, "__builtin__ dict": OBJECT,
}  # fmt: skip
TUPLES = ["EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"]


def read(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Stream (query ids int32, passage ids int32, scores float32) out of a pickle, gzipped or not.

    The scores of one query follow one another. Raises ValueError, with the place, for anything but a dict of dicts of
    numbers.
    """
    with path.open("rb") as start:
        zipped = start.read(2) == b"\x1f\x8b"
    machine = _Machine(path)
    with gzip.open(path) if zipped else path.open("rb") as file:
        rest = b""
        while not machine.stopped:
            read = file.read(CHUNK)
            rest = yield from machine.run(rest + read, at_end=not read)


class _Machine:
    """The state of the reader between two chunks."""

    def __init__(self, path: Path):
        self.path, self.before, self.stopped = path, 0, False
        self.kinds, self.values = np.zeros(STACK, np.int8), np.zeros(STACK)
        self.marks = np.zeros(16, np.int64)
        self.memo_kinds, self.memo_values = np.full(MEMO, -1, np.int8), np.zeros(MEMO)
        self.sizes = np.zeros(3, np.int64)  # of stack, marks, memo
        self.objects: list[object] = []
        self.out = np.zeros(OUTPUT, np.int32), np.zeros(OUTPUT, np.int32), np.zeros(OUTPUT, np.float32)

    def run(self, data: bytes, at_end: bool):
        """Give out the scores in `data`; return the bytes that belong to the next chunk."""
        buffer = np.frombuffer(data + bytes(LONGEST) if at_end else data, np.uint8)
        position = 0
        while True:
            position, given, why = _run(
                buffer, position, at_end, self.kinds, self.values, self.marks, self.memo_kinds, self.memo_values,
                self.sizes, *self.out,
            )  # fmt: skip
            if given:
                yield tuple(column[:given].copy() for column in self.out)
            if why == MORE or why == STOPPED:
                self.stopped = why == STOPPED
                self.before += position
                return data[position:]
            if position >= len(data):
                raise ValueError(f"{self.path} ends after {self.before + len(data)} bytes, before the pickle does")
            if why == REFUSED:
                self._refuse(position, "does not fit a dict of dicts of numbers")
            if why == RARE:
                position += self._rare(data[position : position + LONGEST], position)

    def _refuse(self, position: int, what: str):
        raise ValueError(f"{self.path}, byte {self.before + position} of the pickle: {what}; nothing of it was run")

    def _rare(self, data: bytes, position: int) -> int:
        """One opcode outside of the fast loop: the names and types that NumPy's numbers carry. Returns its length."""
        stream = io.BytesIO(data)
        try:
            opcode, argument, _ = next(pickletools.genops(stream))
        except ValueError as error:
            self._refuse(position, str(error))
        match opcode.name:
            case "SHORT_BINUNICODE" | "BINUNICODE" | "NONE" | "NEWTRUE" | "NEWFALSE":
                self._push(OBJECT, argument)
            case "GLOBAL" | "STACK_GLOBAL":
                name = argument or " ".join(map(str, self._pop(2)))
                if name not in NAMES:
                    self._refuse(position, f"it names {name.replace(' ', '.')}, which no dict of numbers needs")
                self._push(NAMES[name], name)
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push(OBJECT, self._pop(TUPLES.index(opcode.name)))
            case "TUPLE":
                self.sizes[1] = max(0, self.sizes[1] - 1)
                self._push(OBJECT, self._pop(int(self.sizes[0] - self.marks[self.sizes[1]])))
            case "REDUCE":
                called, arguments = self._pop(2)
                if called == "collections defaultdict":
                    self._push(DICT, 0)
                elif called == "numpy dtype" and arguments[0] in ("f4", "f8"):
                    self._push(DTYPE, 0)
                else:
                    self._refuse(position, f"it calls {called} with {arguments}")
            case "BUILD":  # of a dtype: the byte order is all that matters in its state
                (state,) = self._pop(1)
                if state[1] != "<":
                    self._refuse(position, f"numbers in the byte order {state[1]!r}, expected '<'")
            case _:
                self._refuse(position, f"opcode {opcode.name} builds no dict of numbers")
        return stream.tell()

    def _push(self, kind: int, value: object) -> None:
        if kind == OBJECT:
            self.objects.append(value)
            value = len(self.objects) - 1
        self.kinds[self.sizes[0]], self.values[self.sizes[0]] = kind, 0 if kind == SCALAR else value
        self.sizes[0] += 1

    def _pop(self, count: int) -> list:
        if not 0 <= count <= self.sizes[0]:
            raise ValueError(f"{self.path}: the pickle takes {count} values off a stack of {self.sizes[0]}")
        self.sizes[0] -= count
        rows = slice(int(self.sizes[0]), int(self.sizes[0]) + count)
        pairs = zip(self.kinds[rows].tolist(), self.values[rows].tolist(), strict=True)
        return [self.objects[int(value)] if kind == OBJECT else value for kind, value in pairs]


@njit(cache=True)
def _run(buffer, at, at_end, kinds, values, marks, memo_kinds, memo_values, sizes, out_q, out_p, out_s):
    """The fast loop: every opcode of which there are many. Returns (position, scores given out, why it paused)."""
    bits = np.zeros(1, np.uint64)
    as_double = bits.view(np.float64)
    as_singles = bits.view(np.float32)
    top, mark, memo = sizes
    given, why = 0, MORE
    while True:
        if at + LONGEST > len(buffer):  # no opcode is looked at that may be cut in two
            why = RARE if at_end else MORE
            break
        if top < 0 or mark < 0 or top + 2 > STACK or mark + 2 > len(marks):
            why = REFUSED
            break
        code = buffer[at]
        if code == 0x4A:  # BININT: four bytes with a sign
            number = np.int64(buffer[at + 1]) | np.int64(buffer[at + 2]) << 8 | np.int64(buffer[at + 3]) << 16
            number |= np.int64(np.int8(buffer[at + 4])) << 24
            kinds[top], values[top] = INT, number
            top += 1
            at += 5
        elif code == 0x47:  # BINFLOAT: eight bytes, the highest first
            whole = np.uint64(0)
            for i in range(8):
                whole = whole << np.uint64(8) | np.uint64(buffer[at + 1 + i])
            bits[0] = whole
            kinds[top], values[top] = FLOAT, as_double[0]
            top += 1
            at += 9
        elif code == 0x4D:  # BININT2
            kinds[top], values[top] = INT, np.int64(buffer[at + 1]) | np.int64(buffer[at + 2]) << 8
            top += 1
            at += 3
        elif code == 0x4B:  # BININT1
            kinds[top], values[top] = INT, buffer[at + 1]
            top += 1
            at += 2
        elif code == 0x43 and (buffer[at + 1] == 4 or buffer[at + 1] == 8):  # SHORT_BINBYTES: of a NumPy number
            whole = np.uint64(0)
            for i in range(buffer[at + 1]):
                whole |= np.uint64(buffer[at + 2 + i]) << np.uint64(8 * i)
            bits[0] = whole
            kinds[top], values[top] = BYTES, as_double[0] if buffer[at + 1] == 8 else np.float64(as_singles[0])
            top += 1
            at += 2 + np.int64(buffer[at + 1])
        elif code == 0x94 or code == 0x71 or code == 0x72:  # MEMOIZE, BINPUT, LONG_BINPUT: only the first are kept
            slot, length = memo, 1
            if code == 0x71:
                slot, length = np.int64(buffer[at + 1]), 2
            elif code == 0x72:
                slot, length = MEMO, 5
            if slot < MEMO and top > 0:
                memo_kinds[slot], memo_values[slot] = kinds[top - 1], values[top - 1]
            memo += 1
            at += length
        elif code == 0x68:  # BINGET
            slot = np.int64(buffer[at + 1])
            if memo_kinds[slot] < 0:
                why = REFUSED
                break
            kinds[top], values[top] = memo_kinds[slot], memo_values[slot]
            top += 1
            at += 2
        elif code == 0x86 and top >= 2 and kinds[top - 2] == DTYPE and kinds[top - 1] == BYTES:  # TUPLE2
            kinds[top - 2], values[top - 2] = ARGS, values[top - 1]
            top -= 1
            at += 1
        elif code == 0x52 and top >= 2 and kinds[top - 2] == SCALAR and kinds[top - 1] == ARGS:  # REDUCE
            kinds[top - 2], values[top - 2] = FLOAT, values[top - 1]
            top -= 1
            at += 1
        elif code == 0x7D:  # EMPTY_DICT
            kinds[top], values[top] = DICT, 0
            top += 1
            at += 1
        elif code == 0x28:  # MARK
            marks[mark] = top
            mark += 1
            at += 1
        elif code == 0x75 or code == 0x73:  # SETITEMS, SETITEM
            first = top - 2
            if code == 0x75:
                if mark < 1:
                    why = REFUSED
                    break
                first = marks[mark - 1]
            if first < 1 or kinds[first - 1] != DICT or (first > 1 and kinds[first - 2] != INT):
                why = REFUSED
                break
            if first > 1 and given + (top - first) // 2 > OUTPUT:
                why = FULL
                break
            fits = (top - first) % 2 == 0
            for i in range(first, top - 1, 2):
                if first == 1:  # of the outer dict
                    fits &= kinds[i] == INT and kinds[i + 1] == DICT
                else:
                    fits &= kinds[i] == INT and (kinds[i + 1] == FLOAT or kinds[i + 1] == INT)
                    out_q[given], out_p[given], out_s[given] = values[first - 2], values[i], values[i + 1]
                    given += 1
            if not fits:
                why = REFUSED
                break
            mark -= code == 0x75
            top = first
            at += 1
        elif code == 0x95:  # FRAME
            at += 9
        elif code == 0x80:  # PROTO
            at += 2
        elif code == 0x2E:  # STOP
            why = STOPPED if top == 1 and kinds[0] == DICT else REFUSED
            break
        else:
            why = RARE
            break
    sizes[0], sizes[1], sizes[2] = top, mark, memo
    return at, given, why
