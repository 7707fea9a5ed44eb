"""What all emitted C shares: the kernels' templates, numbers and arrays as literals, names."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from jinja2 import Environment

Array = npt.NDArray[Any]

FOLDER = Path(__file__).parent
REALS = {"f32": ("float", "f", "f"), "f64": ("double", "", "")}
"""Type, suffix of math functions, suffix of literals."""

C_TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "float32": "float", "float64": "double"}


@functools.cache
def environment() -> Environment:
    """The templates of this room; a value that a template needs and is not given is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([str(FOLDER / "kernels"), str(FOLDER / "templates")]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )


def rendered(template: str, dtype: str = "f32", **values: Any) -> str:
    """A template filled in; `real`, `f` and `c` are its float type and the suffixes of functions and
    literals."""
    real, f, c = REALS[dtype]
    return environment().get_template(template).render(real=real, f=f, c=c, **values)


def identifier(text: str) -> str:
    """`text` as a C name in small letters."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower()
    return name if name and not name[0].isdigit() else f"t_{name}"


def literal(value: float, dtype: str) -> str:
    """A number that reads back as the same bits. `dtype`: a numpy type's name."""
    if dtype.startswith("int"):
        return f"(-{2**31 - 1} - 1)" if value == -(2**31) else str(int(value))
    text = (
        repr(float(value))
        if dtype == "float64"
        else np.format_float_scientific(np.float32(value), unique=True)
    )
    text = re.sub(r"e([+-])0*(\d+)", lambda found: "e" + found[1].replace("+", "") + found[2], text)
    text = re.sub(r"e0$", "", text)
    text = text if "." in text or "e" in text else text + "."
    return text + "f" if dtype == "float32" else text


def array(name: str, values: Array, *, about: str = "") -> str:
    """`static const TYPE name[n] = {...};`, a row of a matrix a paragraph."""
    dtype = values.dtype.name
    cells = [literal(value, dtype) for value in values.ravel().tolist()]
    lines, line = [], "   "
    for cell in cells:
        if len(line) + len(cell) + 2 > 110:
            lines.append(line)
            line = "   "
        line += f" {cell},"
    lines.append(line)
    note = f" /* {about} */" if about else ""
    body = "\n".join(lines)
    return f"static const {C_TYPES[dtype]} {name}[{max(len(cells), 1)}] = {{{note}\n{body}\n}};\n"
