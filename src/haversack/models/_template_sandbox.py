"""Jinja templates from strangers: a sandbox without attributes to escape by, and with bounds on what a render
may take.

Beside jinja2's immutable sandbox: loop steps, calls, filters and operators count and look at the clock, every
text and list has a largest size, and filters, methods and globals are closed lists. Hub templates expect the
environment of transformers: trimmed blocks, loop controls, `tojson` that keeps characters, `raise_exception`,
`strftime_now` and the `generation` tag."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.defaults import DEFAULT_FILTERS
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LARGEST_TEMPLATE = 1 << 18
"""Characters of a template."""
LARGEST_TEXT = 1 << 22
"""Characters of any text a template makes, the result included."""
LARGEST_LIST = 100_000
MOST_WRITTEN = 1 << 25
"""Characters that a render may write in all, those of macros that are used later included."""
MOST_STEPS = 1_000_000
MOST_SECONDS = 2.0


def named(text: str) -> list[str]:
    """The words of a closed list."""
    return text.split()


FILTERS = named("""
    abs capitalize count d default dictsort e escape first float groupby int items join last length
    list lower map max min reject rejectattr replace reverse round safe select selectattr sort
    string title trim truncate unique upper wordcount
""")
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        named("""
        capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal
        isdigit islower isnumeric isspace istitle isupper join lower lstrip partition removeprefix
        removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip
        swapcase title upper
    """)
    ),
    dict: frozenset(["copy", "get", "items", "keys", "values"]),
    list: frozenset(["copy", "count", "index"]),
    tuple: frozenset(["count", "index"]),
}
PLAIN = (str, int, float, bool, type(None), dict, list, tuple)


class TemplateLimitError(Exception):
    """A render went past one of the bounds of this file."""


class RaisedError(Exception):
    """What a template says through `raise_exception`."""


class Meter:
    """What one render has taken so far."""

    def __init__(self) -> None:
        self.steps = self.written = 0
        self.deadline = time.monotonic() + MOST_SECONDS

    def tick(self) -> None:
        """Count one step. Raises TemplateLimitError past the bounds."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise TemplateLimitError(f"it takes more than {MOST_STEPS} steps")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"it takes longer than {MOST_SECONDS:g} s")

    def write(self, count: int) -> None:
        """Count written characters. Raises TemplateLimitError past the bounds."""
        self.written += count
        if self.written > MOST_WRITTEN:
            raise TemplateLimitError(f"it writes more than {MOST_WRITTEN} characters")


_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


def _tick() -> None:
    meter = _meter.get()
    if meter is not None:
        meter.tick()


def _sized(value: Any) -> Any:
    """`value`, if it is no text or list that is too large."""
    if isinstance(value, str) and len(value) > LARGEST_TEXT:
        raise TemplateLimitError(f"it makes a text of more than {LARGEST_TEXT} characters")
    if isinstance(value, list | tuple) and len(value) > LARGEST_LIST:
        raise TemplateLimitError(f"it makes a list of more than {LARGEST_LIST} values")
    return value


def _weighed(value: Any) -> Any:
    """`value`, if it holds no more values than a text of it can show: lists that hold one another twice grow
    as powers of two while they take no memory."""
    waiting, count = [value], 0
    while waiting:
        one = waiting.pop()
        count += 1
        if count > LARGEST_LIST:
            raise TemplateLimitError(f"it makes a list of more than {LARGEST_LIST} values")
        if isinstance(one, list | tuple):
            waiting.extend(one)
        elif isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, Namespace):
            raise TemplateLimitError("it puts a namespace into a value")
    return value


def _replaceable(text: Any, old: Any, new: Any) -> None:
    most = len(str(text)) + (str(text).count(str(old)) if old else len(str(text)) + 1) * len(str(new))
    if most > LARGEST_TEXT:
        raise TemplateLimitError(f"it makes a text of more than {LARGEST_TEXT} characters")


def _joinable(separator: Any, parts: Any) -> list[Any]:
    found = list(parts)
    _sized(found)
    between = len(str(separator)) * len(found)
    if between + sum(len(str(part)) for part in found) > LARGEST_TEXT:
        raise TemplateLimitError(f"it makes a text of more than {LARGEST_TEXT} characters")
    return found


