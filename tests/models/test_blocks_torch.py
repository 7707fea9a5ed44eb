"""Blocks as PyTorch functions: the engine's numbers, every family; hooks that see all; gradients that are
right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.models.parity import BAR, NAMES

torch = pytest.importorskip("torch", reason="blocks to learn through need PyTorch")

from haversack.core.errors import UserError  # noqa: E402
from haversack.kernels import Matrix  # noqa: E402
from haversack.models import _blocks_torch as blocks  # noqa: E402
from haversack.models import read_architecture  # noqa: E402
from haversack.models._architecture import Architecture, Block, Branch  # noqa: E402
from haversack.models._checkpoint import checkpoint  # noqa: E402
from haversack.run import Engine  # noqa: E402
from haversack.shrink._language import LanguageWalk  # noqa: E402

MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "smallthinker")
DENSE = [name for name in NAMES if not name.startswith(MIXTURES)]
"""Families whose blocks can be learned through; a mixture needs to be told what its experts do."""


def opened(drawn: Any, memory_source: Any, name: str) -> tuple[Any, Architecture, dict[str, Any], np.ndarray]:
    """A case's source, its architecture, its tensors in PyTorch, and a text of two windows."""
    config, weights, prompt, _ = drawn(name)
    source = memory_source(config, weights)
    architecture = read_architecture(config)
    view = checkpoint(source, architecture)
    tensors = {
        each: torch.from_numpy(np.frombuffer(view.bytes(each), np.float32).reshape(shape).copy())
        for each, shape in architecture.tensors().items()
    }
    return source, architecture, tensors, prompt


def logits(architecture: Architecture, tensors: Any, prompt: np.ndarray, **options: Any) -> Any:
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    hidden = blocks.embed(architecture, ids, tensors)
    hidden = blocks.through_blocks(architecture, hidden, tensors, **options)
    return blocks.logits_of(architecture, hidden, tensors)[0]


@pytest.mark.parametrize("name", DENSE)
def test_the_engine_s_logits(name: str, drawn: Any, memory_source: Any) -> None:
    source, architecture, tensors, prompt = opened(drawn, memory_source, name)
    with Engine.open(source) as engine:
        cache = engine.cache(len(prompt))
        cache.horizon = len(prompt)
        exact = engine.step(prompt, cache=cache, want="all")[0]
    with torch.no_grad():
        found = logits(architecture, tensors, prompt, horizon=len(prompt)).numpy()
    assert exact is not None
    assert float(np.abs(found - exact).max()) <= BAR * float(np.abs(exact).max())


@pytest.mark.parametrize("name", DENSE)
def test_each_block_as_compression_walks_it(name: str, drawn: Any, memory_source: Any) -> None:
    _, architecture, tensors, prompt = opened(drawn, memory_source, name)
    walk = LanguageWalk(architecture)
    weights = {
        each: Matrix.from_array(values.numpy()) if values.ndim == 2 else values.numpy()
        for each, values in tensors.items()
    }
    hidden = walk.embed(prompt, weights)
    for index, block in enumerate(architecture.blocks):
        exact = walk.run(index, hidden, weights, None)
        with torch.no_grad():
            found = blocks.block_forward(block, torch.from_numpy(hidden)[None], tensors)[0].numpy()
        assert float(np.abs(found - exact).max()) <= BAR * float(np.abs(exact).max()), index
        hidden = exact


