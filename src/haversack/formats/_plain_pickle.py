"""Plain values out of a pickle, without running anything: numbers, texts, tuples, lists, dictionaries, numpy
arrays.

A small machine of its own for the instructions of pickle protocols 2 and 3 that such values are written with.
Python's own unpickler is not used: even with its look-ups restricted it sets memory aside as a file asks.
Nothing is imported or called by name; the four names by which numpy writes an array are understood as what
they mean, any other name is refused. A list or a dictionary is used in one place only, so that what comes out
is a tree and no larger than the file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DEPTH = 16
"""Containers within containers."""
DIMENSIONS = 4
KINDS = {"i1": np.int8, "u1": np.uint8, "i4": np.int32, "i8": np.int64, "f4": np.float32, "f8": np.float64}
NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}


class Refused(ValueError):  # noqa: N818 - the finding, as its text
    """What a file holds is not plain: its text says what."""


@dataclass(frozen=True)
class _Name:
    meaning: str


@dataclass
class _Kind:
    dtype: Any


@dataclass
class _Array:
    values: Any = None


class _Mark:
    pass


def plain_values(data: bytes) -> Any:
    """The value that the pickle `data` holds. Raises Refused with the finding."""
    try:
        return _resolved(_Machine(data).run(), 0)
    except (IndexError, struct.error, UnicodeError) as error:
        raise Refused("it ends in the middle, or its parts do not fit together") from error


@dataclass
class _Machine:
    data: bytes
    at: int = 0
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    encoded: int = 0

    def run(self) -> Any:
        actions = _ACTIONS
        while True:
            code = self.take(1)
            if code == b".":
                if len(self.stack) != 1:
                    raise Refused("its end leaves no single value")
                return self.stack.pop()
            action = actions.get(code)
            if action is None:
                raise Refused(f"it has the instruction 0x{code[0]:02x}, which plain values do not need")
            action(self)

    def take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        if len(found) != count:
            raise Refused("it ends in the middle")
        self.at += count
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 200)
        if end < 0:
            raise Refused("it has a name without an end")
        found = self.data[self.at : end]
        self.at = end + 1
        return found.decode("ascii")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def to_mark(self) -> list[Any]:
        """What was pushed since the last mark, taken off."""
        at = len(self.stack) - 1
        while not isinstance(self.stack[at], _Mark):
            at -= 1
            if at < 0:
                raise Refused("a list of values has no beginning")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise Refused(f"it adds items to a {type(value).__name__}")
        return value

    def recall(self, number: int) -> None:
        if number not in self.memo:
            raise Refused(f"it recalls value {number}, which it never kept")
        value = self.memo[number]
        if isinstance(value, list | dict):
            raise Refused("a list or dictionary is used in two places")
        self.push(value)

    def name(self) -> None:
        asked = f"{self.line()} {self.line()}"
        if asked not in NAMES:
            raise Refused(f"it asks for {asked.replace(' ', '.')}, which is code and not a value")
        self.push(_Name(NAMES[asked]))

    def make_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise Refused("a tuple lacks its items")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.put_tuple(items)

    def put_tuple(self, items: tuple[Any, ...]) -> None:
        if any(isinstance(item, list | dict | _Mark) for item in items):
            raise Refused("a tuple holds what may change")
        if any(isinstance(part, tuple) and any(isinstance(each, tuple) for each in part) for part in items):
            raise Refused("tuples lie in tuples too deep")
        self.push(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise Refused("a dictionary's key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise Refused("a dictionary's key is no text")
            target[key] = value

    def reduce(self) -> None:
        """A call in pickle's terms: here only what an array is written as."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise Refused("it calls something")
        match function.meaning, arguments:
            case "encode", (str() as text, "latin1"):
                self.encoded += len(text)
                if self.encoded > len(self.data):
                    raise Refused("its arrays are larger than the file")
                self.push(text.encode("latin1"))
            case "dtype", (str() as kind, _, _) if kind in KINDS:
                self.push(_Kind(np.dtype(KINDS[kind])))
            case "array", (_Name(meaning="ndarray"), (0,), _):
                self.push(_Array())
            case _:
                raise Refused(f"its {function.meaning} is not as numpy writes it")

    def build(self) -> None:
        """The state of an array or of its type."""
        state = self.stack.pop()
        target = self.stack[-1]
        match target, state:
            case _Kind(), (3, str() as order, None, None, None, -1, -1, 0) if order in ("<", "|"):
                return
            case _Array(values=None), (1, tuple() as shape, _Kind() as kind, False, bytes() as data):
                target.values = _array(shape, kind.dtype, data)
            case _:
                raise Refused("an array's state is not as numpy writes it")


