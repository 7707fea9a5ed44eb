"""Which layers of a module low rank acts on: chosen by name, left where they may not change."""

from __future__ import annotations

import copy as copying
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from haversack.core.errors import UserError, unknown_name
from haversack.shrink.structure._factored_torch import (
    CED,
    CONVOLUTIONS,
    LED,
    dense_of,
    is_transposed,
    shape_of,
)
from haversack.shrink.structure.low_rank import Shape


@dataclass(frozen=True)
class Place:
    """A layer, its first name, what it looks like dense, and why it stays (empty: it does not)."""

    name: str
    module: nn.Module
    dense: nn.Module
    shape: Shape
    reason: str

    @property
    def kind(self) -> str:
        return type(self.dense).__name__


def deep_copy(
    model: nn.Module, only: Sequence[str | nn.Module] | None, skip: Sequence[str | nn.Module] | None
) -> tuple[nn.Module, list[str] | None, list[str] | None]:
    """A deep copy, and modules in `only` and `skip` by the names they have in it."""
    names = {id(module): name for name, module in model.named_modules()}

    def named(given: Sequence[str | nn.Module] | None) -> list[str] | None:
        if given is None:
            return None
        for each in given:
            if isinstance(each, nn.Module) and id(each) not in names:
                raise UserError(
                    f"a {type(each).__name__} in only or skip is no part of the model.",
                    field="only",
                    given=type(each).__name__,
                )
        return [each if isinstance(each, str) else names[id(each)] for each in given]

    return copying.deepcopy(model), named(only), named(skip)


def _selected(model: nn.Module, given: Sequence[str | nn.Module]) -> set[int]:
    """The modules that `given` names, and all below them. Raises UserError for a name of nothing."""
    named = dict(model.named_modules(remove_duplicate=False))
    found: set[int] = set()
    for each in given:
        roots = (
            [each]
            if isinstance(each, nn.Module)
            else [module for name, module in named.items() if fnmatch.fnmatchcase(name, each)]
        )
        if not roots:
            raise unknown_name("module", str(each), [name for name in named if name], field="only")
        found.update(id(module) for root in roots for module in root.modules())
    return found


def places_of(
    model: nn.Module,
    only: Sequence[str | nn.Module] | None,
    skip: Sequence[str | nn.Module] | None,
    again: bool,
) -> list[Place]:
    """Every layer once, in the order of its first name."""
    wanted = None if only is None else _selected(model, only)
    left = set() if skip is None else _selected(model, skip)
    units = [each for each in model.modules() if isinstance(each, LED | CED)]
    inside = {id(each) for unit in units for each in unit.modules() if each is not unit}
    first: dict[int, tuple[str, nn.Module]] = {}
    direct: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in inside:
            continue
        first.setdefault(id(module), (name, module))
        if name and "." not in name:
            direct.add(id(module))
    users = _users(model)
    found = []
    for name, module in first.values():
        factored = isinstance(module, LED | CED)
        dense = dense_of(module) if factored and again else module
        if not factored and (
            not isinstance(module, (nn.Linear, *CONVOLUTIONS)) and not is_transposed(module)
        ):
            continue
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            continue
        reason = ""
        if wanted is None and id(module) in direct:
            reason = "a direct child of the root"
        elif (wanted is not None and id(module) not in wanted) or id(module) in left:
            reason = "not chosen"
        elif factored and not again:
            reason = "factored already"
        else:
            reason = _obstacle(dense, users)
        found.append(Place(name, module, dense, shape_of(dense), reason))
    taken = {id(place.module) for place in found if not place.reason}
    return [_with_sharers(place, users, taken) for place in found]


def _users(model: nn.Module) -> dict[int, list[nn.Module]]:
    """The modules that hold each parameter."""
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(module)
    return users


def _obstacle(layer: nn.Module, users: dict[int, list[nn.Module]]) -> str:
    kind = type(layer)
    if kind is not nn.Linear and kind not in CONVOLUTIONS and not is_transposed(layer):
        return f"{kind.__name__} is a layer of its own kind"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks"
    return ""


def _with_sharers(place: Place, users: dict[int, list[nn.Module]], taken: set[int]) -> Place:
    """The place, staying when its weight also belongs to a module that stays."""
    weight = place.module._parameters.get("weight")
    others = [each for each in users.get(id(weight), ()) if id(each) not in taken]
    if place.reason or not others:
        return place
    reason = f"its weight is shared with a module that stays ({type(others[0]).__name__})"
    return replace(place, reason=reason)