def _formattable(text: str) -> None:
    """No widths: `{:999999999}` fills memory in one call."""
    digits = 0
    for character in text:
        digits = digits + 1 if character.isdigit() else 0
        if digits > 3 or character == "*":
            raise TemplateLimitError("it formats with a width of more than 3 digits")
    if text.count("{") > text.count("{}") + text.count("{:") + 64:
        raise TemplateLimitError("it formats with widths given by values")


def _metered(make: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts, and whose result has a bound."""

    @wraps(make)
    def run(*arguments: Any, **named: Any) -> Any:
        _tick()
        return _sized(make(*arguments, **named))

    return run


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as hub templates expect it: characters kept, nothing escaped for HTML."""
    if isinstance(indent, int) and not 0 <= indent <= 16:
        raise TemplateLimitError("tojson takes an indent of 0 to 16")
    given = tuple(separators) if separators is not None else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=given, sort_keys=sort_keys)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if (isinstance(width, int) and width > 64) or (isinstance(width, str) and len(width) > 64):
        raise TemplateLimitError("indent takes a width of up to 64")
    made: str = DEFAULT_FILTERS["indent"](str(text), width, first, blank)
    return made


def _replace(eval_ctx: Any, text: Any, old: str, new: str, count: int | None = None) -> str:
    _replaceable(text, old, new)
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _sum(values: Any, start: Any = 0) -> Any:
    total = start
    for value in values:
        if not isinstance(value, int | float) or not isinstance(total, int | float):
            raise TemplateLimitError("sum takes numbers")
        total = total + value
    return total


def _range(*given: int) -> range:
    numbers = range(*given)
    if len(numbers) > LARGEST_LIST:
        raise TemplateLimitError(f"it makes a list of more than {LARGEST_LIST} values")
    return numbers


def _raise_exception(message: Any) -> None:
    raise RaisedError(str(message)[:400])


def _strftime_now(form: str) -> str:
    from datetime import datetime

    if len(form) > 100:
        raise TemplateLimitError("strftime_now takes a format of up to 100 characters")
    return datetime.now().strftime(form)


