"""Public names of a package that are imported when they are first asked for, so that importing a room loads
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(
    package: str, namespace: dict[str, Any], places: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `package`, whose `globals()` are `namespace`.

    `places`: public name -> the file that holds it, or a module's whole name. No file may bear the name of
    something public: importing it would put the module in its place.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        place = places[name]
        value = getattr(import_module(place if "." in place else f"{package}.{place}"), name)
        namespace[name] = value
        return value

    return get, lambda: sorted(places)
