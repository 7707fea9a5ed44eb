"""The experts of a model: whose tensors are whose, and by what the model is told from others."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from haversack.core.errors import UserError
from haversack.core.pack import TensorSource
from haversack.models._architecture import Architecture

IDENTITY = "identity"
"""The field of a pack's provenance that says which model its experts and their profile belong to."""

Expert = tuple[int, ...]
"""(layer, expert); layers count those that have experts, from 0."""
PARTS = ("gate", "up", "down")
"""What an expert is made of, in order of use."""


@dataclass(frozen=True)
class Experts:
    """`blocks` are the blocks that have experts, each `count` of them, of which a token takes `chosen`.

    `tensors`: expert -> the names of its tensors as the architecture has them; `roles`: name -> which part of
    its expert a tensor belongs to, one of PARTS. The first `read` layers are those of an encoder, which a
    text passes once; those behind them follow one another token by token.
    """

    blocks: tuple[int, ...]
    count: int
    chosen: int
    tensors: Mapping[Expert, tuple[str, ...]]
    roles: Mapping[str, str]
    read: int = 0

    @cached_property
    def owners(self) -> dict[str, tuple[int, int]]:
        """Tensor -> (block, expert)."""
        return {
            name: (self.blocks[layer], expert)
            for (layer, expert), names in self.tensors.items()
            for name in names
        }

    @cached_property
    def part_owners(self) -> dict[str, tuple[int, int, str]]:
        """Tensor -> (block, expert, part)."""
        return {name: (*owner, self.roles[name]) for name, owner in self.owners.items()}

    def records(self, matrices: bool) -> Mapping[str, tuple[int, int] | tuple[int, int, str]]:
        """Tensor -> whose record of a store it goes to: of its expert, or of its part of that."""
        return self.part_owners if matrices else self.owners

    @cached_property
    def matrices(self) -> dict[Expert, tuple[str, ...]]:
        """(layer, expert, number of the part in PARTS) -> its tensors, in order of use."""
        found: dict[Expert, tuple[str, ...]] = {}
        for key, names in self.tensors.items():
            for name in names:
                part = (*key, PARTS.index(self.roles[name]))
                found[part] = (*found.get(part, ()), name)
        return found


def experts_of(architecture: Architecture) -> Experts | None:
    """The experts of `architecture`; None for a model without any.

    Raises UserError for a model whose layers have different numbers of experts.
    """
    blocks: list[int] = []
    tensors: dict[Expert, tuple[str, ...]] = {}
    roles: dict[str, str] = {}
    sizes: set[tuple[int, int]] = set()
    for block in architecture.blocks:
        mixture = block.mixture
        if mixture is None:
            continue
        for number, expert in enumerate(mixture.experts):
            linears = [linear for group in expert.products() for linear in group]
            names = tuple(name for linear in linears for name, _ in linear.tensors())
            tensors[len(blocks), number] = names
            for part, linear in zip(PARTS, (expert.gate, expert.up, expert.down), strict=True):
                roles |= {} if linear is None else {name: part for name, _ in linear.tensors()}
        blocks.append(block.index)
        sizes.add((len(mixture.experts), mixture.top))
    if not blocks:
        return None
    if len(sizes) > 1:
        raise UserError("layers with different numbers of experts cannot be streamed.", field="model")
    ((count, chosen),) = sizes
    read = sum(block < len(architecture.reading) for block in blocks)
    return Experts(tuple(blocks), count, chosen, tensors, roles, read)


def identity(source: TensorSource, architecture: Architecture) -> str:
    """What tells a model from others: its family and shapes, and the bytes of its small tensors (norms,
    biases, routers), 30 hex digits or so. The same for a pack and the checkpoint it was made of.

    Not against forgery. A pack says it in its provenance, where it was written once.
    """
    said = getattr(getattr(source, "record", None), "provenance", {}).get(IDENTITY)
    if isinstance(said, str):
        return said
    owned = experts_of(architecture)
    owners = {} if owned is None else owned.owners
    mixtures = [block.mixture for block in architecture.blocks if block.mixture is not None]
    routers = {linear.weight for mixture in mixtures for linear in mixture.routers()}
    shapes = architecture.tensors()
    first = binascii.crc32(repr((architecture.family, sorted(shapes.items()))).encode())
    second, count = 0, 0
    for name, shape in shapes.items():
        if name not in owners and (len(shape) == 1 or name in routers):
            data = source.bytes(name)
            second = binascii.crc32(data, second)
            count += data.nbytes
    return f"{architecture.family}-{first:08x}{second:08x}{count:x}"