class Watching(blocks.Hooks):
    """Notes every point and its shape; changes nothing."""

    def __init__(self, inside: bool) -> None:
        self.inside = inside
        self.points: dict[blocks.Point, tuple[int, ...]] = {}
        self.names: list[str] = []

    def weight(self, name: str, tensor: Any) -> Any:
        self.names.append(name)
        return tensor

    def activation(self, point: blocks.Point, tensor: Any) -> Any:
        assert point not in self.points, "a point is passed once"
        self.points[point] = tuple(tensor.shape)
        return tensor


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "phi", "opt-350m", "stablelm-parallel", "qwen3"])
def test_hooks_see_every_number_and_change_nothing(name: str, drawn: Any, memory_source: Any) -> None:
    _, architecture, tensors, prompt = opened(drawn, memory_source, name)
    plain = logits(architecture, tensors, prompt)
    for inside in (True, False):
        hooks = Watching(inside)
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        hidden = blocks.embed(architecture, ids, tensors, hooks)
        for block in architecture.blocks:
            hidden = blocks.block_forward(block, hidden, tensors, hooks)
        seen = blocks.logits_of(architecture, hidden, tensors, hooks)[0]
        assert float((seen - plain).abs().max()) <= BAR * float(plain.abs().max())
        assert set(hooks.names) == set(architecture.tensors())
        n = len(prompt)
        for block in architecture.blocks:
            for linear in block.matrices():
                assert hooks.points[blocks.Point(linear.weight, "input")] == (1, n, linear.inputs)
                assert hooks.points[blocks.Point(linear.weight, "output")] == (1, n, linear.outputs)
            attention = block.attention
            assert attention is not None
            at = attention.output.weight
            heads = attention.key_value_heads * attention.head_width
            assert hooks.points[blocks.Point(at, "key")] == (1, n, heads)
            if inside:
                assert hooks.points[blocks.Point(at, "scores")] == (1, attention.heads, n, n)
                assert hooks.points[blocks.Point(at, "shares")] == (1, attention.heads, n, n)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_recomputed_blocks_have_the_same_gradients(name: str, drawn: Any, memory_source: Any) -> None:
    _, architecture, tensors, prompt = opened(drawn, memory_source, name)
    found = []
    for checkpointed in (False, True):
        leaves = {each: values.clone().requires_grad_() for each, values in tensors.items()}
        logits(architecture, leaves, prompt, checkpointed=checkpointed).square().mean().backward()
        found.append({each: leaf.grad for each, leaf in leaves.items()})
    for each, gradient in found[0].items():
        assert gradient is not None and torch.equal(gradient, found[1][each]), each


def test_gradients_are_those_of_small_steps(drawn: Any, memory_source: Any) -> None:
    """Along random directions, in double precision, through every kind of tensor of a block."""
    for name in ("llama", "gpt2", "gemma2", "phi"):
        _, architecture, tensors, _ = opened(drawn, memory_source, name)
        block = architecture.blocks[1]
        own = {each: tensors[each].double() for each in block.tensors()}
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(2, 12, architecture.width, generator=generator, dtype=torch.float64)

        def loss(weights: Any, block: Block = block, hidden: Any = hidden) -> Any:
            return blocks.block_forward(block, hidden, weights).square().mean()

        leaves = {each: values.clone().requires_grad_() for each, values in own.items()}
        loss(leaves).backward()
        for each, values in own.items():
            step = torch.randn(values.shape, generator=generator, dtype=torch.float64)
            step *= 1e-4 * values.norm() / step.norm()
            up, down = loss({**own, each: values + step}), loss({**own, each: values - step})
            expected = float((leaves[each].grad * step).sum())
            assert float(up - down) / 2 == pytest.approx(expected, rel=1e-4, abs=1e-12), (name, each)


def test_texts_do_not_see_one_another_and_tokens_not_what_follows(drawn: Any, memory_source: Any) -> None:
    _, architecture, tensors, _ = opened(drawn, memory_source, "gemma2")
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 20, architecture.width, generator=generator)
    for block in architecture.blocks:
        together = blocks.block_forward(block, hidden, tensors)
        alone = torch.cat([blocks.block_forward(block, each[None], tensors) for each in hidden])
        assert torch.allclose(together, alone, atol=1e-5)
        begun = blocks.block_forward(block, hidden[:, :7], tensors)
        assert torch.allclose(together[:, :7], begun, atol=1e-5)


def test_a_layer_that_has_no_torch_function_is_refused(drawn: Any, memory_source: Any) -> None:
    import dataclasses

    _, architecture, tensors, _ = opened(drawn, memory_source, "llama")

    class Other:
        kind = "mixture"

    block = dataclasses.replace(architecture.blocks[0], branches=(Branch(Other()),))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="layer mixture cannot be learned through"):
        blocks.block_forward(block, torch.zeros(1, 2, architecture.width), tensors)