class Counted:
    """What a loop runs over: every value counts."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        meter = _meter.get()
        for value in self._values:
            if meter is not None:
                meter.tick()
            yield value


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks the assistant's text: here it is just its
    body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own spelling

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Bounds(NodeTransformer):
    """Puts the counters into a template's syntax tree: around what loops run over, around `~`, and for the
    fixed text of what may run many times."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2 finds it by this name
        self.visit_Macro(node)
        node.iter = _call("counted", [node.iter], node.lineno)
        return node

    def visit_Macro(self, node: Any) -> nodes.Node:  # noqa: N802
        fixed = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        charge = nodes.ExprStmt(_call("charged", [nodes.Const(fixed)], node.lineno), lineno=node.lineno)
        node.body.insert(0, charge)
        return node  # type: ignore[no-any-return]

    visit_CallBlock = visit_Macro  # noqa: N815

    def visit_List(self, node: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node  # type: ignore[no-any-return]
        return _call("weighed", [node], node.lineno)

    visit_Tuple = visit_List  # noqa: N815
    visit_Dict = visit_List  # noqa: N815

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.target, nodes.NSRef):
            node.node = _call("weighed", [node.node], node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", list(node.nodes), node.lineno)


def _call(name: str, arguments: list[Any], line: int) -> nodes.Call:
    made = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
    made.set_lineno(line)
    return made


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that chat templates are compiled in."""

    intercepted_binops = frozenset(["+", "*", "**", "%", "-", "/", "//"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            finalize=self.written,
            optimized=False,
            cache_size=0,
        )
        self.filters = {name: _metered(DEFAULT_FILTERS[name]) for name in FILTERS}
        self.filters.update(
            {
                "tojson": _metered(tojson),
                "indent": _metered(_indent),
                "sum": _metered(_sum),
                "join": _metered(self.join),
                "replace": _metered(_keep_mark(_replace, "replace")),
            }
        )
        kept = ("dict", "namespace", "cycler", "joiner")
        self.globals = {name: self.globals[name] for name in kept}
        self.globals.update(range=_range, raise_exception=_raise_exception, strftime_now=_strftime_now)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    @staticmethod
    def counted(values: Any) -> Any:
        """What a loop runs over, counted; anything that is no sequence is left to jinja2's own complaint."""
        return Counted(values) if hasattr(values, "__iter__") else values

    weighed = staticmethod(_weighed)

    @staticmethod
    def charged(fixed: int) -> None:
        """`fixed` characters of the template are about to be written once more."""
        meter = _meter.get()
        if meter is not None:
            meter.write(fixed)

    @staticmethod
    def joined(*parts: Any) -> str:
        """The operator `~`."""
        _tick()
        texts = [str(part) for part in parts]
        return "".join(_joinable("", texts))

    @staticmethod
    def join(values: Any, d: str = "", attribute: Any = None) -> str:
        """The filter `join`."""
        if attribute is not None:
            raise TemplateLimitError("join takes no attribute; use map(attribute=...) before it")
        return str(d).join(str(part) for part in _joinable(d, values))

    @staticmethod
    def written(value: Any) -> Any:
        """Every value on its way to the text."""
        meter = _meter.get()
        if meter is not None:
            meter.tick()
            meter.write(len(value) if isinstance(value, str) else 32)
        return _sized(value)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, allowed in METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed and super().is_safe_attribute(obj, attr, value)
        if isinstance(obj, int | float | complex | bytes) or (
            callable(obj) and not isinstance(obj, Macro | LoopContext)
        ):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _tick()
        if operator in ("*", "**"):
            _multipliable(operator, left, right)
        if operator == "%" and isinstance(left, str):
            _formattable(left)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            most = LARGEST_TEXT if isinstance(left, str) else LARGEST_LIST
            if len(left) + len(right) > most:
                raise TemplateLimitError(f"it makes a value longer than {most}")
        made = super().call_binop(context, operator, left, right)
        return _weighed(made) if isinstance(made, list | tuple) else made

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _tick()
        if isinstance(__obj, LoopContext) and args:
            args = (Counted(args[0]), *args[1:])
        elif isinstance(__obj, type):  # dict, namespace, cycler, joiner
            _weighed([args, kwargs])
        elif not isinstance(__obj, Macro):
            owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
            if isinstance(owner, str):
                if name == "replace" and len(args) > 1:
                    _replaceable(owner, args[0], args[1])
                elif name == "join" and args:
                    args = (_joinable(owner, args[0]),)
        return _sized(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made = super().wrap_str_format(value)
        if made is None:
            return None

        def run(*args: Any, **kwargs: Any) -> str:
            _formattable(value.__self__)
            if "{" in value.__self__.replace("{{", "").partition("{")[2].partition("}")[0]:
                raise TemplateLimitError("it formats with widths given by values")
            return str(_sized(made(*args, **kwargs)))

        return run

    def render(self, template: Any, values: dict[str, Any]) -> str:
        """The text of a compiled template. Raises TemplateLimitError past the bounds."""
        token = _meter.set(Meter())
        try:
            parts: list[str] = []
            length = 0
            for part in template.generate(**values):
                length += len(part)
                if length > LARGEST_TEXT:
                    raise TemplateLimitError(f"it writes more than {LARGEST_TEXT} characters")
                parts.append(part)
            return "".join(parts)
        finally:
            _meter.reset(token)


def _keep_mark(make: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Give `make` the mark by which jinja2 passes the original filter its context."""
    mark = getattr(DEFAULT_FILTERS[name], "jinja_pass_arg", None)
    if mark is not None:
        make.jinja_pass_arg = mark  # type: ignore[attr-defined]
    return make


def _multipliable(operator: str, left: Any, right: Any) -> None:
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    if operator == "**":
        if not numbers or abs(right) > 64 or abs(left) > 1 << 32:
            raise TemplateLimitError("it takes a power larger than 64, or of something large")
        return
    if numbers:
        if max(abs(left), abs(right)) > 1 << 256:
            raise TemplateLimitError("it multiplies numbers that are too large")
        return
    for times, value in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, str | list | tuple):
            most = LARGEST_TEXT if isinstance(value, str) else LARGEST_LIST
            if times * len(value) > most:
                raise TemplateLimitError(f"it makes a value longer than {most}")


__all__ = ["RaisedError", "Sandbox", "TemplateError", "TemplateLimitError"]
