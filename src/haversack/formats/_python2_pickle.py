"""Plain values out of a pickle that Python 2 wrote: the same machine, with its texts and numbers.

CIFAR's batches are of protocol 2 with 8-bit strings; files about them may be of protocol 0, which is text.
Nothing is run or imported, as `formats/_plain_pickle.py` says.
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Callable
from typing import Any

from haversack.formats import _plain_pickle
from haversack.formats._plain_pickle import Refused, _Machine


def python2_values(data: bytes) -> Any:
    """The value that the pickle `data` holds; texts of up to 255 bytes are str (Latin-1), longer ones bytes
    of arrays. Raises Refused with the finding."""
    try:
        return _plain_pickle._resolved(_Python2(data).run(), 0)
    except (IndexError, struct.error, UnicodeError) as error:
        raise Refused("it ends in the middle, or its parts do not fit together") from error


class _Python2(_Machine):
    def run(self) -> Any:
        while True:
            code = self.take(1)
            if code == b".":
                if len(self.stack) != 1:
                    raise Refused("its end leaves no single value")
                return self.stack.pop()
            action = ACTIONS.get(code)
            if action is None:
                raise Refused(f"it has the instruction 0x{code[0]:02x}, which plain values do not need")
            action(self)

    def whole(self) -> int:
        text = self.line().removesuffix("L")
        if not text.removeprefix("-").isdecimal() or len(text) > 20:
            raise Refused("a number is no whole number")
        return int(text)

    def quoted(self) -> str:
        """A text as Python 2 writes it in quotes, read as such a literal and as nothing else."""
        text = self.line()
        if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
            raise Refused("a text has no quotes")
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise Refused("a text is no text in quotes") from error
        if not isinstance(found, str):
            raise Refused("a text is no text in quotes")
        return found

    def keep(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def make_dict(self) -> None:
        items = self.to_mark()
        self.push({})
        self.set_items(items)

    def drop(self) -> None:
        self.stack.pop()


ACTIONS: dict[bytes, Callable[[Any], None]] = {
    **_plain_pickle._ACTIONS,
    b"U": lambda machine: machine.push(machine.take(machine.number("<B")).decode("latin1")),
    b"T": lambda machine: machine.push(machine.take(machine.number("<I"))),
    b"S": lambda machine: machine.push(machine.quoted()),
    b"I": lambda machine: machine.push(machine.whole()),
    b"L": lambda machine: machine.push(machine.whole()),
    b"p": lambda machine: machine.keep(machine.whole()),
    b"g": lambda machine: machine.recall(machine.whole()),
    b"d": lambda machine: machine.make_dict(),
    b"l": lambda machine: machine.push(machine.to_mark()),
    b"0": lambda machine: machine.drop(),
}
