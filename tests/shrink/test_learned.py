"""Methods that learn: less error than they start with, the best rounding of a small layer, and good ends when
learning goes wrong."""

import itertools
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learning needs PyTorch")

from tests.run.encoders import write_encoder  # noqa: E402
from tests.run.speech import sound, write_speech  # noqa: E402

from haversack.core.errors import UserError  # noqa: E402
from haversack.kernels import Matrix, matmul, unpack  # noqa: E402
from haversack.models import read_architecture  # noqa: E402
from haversack.models._blocks_torch import PLAIN, block_forward  # noqa: E402
from haversack.run._encoder_source import open_encoder  # noqa: E402
from haversack.run._speech import Speech  # noqa: E402
from haversack.run._speech_source import open_speech  # noqa: E402
from haversack.shrink._activations import Activations  # noqa: E402
from haversack.shrink._encoder import EncoderWalk  # noqa: E402
from haversack.shrink._language import LanguageWalk  # noqa: E402
from haversack.shrink._learning_torch import Lesson  # noqa: E402
from haversack.shrink._precision import StoredKind  # noqa: E402
from haversack.shrink._reconstruction import BlockTask, View, advance, bound  # noqa: E402
from haversack.shrink._rounding import grouped, searched_scales  # noqa: E402
from haversack.shrink._smoothing_torch import Smoothing  # noqa: E402
from haversack.shrink._source import read_tensor  # noqa: E402
from haversack.shrink._speech import Piece, Pieces, SpeechWalk  # noqa: E402
from haversack.shrink.precision import omniquant_torch, tesseraq_torch  # noqa: E402
from haversack.shrink.precision.omniquant import OmniQuant  # noqa: E402
from haversack.shrink.precision.tesseraq import TesseraQ  # noqa: E402

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64}
PIECES, LENGTH = 12, 32


def task_of(folder, config=CONFIG, seed=0, outliers=1.0):
    """A block with drawn weights, inputs with a few large channels and what the float block makes of them."""
    walk = LanguageWalk(read_architecture(config))
    rng = np.random.default_rng(seed)
    plain = {}
    for name in walk.names(0):
        shape = walk.shape(name)
        tails = rng.standard_t(3, size=shape)
        values = tails / shape[-1] ** 0.5 if len(shape) == 2 else 0.1 * tails
        scales_rows = name.endswith(("norm.weight", "ln_1.weight"))
        plain[name] = (values + 1 if scales_rows else values).astype(np.float32)
        if "norm" in name and name.endswith("weight"):
            plain[name][::16] *= outliers
    inputs, targets = (Activations(PIECES, LENGTH, walk.width, folder) for _ in range(2))
    mixing = rng.normal(size=(walk.width, walk.width)) * np.exp(0.5 * rng.normal(size=walk.width))
    for index in range(PIECES):
        inputs.write(index, (rng.normal(size=(LENGTH, walk.width)) @ mixing / 8).astype(np.float32))
    advance(walk, 0, bound(walk, plain), inputs, targets)
    return walk, BlockTask(0, walk.record(0), plain, inputs, inputs, targets)


def packed_error(walk, task, found, activations="f32"):
    """Error of the block as it is packed, by the engine, over the target's mean square."""
    weights = {name: each.packed() for name, each in found.matrices.items()} | dict(found.vectors)
    walk.forward.activations = activations
    missed = size = 0.0
    for index in range(PIECES):
        target = task.targets.read(index)
        missed += float(np.square(walk.run(0, task.inputs.read(index), weights, None) - target).sum())
        size += float(np.square(target).sum())
    walk.forward.activations = "f32"
    return missed / size


METHODS = [
    (omniquant_torch, OmniQuant(epochs=8), 0.95),
    (omniquant_torch, OmniQuant(start="range", epochs=8), 0.8),
    (tesseraq_torch, TesseraQ(start="searched", steps=8), 0.75),
    (tesseraq_torch, TesseraQ(bits=3, start="gptq", steps=8), 0.95),
]


@pytest.mark.parametrize("learner, method, share", METHODS, ids=lambda each: str(each))
def test_learning_lowers_the_error_of_a_block_and_what_is_packed_has_it(learner, method, share, tmp_path):
    walk, task = task_of(tmp_path)
    found = learner.reconstruct(task, method)
    final = found.losses[-1] if learner is tesseraq_torch else min(found.losses)
    assert final < share * found.losses[0]
    assert packed_error(walk, task, found) == pytest.approx(final, rel=2e-3)
    again = learner.reconstruct(task, method)
    for name, each in found.matrices.items():
        assert np.array_equal(each.codes, again.matrices[name].codes), "a seed gives the same result"
        assert np.array_equal(each.scales, again.matrices[name].scales)


