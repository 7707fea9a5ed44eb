"""The one place that picks native kernels or their numpy twins."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from types import ModuleType

from haversack.core.errors import HaversackError, UserError, not_allowed


@cache
def native() -> ModuleType | None:
    """The native module, or None when `HAVERSACK_KERNELS=twin`.

    Read once, at the first kernel call. A native module that is missing or does not load is an error, never
    a silent change to the twins.
    """
    choice = os.environ.get("HAVERSACK_KERNELS", "native")
    if choice not in ("native", "twin"):
        raise not_allowed("HAVERSACK_KERNELS", choice, ["native", "twin"])
    if choice == "twin":
        return None
    try:
        module = import_module("haversack._native")
    except ImportError as error:
        raise HaversackError(
            f"haversack's native kernels are not built or do not load ({error}); run: make native "
            "(or set HAVERSACK_KERNELS=twin to run the slow numpy definitions)"
        ) from error
    wanted = os.environ.get("HAVERSACK_ISA")
    if wanted and not module.select_isa(wanted):
        here = list(module.isa_names())
        raise UserError(
            f"HAVERSACK_ISA={wanted} is not supported by this processor (allowed {', '.join(here)}).",
            field="HAVERSACK_ISA",
            given=wanted,
            nearest=here[-1],
        )
    return module
