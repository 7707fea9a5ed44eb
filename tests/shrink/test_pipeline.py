"""The walk over a model: what is written, what is calibrated on what, and what is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.budget import BudgetError
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter
from haversack.formats.safetensors import SafetensorsFile, write_safetensors
from haversack.kernels import Matrix, unpack
from haversack.shrink._activations import Activations
from haversack.shrink._pipeline import Policy, compress, memory_plan, stored_kinds, stored_nbytes
from haversack.shrink._transforms import Pair
from haversack.shrink.precision.awq import Awq
from haversack.shrink.precision.gptq import Gptq
from haversack.shrink.precision.keep import Keep
from haversack.shrink.precision.round_to_nearest import RoundToNearest
from haversack.shrink.precision.smoothquant import SmoothQuant

WIDTH, INNER, VOCABULARY, BLOCKS = 64, 96, 50, 2


@dataclasses.dataclass
class GatedBlocks:
    """A small real network: h + down(tanh(gate(n)) * up(n)) with n = h * norm; gate and up share their
    input.
    """

    tied: bool = True
    blocks: int = BLOCKS
    width: int = WIDTH
    embedding: str = "embed"
    first: tuple = ("embed",)
    last: tuple = ("norm",)

    @property
    def output(self):
        return "embed" if self.tied else "head"

    def names(self, block):
        return [f"b{block}.norm", f"b{block}.gate", f"b{block}.up", f"b{block}.down"]

    def products(self, block):
        return [(f"b{block}.gate", f"b{block}.up"), (f"b{block}.down",)]

    def shape(self, name):
        kind = name.split(".")[-1]
        return {
            "norm": (WIDTH,),
            "gate": (INNER, WIDTH),
            "up": (INNER, WIDTH),
            "down": (WIDTH, INNER),
            "embed": (VOCABULARY, WIDTH),
            "head": (VOCABULARY, WIDTH),
        }[kind]

    def is_matrix(self, name):
        return not name.endswith("norm")

    def pairs(self, block):
        gate, up, down = (f"b{block}.{name}" for name in ("gate", "up", "down"))
        return [
            Pair(f"b{block}.norm", "norm", (gate, up), None, (None, None)),
            Pair(up, "gate", (down,), None, (None,)),
        ]

    def inspect(self, block, pair, x, weights):
        gate, up, down = (unpack(weights[f"b{block}.{name}"]) for name in ("gate", "up", "down"))
        return (np.tanh(x @ gate.T) * (x @ up.T)) @ down.T

    def embed(self, tokens, weights):
        return unpack(weights["embed"])[tokens]

    def run(self, block, hidden, weights, tap):
        def product(name, x):
            if tap is not None:
                tap(name, x)
            return x @ unpack(weights[name]).T

        inner = hidden * weights[f"b{block}.norm"]
        gate, up = product(f"b{block}.gate", inner), product(f"b{block}.up", inner)
        return hidden + product(f"b{block}.down", np.tanh(gate) * up)


def checkpoint(folder, walk, *, change=None, kind="f16"):
    rng = np.random.default_rng(5)
    names = [walk.embedding, *(n for b in range(walk.blocks) for n in walk.names(b)), *walk.last]
    if not walk.tied:
        names.append("head")
    mixing = rng.normal(size=(WIDTH, WIDTH)) * np.exp(rng.normal(size=WIDTH))
    tensors = {}
    for name in names:
        shape = walk.shape(name)
        values = (
            rng.normal(size=shape) / np.sqrt(shape[-1])
            if len(shape) == 2
            else 1 + 0.2 * rng.normal(size=shape)
        )
        if name == "embed":
            values = values @ mixing
        tensors[name] = values.astype(np.float32)
    if change:
        change(tensors)
    path = folder / "model.safetensors"
    stored = np.float16 if kind == "f16" else np.float32
    write_safetensors(
        path,
        [(name, kind, values.shape, values.astype(stored).tobytes()) for name, values in tensors.items()],
    )
    return SafetensorsFile.open(path)


def texts(count=24, length=64, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (count, length)).astype(np.int32)


def packed(folder, method, *, walk=None, source=None, policy=None, **options):
    walk = walk or GatedBlocks()
    source = source or checkpoint(folder, walk)
    goal = folder / f"{method.name}.pack"
    with PackWriter(goal) as writer:
        compress(
            source,
            walk,
            method,
            writer,
            texts=options.pop("texts", texts()),
            policy=policy or Policy(),
            folder=folder,
            **options,
        )
        writer.finish({})
    return source, Pack.open(goal)


def tensor(source, name):
    entry = source.tensors[name]
    if entry.layout == "rows-1":
        dtype = {"f32": "<f4", "f16": "<f2"}[entry.kind]
        return np.frombuffer(source.bytes(name), dtype).astype(np.float32).reshape(entry.shape)
    return unpack(Matrix.from_bytes(entry.kind, entry.shape, entry.group, entry.layout, source.bytes(name)))


def outputs(walk, source):
    hidden = tensor(source, "embed")[texts(6, 64, seed=9)].reshape(-1, WIDTH)
    for block in range(walk.blocks):
        weights = {
            name: Matrix.from_array(tensor(source, name)) if walk.is_matrix(name) else tensor(source, name)
            for name in walk.names(block)
        }
        hidden = walk.run(block, hidden, weights, None)
    return hidden


def test_keep_writes_every_weight_as_it_was(tmp_path):
    source, pack = packed(tmp_path, Keep(kind="f16"))
    assert set(pack.tensors) == set(source.tensors)
    for name, entry in source.tensors.items():
        assert np.array_equal(tensor(pack, name), tensor(source, name))
        assert pack.tensors[name].kind == ("f16" if len(entry.shape) == 2 else "f32")


def test_tensors_lie_in_order_of_use_and_take_the_predicted_bytes(tmp_path):
    for tied in (True, False):
        folder = tmp_path / str(tied)
        folder.mkdir()
        walk, method = GatedBlocks(tied=tied), Gptq(bits=4, group=32)
        _, pack = packed(folder, method, walk=walk)
        kinds = stored_kinds(walk, method, Policy())
        assert next(iter(pack.tensors)) == "embed" and set(kinds) == set(pack.tensors)
        assert stored_nbytes(walk, kinds) == sum(entry.nbytes for entry in pack.tensors.values())
        for name, kind in kinds.items():
            assert (pack.tensors[name].kind, pack.tensors[name].group) == (kind.kind, kind.group)


def test_the_output_matrix_keeps_eight_bits_unless_the_policy_says_otherwise():
    tied, untied, method = GatedBlocks(), GatedBlocks(tied=False), RoundToNearest(bits=4)
    assert stored_kinds(tied, method, Policy())["embed"].kind == "int8"
    assert stored_kinds(untied, method, Policy())["head"].kind == "int8"
    assert stored_kinds(untied, method, Policy())["embed"].kind == "f16"
    assert stored_kinds(untied, method, Policy(output="as-blocks", embedding="int8"))["head"].kind == "int4"
    assert stored_kinds(untied, Keep(kind="bf16"), Policy())["head"].kind == "bf16"
    with pytest.raises(UserError, match="output=int3"):
        Policy(output="int3")


def test_gptq_keeps_the_outputs_closer_than_round_to_nearest(tmp_path):
    walk = GatedBlocks()
    source, plain = packed(tmp_path, RoundToNearest(bits=4, group=32, scales="searched"))
    _, fitted = packed(tmp_path, Gptq(bits=4, group=32), source=source)
    exact = outputs(walk, source)
    errors = [np.square(outputs(walk, pack) - exact).mean() for pack in (plain, fitted)]
    assert errors[1] < 0.7 * errors[0]


def test_later_blocks_are_calibrated_on_compressed_earlier_ones(tmp_path):
    """Damage to the first block's weights must reach the statistics that the second one is fitted to."""
    seen = {}

    @dataclasses.dataclass(frozen=True)
    class Watching(Gptq):
        def quantize(self, weights, inputs):
            seen[next(iter(weights))] = inputs.hessian.copy()
            return super().quantize(weights, inputs)

    walk = GatedBlocks()
    source, pack = packed(tmp_path, Watching(bits=4, group=32))
    hidden = tensor(source, "embed")[texts()].reshape(-1, WIDTH)
    weights = {
        n: Matrix.from_array(tensor(pack, n)) if walk.is_matrix(n) else tensor(pack, n) for n in walk.names(0)
    }
    inputs = walk.run(0, hidden, weights, None) * tensor(source, "b1.norm")
    expected = inputs.astype(np.float64).T @ inputs / len(inputs)
    assert np.allclose(seen["b1.gate"], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_hidden_states_in_half_precision_or_on_disk_give_the_same_pack(tmp_path):
    found = {}
    for limit in (256, 0.3, 0.01):
        folder = tmp_path / str(limit)
        folder.mkdir()
        _, pack = packed(folder, Gptq(bits=4, group=32), activations_mib=limit)
        found[limit] = {name: bytes(pack.bytes(name)) for name in pack.tensors}
    assert found[256] == found[0.01]
    same = [found[256][name] == found[0.3][name] for name in found[256]]
    assert sum(same) >= len(same) - 6  # half precision may turn single codes


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1.0, 1e-4, 0.0]),
    st.integers(0, 2**31),
)
def test_hidden_states_come_back(tmp_path_factory, count, length, width, limit, seed):
    folder = tmp_path_factory.mktemp("states")
    pieces = np.random.default_rng(seed).normal(size=(count, length, width)).astype(np.float32)
    with Activations(count, length, width, folder, limit) as states:
        for index in reversed(range(count)):
            states.write(index, pieces[index])
        tolerance = 1e-3 if states.kind == "f16" else 0
        for index in range(count):
            assert np.allclose(states.read(index), pieces[index], rtol=tolerance, atol=tolerance)
    assert not list(folder.iterdir())


