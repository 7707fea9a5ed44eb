"""Mixtures of experts as hub configs and checkpoints have them: sizes, names of tensors, and which blocks.

A family reads its decoder with `_decoder.decoder`, and `with_mixtures` puts a mixture in the place of the
feed-forward layer of the blocks that have one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from haversack.models._architecture import Architecture, Block, Branch, FeedForward, Linear, Mixture
from haversack.models._config import Config
from haversack.models.language._shape import Shape


@dataclass(frozen=True)
class MixtureTraits:
    """What the mixtures of a family are: sizes, how their routers choose (see `Mixture`), names of modules.

    Experts stand behind model.layers.NUMBER.`module`.experts.NUMBER and have `width` inner numbers; `shared`
    is the width of the shared expert, None for none.
    """

    experts: int
    top: int
    width: int
    module: str = "mlp"
    router: str = "gate"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    scoring: str = "softmax"
    scored: str = "all"
    normalized: bool = False
    tap: str = "normed"
    shared: int | None = None


MOST_EXPERTS = 1 << 16
"""Of all blocks together."""


def read_experts(
    config: Config, shape: Shape, count: str, top: str, defaults: tuple[int, int]
) -> tuple[int, int]:
    """How many experts there are and how many take a token, from the fields `count` and `top`; checked
    against each other.
    """
    experts = config.whole(count, defaults[0], most=65536)
    if experts * shape.layers > MOST_EXPERTS:
        raise config.wrong(
            count,
            f"asks for more than {MOST_EXPERTS} experts in {shape.layers} blocks",
            max(MOST_EXPERTS // shape.layers, 1),
        )
    chosen = config.whole(top, min(defaults[1], experts), most=65536)
    if chosen > experts:
        raise config.wrong(top, f"is more than {config.named(count)}={experts}", experts)
    return experts, chosen


def sparse_blocks(config: Config, shape: Shape) -> list[int]:
    """The blocks of Qwen with a mixture: every `decoder_sparse_step`th, but those of `mlp_only_layers`."""
    step = config.whole("decoder_sparse_step", 1)
    listed = config.values.get("mlp_only_layers") or []
    for index in listed if isinstance(listed, list) else [None]:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < shape.layers:
            raise config.wrong("mlp_only_layers", f"is not a list of blocks from 0 to {shape.layers - 1}")
    return [index for index in range(shape.layers) if (index + 1) % step == 0 and index not in listed]


def with_mixtures(architecture: Architecture, traits: MixtureTraits, blocks: Iterable[int]) -> Architecture:
    """`architecture` with mixtures in `blocks` in the place of their feed-forward layers."""
    chosen = set(blocks)
    return replace(
        architecture,
        blocks=tuple(
            _mixed(block, architecture.width, traits) if block.index in chosen else block
            for block in architecture.blocks
        ),
    )


def _mixed(block: Block, width: int, traits: MixtureTraits) -> Block:
    def branch(one: Branch) -> Branch:
        if not isinstance(one.layer, FeedForward):
            return one
        at = f"model.layers.{block.index}.{traits.module}"
        return replace(one, layer=_mixture(at, width, one.layer.activation, traits))

    return replace(block, branches=tuple(map(branch, block.branches)))


def _mixture(at: str, width: int, activation: str, traits: MixtureTraits) -> Mixture:
    def expert(module: str, inner: int) -> FeedForward:
        return FeedForward(
            inner,
            activation,
            Linear.named(f"{module}.{traits.gate}", width, inner),
            Linear.named(f"{module}.{traits.up}", width, inner),
            Linear.named(f"{module}.{traits.down}", inner, width),
        )

    shared = None if traits.shared is None else expert(f"{at}.shared_expert", traits.shared)
    return Mixture(
        router=Linear.named(f"{at}.{traits.router}", width, traits.experts),
        experts=tuple(expert(f"{at}.experts.{i}", traits.width) for i in range(traits.experts)),
        top=traits.top,
        scoring=traits.scoring,
        scored=traits.scored,
        normalized=traits.normalized,
        tap=traits.tap,
        shared=shared,
        shared_gate=None if shared is None else Linear.named(f"{at}.shared_expert_gate", width, 1),
    )