def test_tesseraq_says_the_error_after_every_round(tmp_path):
    _, task = task_of(tmp_path)
    said = []
    noted = BlockTask(**{**vars(task), "note": said.append})
    found = tesseraq_torch.reconstruct(noted, TesseraQ(start="searched", steps=3))
    assert len(said) == 11 and "block 0, round 11 of 11: error" in said[-1]
    assert len(found.losses) in (
        13,
        14,
    )  # the start, eleven rounds, the end, the start again if it was better


def test_learned_smoothing_changes_nothing_until_something_is_rounded(tmp_path):
    for config in (CONFIG, GPT2):
        _, task = task_of(tmp_path, config)
        lesson = Lesson(task, given="float", batch=1)
        weights, smoothing = lesson.weights, Smoothing(lesson)
        assert smoothing.pairs
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for each in smoothing.factors.values():
                each.mul_((0.5 * torch.randn(each.shape, generator=generator)).exp())
            for each in smoothing.shifts.values():
                each.add_(0.2 * torch.randn(each.shape, generator=generator))
        assert bool(smoothing.shifts) == (config is GPT2), "shifts need biases on both sides"
        hidden = torch.from_numpy(task.inputs.read(0).copy())[None]
        exact = block_forward(task.record, hidden, weights)
        with torch.no_grad():
            smoothed = {name: smoothing(name, values) for name, values in weights.items()}
            folded = {name: torch.from_numpy(values) for name, values in smoothing.folded().items()}
            for changed in (smoothed, folded):
                found = block_forward(task.record, hidden, changed)
                assert float((found - exact).abs().max()) <= 1e-4 * float(exact.abs().max())
            for name, values in smoothed.items():
                assert torch.allclose(values, folded[name], rtol=1e-5, atol=1e-6), name


def test_smoothing_is_learned_where_activations_are_integers(tmp_path):
    walk, task = task_of(tmp_path, outliers=30.0)
    plain = omniquant_torch.reconstruct(task, OmniQuant(epochs=4))
    fitted = omniquant_torch.reconstruct(task, OmniQuant(epochs=4, activations="int8-dynamic"))
    assert fitted.losses[-1] < fitted.losses[0]
    assert packed_error(walk, task, fitted, "int8-dynamic") < packed_error(walk, task, plain, "int8-dynamic")
    norms = [name for name in fitted.vectors if "norm" in name]
    assert any(not np.allclose(fitted.vectors[name], task.weights[name]) for name in norms)


class OneLayer:
    """y = x W^T, a lesson of its own: all texts at once, error over the target's mean square."""

    def __init__(self, weight, x):
        self.weight, self.x = torch.from_numpy(weight), torch.from_numpy(x)
        self.target = self.x @ self.weight.T

    def batches(self):
        yield [0]

    def error(self, texts, hooks):
        missed = self.x @ hooks.weight("w", self.weight).T - self.target
        return missed.square().mean() / self.target.square().mean()

    def whole_error(self, hooks):
        with torch.no_grad():
            return float(self.error([0], hooks))