def test_values_beyond_half_precision_move_to_disk_unclipped(tmp_path):
    with Activations(2, 300, 1000, tmp_path, 1.5) as states:
        assert states.kind == "f16"
        states.write(0, np.full((300, 1000), 2.0, np.float32))
        states.write(1, np.full((300, 1000), 1e6, np.float32))
        assert states.kind == "disk"
        assert states.read(0).max() == 2.0 and states.read(1).min() == 1e6


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["embed", "b1.up", "norm"])
def test_weights_that_are_not_finite_are_named_and_nothing_is_left(tmp_path, name, value):
    def damage(tensors):
        tensors[name].flat[3] = value

    source = checkpoint(tmp_path, GatedBlocks(), change=damage)
    with pytest.raises(UserError, match=f"{name} holds 1 weights that are not finite"):
        packed(tmp_path, RoundToNearest(), source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_activations_that_are_not_finite_are_named(tmp_path):
    def grow(tensors):
        tensors["b0.norm"][:] = 3e38

    source = checkpoint(tmp_path, GatedBlocks(), change=grow, kind="f32")
    with pytest.raises(UserError, match=r"b0\.(gate|down)|block 0"), np.errstate(all="ignore"):
        packed(tmp_path, Gptq(), source=source)


def test_a_missing_tensor_and_missing_text_are_refused(tmp_path):
    source = checkpoint(tmp_path, GatedBlocks(), change=lambda tensors: tensors.pop("b1.down"))
    with pytest.raises(DamagedFileError, match=r"b1\.down is missing"):
        packed(tmp_path, RoundToNearest(), source=source)
    with pytest.raises(UserError, match="needs calibration text"):
        packed(tmp_path, Gptq(), source=source, texts=None)


def test_the_memory_plan_moves_states_to_disk_before_it_gives_up():
    walk, method = GatedBlocks(), Gptq()
    wide = memory_plan(walk, method, 1 << 20, None)
    assert 455 < wide.total_mib < 457
    narrow = memory_plan(walk, method, 1 << 20, 300)
    assert narrow.total_mib < 300 and any("disk" in label for label, _ in narrow.lines)
    with pytest.raises(BudgetError) as caught:
        memory_plan(walk, method, 1 << 20, 100)
    assert caught.value.field == "work_ram_mib" and caught.value.nearest > 200
    assert memory_plan(walk, RoundToNearest(), 1 << 20, None).total_mib < 202


@dataclasses.dataclass(frozen=True)
class Picky(Gptq):
    """Takes no matrix named `down`."""

    def refused(self, walk):
        names = [name for block in range(walk.blocks) for group in walk.products(block) for name in group]
        return {name: "it is called so" for name in names if name.endswith("down")}


def test_matrices_that_a_method_cannot_take_stay_only_where_that_is_allowed(tmp_path):
    with pytest.raises(UserError, match=r"b0\.down \(it is called so\), b1\.down .*--allow-kept") as caught:
        packed(tmp_path, Picky(bits=4, group=32))
    assert caught.value.field == "precision" and "\n" not in str(caught.value)
    walk, policy = GatedBlocks(), Policy(kept="f16")
    source, pack = packed(tmp_path, Picky(bits=4, group=32), policy=policy)
    kinds = stored_kinds(walk, Picky(bits=4, group=32), policy)
    assert {name: entry.kind for name, entry in pack.tensors.items()} == {n: k.kind for n, k in kinds.items()}
    for block in range(BLOCKS):
        assert pack.tensors[f"b{block}.gate"].kind == "int4"
        assert np.array_equal(tensor(pack, f"b{block}.down"), tensor(source, f"b{block}.down"))


def test_a_weight_that_no_scale_can_hold_is_named(tmp_path):
    def grow(tensors):
        tensors["b1.up"][3, 5] = 1e7

    source = checkpoint(tmp_path, GatedBlocks(), change=grow, kind="f32")
    with pytest.raises(UserError, match=r"b1\.gate, b1\.up: weights above 4.5e5"):
        packed(tmp_path, RoundToNearest(bits=4), source=source)


@pytest.mark.parametrize("needs", [{"inputs"}, {"ranges"}, {"hessian", "inputs", "ranges"}])
def test_statistics_are_what_was_asked_for_and_of_the_inputs_that_come(tmp_path, needs):
    seen = {}

    @dataclasses.dataclass(frozen=True)
    class Watching(RoundToNearest):
        def quantize(self, weights, inputs):
            seen[next(iter(weights))] = inputs
            return super().quantize(weights, inputs)

    Watching.needs = frozenset(needs)
    walk = GatedBlocks()
    source, _ = packed(tmp_path, Watching(bits=8))
    x = (tensor(source, "embed")[texts()] * tensor(source, "b0.norm")).reshape(-1, WIDTH)
    found = seen["b0.gate"]
    assert found.tokens == len(x)
    for name in ("hessian", "inputs", "ranges"):
        assert (getattr(found, name) is not None) == (name in needs)
    if found.inputs is not None:
        assert len(x) == 3 * 512
        assert np.allclose(found.inputs, x[::3], rtol=1e-5), "spread evenly over the whole text"
    if found.ranges is not None:
        assert np.allclose(found.ranges.largest, np.abs(x).max(axis=0), rtol=1e-5)
        assert np.allclose(found.ranges.magnitude, np.abs(x).mean(axis=0), rtol=1e-4)
    assert walk.blocks == BLOCKS
    assert found is not seen["b1.gate"]


def test_awq_keeps_the_outputs_closer_than_round_to_nearest(tmp_path):
    walk = GatedBlocks()
    source, plain = packed(tmp_path, RoundToNearest(bits=4, group=32))
    _, scaled = packed(tmp_path, Awq(bits=4, group=32, tokens=512), source=source)
    assert not np.array_equal(tensor(scaled, "b0.norm"), tensor(source, "b0.norm")), "scales are folded in"
    exact = outputs(walk, source)
    errors = [np.square(outputs(walk, pack) - exact).mean() for pack in (plain, scaled)]
    assert errors[1] < 0.8 * errors[0]


def test_smoothing_alone_changes_no_float_output(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Unrounded(SmoothQuant):
        def stored(self, rows, columns):
            return Keep(kind="f32").stored(rows, columns)

        def quantize(self, weights, inputs):
            return Keep(kind="f32").quantize(weights, inputs)

    walk = GatedBlocks()
    source, pack = packed(tmp_path, Unrounded(alpha=0.8, pairs="all"))
    assert not np.array_equal(tensor(pack, "b1.norm"), tensor(source, "b1.norm"))
    exact = outputs(walk, source)
    assert np.abs(outputs(walk, pack) - exact).max() <= 1e-4 * np.abs(exact).max()


def test_the_plan_counts_what_a_method_tries(tmp_path):
    walk = GatedBlocks()
    plan = memory_plan(walk, Awq(), 1 << 12, None)
    labels = [label for label, _ in plan.lines]
    assert "what awq tries" in labels
    assert memory_plan(walk, SmoothQuant(), 1 << 12, None).total_bytes < plan.total_bytes