def _array(shape: tuple[Any, ...], dtype: Any, data: bytes) -> Any:
    if len(shape) > DIMENSIONS or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise Refused(f"an array has the shape {shape[:8]}")
    count = 1
    for size in shape:
        count *= size
    if count * dtype.itemsize != len(data):
        raise Refused(f"an array of {count} numbers has {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _resolved(value: Any, depth: int) -> Any:
    """`value` with its arrays in place of what stood for them."""
    if depth > DEPTH:
        raise Refused(f"it nests deeper than {DEPTH}")
    if isinstance(value, dict):
        return {key: _resolved(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list):
        return [_resolved(each, depth + 1) for each in value]
    if isinstance(value, _Array):
        if value.values is None:
            raise Refused("an array has no state")
        return value.values
    if isinstance(value, tuple):
        if not all(each is None or isinstance(each, int | float | str) for each in value):
            raise Refused("a tuple holds more than numbers and texts")
        return value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise Refused(f"it holds a bare {type(value).__name__.strip('_').lower()}")


def _protocol(machine: _Machine) -> None:
    if machine.number("<B") not in (2, 3):
        raise Refused("it is of another pickle protocol than 2 and 3")


def _append(machine: _Machine) -> None:
    item = machine.stack.pop()
    machine.top(list).append(item)


def _appends(machine: _Machine) -> None:
    items = machine.to_mark()
    machine.top(list).extend(items)


def _set_item(machine: _Machine) -> None:
    items = machine.stack[-2:]
    del machine.stack[-2:]
    machine.set_items(items)


def _keep(form: str) -> Callable[[_Machine], None]:
    def action(machine: _Machine) -> None:
        machine.memo[machine.number(form)] = machine.stack[-1]

    return action


def _pushed(read: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(read(machine))


def _text(form: str, encoding: str | None) -> Callable[[_Machine], None]:
    def action(machine: _Machine) -> None:
        data = machine.take(machine.number(form))
        machine.push(data if encoding is None else data.decode(encoding, "surrogatepass"))

    return action


_ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol,
    b"(": lambda machine: machine.push(_Mark()),
    b"}": lambda machine: machine.push({}),
    b"]": lambda machine: machine.push([]),
    b")": lambda machine: machine.push(()),
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"K": _pushed(lambda machine: machine.number("<B")),
    b"M": _pushed(lambda machine: machine.number("<H")),
    b"J": _pushed(lambda machine: machine.number("<i")),
    b"G": _pushed(lambda machine: machine.number(">d")),
    b"X": _text("<I", "utf-8"),
    b"B": _text("<I", None),
    b"C": _text("<B", None),
    b"q": _keep("<B"),
    b"r": _keep("<I"),
    b"h": lambda machine: machine.recall(machine.number("<B")),
    b"j": lambda machine: machine.recall(machine.number("<I")),
    b"t": lambda machine: machine.put_tuple(tuple(machine.to_mark())),
    b"\x85": lambda machine: machine.make_tuple(1),
    b"\x86": lambda machine: machine.make_tuple(2),
    b"\x87": lambda machine: machine.make_tuple(3),
    b"a": _append,
    b"e": _appends,
    b"s": _set_item,
    b"u": lambda machine: machine.set_items(machine.to_mark()),
    b"c": lambda machine: machine.name(),
    b"R": lambda machine: machine.reduce(),
    b"b": lambda machine: machine.build(),
}