@pytest.mark.parametrize("seed", range(3))
def test_tesseraq_comes_close_to_the_best_of_all_roundings(seed, tmp_path):
    """Eight rows of ten weights at 3 bits: all 1,024 roundings of each row, each with its own best scale."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(64, 10)) @ (np.eye(10) + 0.7 * rng.normal(size=(10, 10)))).astype(np.float32)
    weight = rng.normal(size=(8, 10)).astype(np.float32)
    _, task = task_of(tmp_path)
    lesson = OneLayer(weight, x)
    scales = searched_scales(grouped(weight, 32), 3, half=True)
    matrix = tesseraq_torch.SoftRounding(torch.from_numpy(weight), scales, StoredKind.of_bits(3, 32), 3, None)
    hooks = tesseraq_torch.Rounding({"w": matrix}, integers=False)
    best = tesseraq_torch.Best(task, "tesseraq", 1.0, lambda: None)
    learned = tesseraq_torch.learn(task, TesseraQ(start="searched", steps=60), lesson, hooks, best)[-1]
    roundings = np.array(list(itertools.product((0, 1), repeat=10)))
    exact = weight @ x.T
    start = least = 0.0
    for row in range(8):
        codes = np.clip(roundings + np.floor(weight[row] / scales[row, 0]), -4, 3)
        outs = codes @ x.T
        factors = outs @ exact[row] / np.maximum(np.square(outs).sum(axis=1), 1e-9)
        least += np.square(outs * factors[:, None] - exact[row]).sum(axis=1).min()
        nearest = np.clip(np.rint(weight[row] / scales[row, 0]), -4, 3) * scales[row, 0]
        start += np.square(nearest @ x.T - exact[row]).sum()
    start, least = start / np.square(exact).sum(), least / np.square(exact).sum()
    assert least * 0.999 <= learned, "nothing is better than the best"
    assert start - learned > 0.4 * (start - least)


@pytest.mark.parametrize("learner, method, share", METHODS[0:3:2], ids=["omniquant", "tesseraq"])
def test_a_loss_that_is_not_finite_ends_the_block_with_the_best_state(
    learner, method, share, tmp_path, monkeypatch
):
    walk, task = task_of(tmp_path)
    monkeypatch.setattr(omniquant_torch, "CLIPPING_RATE", float("nan"))
    monkeypatch.setattr(tesseraq_torch, "RATE", float("inf"))
    with pytest.warns(UserWarning, match="the loss of block 0 is not finite"):
        found = learner.reconstruct(task, method)
    assert packed_error(walk, task, found) <= found.losses[0] * 1.001


@pytest.mark.parametrize("learner, method, share", METHODS[0:3:2], ids=["omniquant", "tesseraq"])
def test_a_block_without_finite_numbers_is_refused(learner, method, share, tmp_path):
    _, task = task_of(tmp_path)
    task.inputs.write(3, np.full((LENGTH, 64), np.inf, np.float32))
    with pytest.raises(UserError, match="block 0"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner.reconstruct(task, method)


@pytest.mark.parametrize("text", ["epochs", "batch"])
def test_counts_below_one_are_refused(text):
    with pytest.raises(UserError, match=f"{text}=0 is not supported"):
        OmniQuant(**{text: 0})
    with pytest.raises(UserError, match="steps=0 is not supported"):
        TesseraQ(steps=0)


def test_an_error_of_the_learned_block_is_that_of_its_layers(tmp_path):
    """The block's error is made of its matrices alone: with exact ones it is zero."""
    walk, task = task_of(tmp_path)
    lesson = Lesson(task, given="float", batch=5)
    assert lesson.whole_error(PLAIN) < 1e-10
    seen = sorted(index for batch in lesson.batches() for index in batch)
    assert seen == list(range(PIECES))
    name = task.record.matrices()[0].weight
    rows = lesson.sample([name], 60)[name]
    assert rows.shape == (60, 64)
    assert np.isfinite(matmul(rows, Matrix.from_array(task.weights[name]))).all()
    assert unpack(Matrix.from_array(task.weights[name])).shape == walk.shape(name)


@pytest.mark.parametrize("family", ["whisper", "moonshine"])
def test_blocks_of_speech_models_are_learned_through_as_they_run(family, tmp_path):
    """Every block's torch function on every piece, cross-attention and the encoder's last norm included."""
    model = open_speech(write_speech(tmp_path / family, family))
    walk = SpeechWalk(model.architecture, model.source)
    with Speech.open(model, residency="mapped") as speech:
        said = [np.array([31, 4, 9, 2, 2, 17][: 4 + seed], np.int32) for seed in range(3)]
        rows = [speech.rows(sound(0.6 + 0.15 * seed, seed))[: speech.window] for seed in range(3)]
    texts = Pieces(model.architecture, [Piece(*each) for each in zip(rows, said, strict=True)])
    first = {name: Matrix.from_array(read_tensor(model.source, name)) for name in walk.first}
    count, length = texts.shape
    sets = [Activations(count, length, walk.width, tmp_path) for _ in range(2)]
    for index, piece in enumerate(texts):
        sets[0].write(index, walk.embed(piece, first))
    for block in range(walk.blocks):
        plain = {name: read_tensor(model.source, name) for name in walk.names(block)}
        advance(walk, block, bound(walk, plain), *sets)
        task = BlockTask(block, walk.record(block), plain, sets[0], *sets, walk.view(block))
        lesson = Lesson(task, given="float", batch=2)
        assert lesson.whole_error(PLAIN) < 1e-9, block
        name = next(linear.weight for linear in task.record.matrices())
        damaged = {**plain, name: plain[name] * 1.1}
        worse = Lesson(BlockTask(**{**vars(task), "weights": damaged}), given="float", batch=2)
        assert worse.whole_error(PLAIN) > 1e-6, "the error sees the block's matrices"
        sets.reverse()


def test_blocks_of_an_encoder_see_all_tokens(tmp_path):
    model = open_encoder(write_encoder(tmp_path / "bert", "bert"))
    walk = EncoderWalk(model.architecture, model.source)
    rng = np.random.default_rng(0)
    sets = [Activations(3, 9, walk.width, tmp_path) for _ in range(2)]
    for index in range(3):
        sets[0].write(index, rng.normal(size=(9, walk.width)).astype(np.float32))
    plain = {name: read_tensor(model.source, name) for name in walk.names(0)}
    advance(walk, 0, bound(walk, plain), *sets)
    task = BlockTask(0, walk.record(0), plain, sets[0], *sets, walk.view(0))
    assert Lesson(task, given="float", batch=2).whole_error(PLAIN) < 1e-9
    causal = BlockTask(**{**vars(task), "view": View()})
    assert Lesson(causal, given="float", batch=2).whole_error(PLAIN) > 1e-4
    assert walk.record(walk.blocks - 1) is None, "the pooler is beside the blocks"
