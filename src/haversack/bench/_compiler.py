"""What benches of emitted C need of this machine."""

from __future__ import annotations

from haversack.bench._rows import Unavailable
from haversack.core.errors import UserError


def need_gcc() -> None:
    """Raises Unavailable without gcc."""
    from haversack.embed._host import tool

    try:
        tool("gcc", "gcc")
    except UserError as error:
        raise Unavailable(str(error)) from error
