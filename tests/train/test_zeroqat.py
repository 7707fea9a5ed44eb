"""ZeroQAT: what is equal stays equal, steps can be played again, and a pack is what was trained."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core import index
from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import UserError
from haversack.core.pack import check_pack
from haversack.formats.safetensors import write_safetensors
from haversack.models.language import read_architecture
from haversack.run import Engine
from haversack.run._source import Model, open_model
from haversack.train._texts import Texts, split
from haversack.train.fit_quantized import LOG_NAME, Course, fit_quantized
from haversack.train.gradient._zeroqat_decoder import Bits, RoundedDecoder, Rows, float_matrices, floats
from haversack.train.gradient._zeroqat_grid import fresh_clip
from haversack.train.gradient._zeroqat_prepare import Preparing, clips_of, prepare
from haversack.train.gradient._zeroqat_smoothing import moved, places_of
from haversack.train.gradient._zeroqat_tasks import option_loss
from haversack.train.gradient.zeroqat import ZeroQat, gradient_cosine

SHARED = {"vocab_size": 257, "torch_dtype": "float32", "bos_token_id": None, "eos_token_id": 256}
CONFIGS = {
    "llama": {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32},
        **{"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "rms_norm_eps": 1e-5},
        **{"rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True},
    },
    "opt": {
        **{"architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 32, "ffn_dim": 64},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128},
        **{"activation_function": "relu", "tie_word_embeddings": True, "word_embed_proj_dim": 32},
    },
}
families = pytest.mark.parametrize("family", CONFIGS)
TOKENS = np.random.default_rng(3).integers(0, 256, (6, 24)).astype(np.int32)
ROWS = Rows.of_texts(TOKENS)


def checkpoint(folder: Path, family: str) -> Path:
    """A small model of a family in the hub's format, by the hub's names, with a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = SHARED | CONFIGS[family]
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    tensors = []
    for name, shape in read_architecture(config).tensors().items():
        spread = 0.2 if len(shape) == 1 else 1.0 / np.sqrt(shape[-1])
        values = rng.normal(0, spread, shape) + (len(shape) == 1 and name.endswith("weight"))
        tensors.append((name, "f32", shape, values.astype(np.float32).tobytes()))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zeroqat")
    return {family: checkpoint(root / family, family) for family in CONFIGS}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose first word tells their class."""
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    rng = np.random.default_rng(1)
    rows = []
    for i in range(60):
        label = ("good", "bad")[i % 2]
        words = " ".join(rng.choice(["soup", "film", "day", "book"], 3))
        rows.append({"text": f"{'nice' if label == 'good' else 'poor'} {words} {i}", "label": label})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def text() -> Texts:
    return split([np.random.default_rng(1).integers(0, 256, 3000).astype(np.int32)])


def made(**parameters: Any) -> ZeroQat:
    return ZeroQat(**{"epochs": 0, "segments": 8, **parameters})


def decoder_of(model: Model, bits: Bits, clips: Any = None, **more: Any) -> RoundedDecoder:
    names = float_matrices(model)
    if clips is None:
        shapes = model.architecture.tensors()
        clips = {name: fresh_clip(*shapes[name], bits.group) for name in names}
    return RoundedDecoder(model, bits, names, clips, **more)


@families
def test_a_pass_without_rounding_is_the_engines(family: str, folders: dict[str, Path]) -> None:
    model = open_model(folders[family])
    found = decoder_of(model, Bits(16, 16)).token_losses(ROWS)
    with Engine.open(folders[family]) as engine:
        for row, losses in zip(TOKENS, found, strict=True):
            logits, _ = engine.step(row[:-1], cache=engine.cache(32), want="all")
            assert logits is not None
            exact = logits.astype(np.float64)
            exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
            np.testing.assert_allclose(losses, -exact[np.arange(23), row[1:]], rtol=1e-5)


@families
def test_places_change_no_output(family: str, folders: dict[str, Path]) -> None:
    """Any s and d at every place a to d: logits stay within 1e-4."""
    model = open_model(folders[family])
    exact = decoder_of(model, Bits(16, 16))
    other = decoder_of(model, Bits(16, 16))
    rng = np.random.default_rng(0)
    kinds = set()
    for block in model.architecture.blocks:
        tensors = {name: floats(model, name) for name in block.tensors()}
        for place in places_of(block):
            kinds.add((place.kind, place.shifts))
            s = np.exp(rng.normal(0, 0.7, place.channels(tensors))).astype(np.float32)
            d = rng.normal(0, 0.3, len(s)).astype(np.float32) if place.shifts else None
            tensors.update(moved(place, tensors, s, d))
        for name, values in tensors.items():
            if name in other.masters:
                other.masters[name] = values
            else:
                exact.bound(block)
                other.bound(block)
                other._held[block.index][name] = values
    wanted = {"llama": {("norm", False), ("heads", False)}}
    wanted["opt"] = {("norm", True), ("value", True), ("heads", False)}
    assert kinds == wanted[family]
    states = [each.states(ROWS.tokens) for each in (exact, other)]
    logits = [each._logits(np.concatenate(one)) for each, one in zip((exact, other), states, strict=True)]
    assert np.abs(logits[0] - logits[1]).max() <= 1e-4 * np.abs(logits[0]).max()


@families
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_prepared_model_of_sixteen_bits_is_the_model(
    family: str, epochs: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    if epochs:
        pytest.importorskip("torch")
    model = open_model(folders[family])
    prepare(model, TOKENS, Preparing(Bits(16, 16), epochs=epochs), tmp_path / "a.pack")
    pack = open_model(tmp_path / "a.pack")
    assert check_pack(tmp_path / "a.pack") == []
    one = decoder_of(model, Bits(16, 16))
    two = decoder_of(pack, Bits(16, 16), clips_of(pack.source))  # type: ignore[arg-type]
    first, second = (each._logits(np.concatenate(each.states(ROWS.tokens))) for each in (one, two))
    assert np.abs(first - second).max() <= 1e-4 * np.abs(first).max()


@families
def test_the_warm_start_lowers_the_blocks_error(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    how = Preparing(Bits(3, 4), epochs=6, batch=2)
    errors = prepare(open_model(folders[family]), TOKENS, how, tmp_path / "a.pack")
    assert all(after < before for before, after in errors)


def test_pytorch_has_the_same_rounding(folders: dict[str, Path]) -> None:
    torch = pytest.importorskip("torch")
    from haversack.train.gradient._zeroqat_torch import TrueGradient, fake_inputs, fake_weight

    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 32)).astype(np.float32)
    clip = rng.normal(2, 1, (2, 8, 2)).astype(np.float32)
    from haversack.train.gradient._zeroqat_grid import rounded, rounded_inputs

    ours = rounded(weight, 4, 16, clip)
    theirs = fake_weight(torch.tensor(weight), 4, 16, torch.tensor(clip)).numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-6)
    np.testing.assert_allclose(
        fake_inputs(torch.tensor(weight), 4).numpy(), rounded_inputs(weight, 4), atol=1e-6
    )
    decoder = decoder_of(open_model(folders["llama"]), Bits(8, 8), factors=True)
    true = TrueGradient(decoder)
    assert float(true.loss(ROWS).detach()) == pytest.approx(decoder.loss(ROWS), rel=2e-3)


def test_slopes_follow_the_true_gradient(folders: dict[str, Path]) -> None:
    """Without rounding each slope is the true gradient along its direction; cosines are what chance gives."""
    pytest.importorskip("torch")
    from haversack.train.gradient._zeroqat_torch import TrueGradient

    decoder = decoder_of(open_model(folders["llama"]), Bits(16, 16))
    true = TrueGradient(decoder).gradients(ROWS)
    spsa = made(bits=16, inputs=16, zo="weights", eps=1e-3).stepper(decoder, "text", 0).spsa
    with spsa.moving():
        spsa.move(1)
        plus = decoder.loss(ROWS)
        spsa.move(-1)
        minus = decoder.loss(ROWS)
    along = sum(float((true[name] * spsa.direction(name, 0)).sum()) for name in true)
    assert (plus - minus) / 2e-3 == pytest.approx(along, rel=0.05, abs=0.02)
    before = {name: values.tobytes() for name, values in decoder.masters.items()}
    found, expected = gradient_cosine(spsa, lambda: decoder.loss(ROWS), true, 24)
    assert found == pytest.approx(expected, rel=0.6)
    assert before == {name: values.tobytes() for name, values in decoder.masters.items()}, "left as it was"


class Nothing:
    """A task whose loss leaves the finite numbers at some steps."""

    kind = "text"

    def __init__(self, broken: set[int]) -> None:
        self.broken = broken

    def loss(self, decoder: RoundedDecoder, step: int) -> float:
        return float("nan") if step in self.broken else decoder.loss(ROWS)


def test_a_loss_that_is_not_finite_is_skipped_and_counted(folders: dict[str, Path]) -> None:
    decoder = decoder_of(open_model(folders["llama"]), Bits(4, 4), factors=True)
    stepper = made().stepper(decoder, "text", 0)
    task = Nothing({1})
    stepper.step((task, 0), 1e-4)
    before = {name: values.tobytes() for name, values in decoder.masters.items()}
    stepper.step((task, 1), 1e-4)
    assert before == {name: values.tobytes() for name, values in decoder.masters.items()}
    stepper.step((task, 2), 1e-4)
    assert stepper.spsa.skipped == 1 and stepper.spsa.log["step"].tolist() == [0, 2]
    assert np.isnan(stepper.history.plus[1])


@pytest.mark.parametrize("zo", ["weights", "weights+quant", "quant"])
def test_a_log_gives_the_trained_bits_again(zo: str, folders: dict[str, Path]) -> None:
    def begun() -> Any:
        decoder = decoder_of(open_model(folders["opt"]), Bits(4, 4, 16), factors=zo != "weights")
        return made(zo=zo, group=16).stepper(decoder, "text", 5)

    one, two = begun(), begun()
    for step in range(4):
        one.step((Nothing(set()), step), 1e-3)
    two.replay(one.spsa.log)
    for block in one.decoder.architecture.blocks:
        pairs = zip(one.decoder.tensors(block).values(), two.decoder.tensors(block).values(), strict=True)
        assert all(a.tobytes() == b.tobytes() for a, b in pairs)
    assert all((one.decoder.clips[name] == two.decoder.clips[name]).all() for name in one.decoder.clips)
    moved_weights = any(
        (one.decoder.masters[name] != floats(one.decoder.model, name)).mean() > 0.5
        for name in one.decoder.masters
    )
    assert moved_weights == (zo != "quant")


def test_answers_are_judged_by_their_mean_likelihood() -> None:
    scores = np.log(np.array([[0.2, 0.8], [0.5, 0.5]]))
    np.testing.assert_allclose(option_loss(scores, [1, 0]), [-np.log(0.8), np.log(2)])


@families
@pytest.mark.parametrize("variant", ["full", "light"])
def test_the_pack_is_what_was_trained(
    family: str, variant: str, folders: dict[str, Path], table: Path, tmp_path: Path
) -> None:
    course = Course(steps=3, rows=4, length=48, rate=1e-5, judge_every=1)
    method = made(variant=variant, bits=3, inputs=16, group=16)
    done = fit_quantized(folders[family], [table], tmp_path / "a.pack", method, course)
    assert done.taken == 3 and 0 <= done.held_out["accuracy"] <= 1
    assert check_pack(tmp_path / "a.pack") == []
    model = open_model(tmp_path / "a.pack")
    assert not float_matrices(model), "every matrix of the blocks is packed"
    assert {entry["form"] for entry in model.source.forms.values()} == {"nested"}  # type: ignore[attr-defined]
    decoder = RoundedDecoder(model, Bits(3, 16, 16), (), {})
    with Engine.open(tmp_path / "a.pack") as engine:
        logits, _ = engine.step(TOKENS[0], cache=engine.cache(32), want="all")
    found = decoder._logits(decoder.states([TOKENS[0]])[0])
    np.testing.assert_array_equal(logits, found)
    with np.load(tmp_path / "a.pack" / LOG_NAME) as log:
        assert log["step"].tolist() == [0, 1, 2] and len(log["plus"]) == 3


def test_a_training_that_was_ended_goes_on_to_the_same_bits(
    folders: dict[str, Path], text: Texts, tmp_path: Path
) -> None:
    course = Course(steps=5, rows=2, length=24, rate=1e-5, judge_every=2)
    for name, stop in (("a", None), ("b", 3)):
        if stop is not None:
            ended = fit_quantized(folders["opt"], text, tmp_path / "b.pack", made(), course, stop_after=stop)
            assert ended.path is None and ended.taken == 3
        done = fit_quantized(folders["opt"], text, tmp_path / f"{name}.pack", made(), course)
        assert done.taken == 5
    one, two = ((tmp_path / f"{name}.pack" / "weights.safetensors").read_bytes() for name in "ab")
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pack", "b.pack"]


def test_what_was_prepared_elsewhere_trains_without_pytorch(
    folders: dict[str, Path], table: Path, tmp_path: Path
) -> None:
    start = made(variant="light", until="prepared")
    fit_quantized(folders["opt"], [table], tmp_path / "start.pack", start, Course(length=48))
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from haversack.core import index\n"
        "from haversack.train.fit_quantized import Course, fit_quantized\n"
        "method = index.create('train', 'gradient', 'zeroqat:variant=light')\n"
        "here = Path(sys.argv[1])\n"
        "course = Course(steps=2, rows=2, length=48)\n"
        "rows = [Path(sys.argv[2])]\n"
        "print(fit_quantized(here / 'start.pack', rows, here / 'a.pack', method, course).taken)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(table)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "2", done.stderr
    with pytest.raises(UserError, match="was prepared with weights=4, and 3 is asked for"):
        fit_quantized(
            tmp_path / "start.pack",
            [table],
            tmp_path / "b.pack",
            made(variant="light", bits=3),
            Course(length=48),
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("bits=1", "bits=1 is not supported"),
        ("inputs=17", "inputs=17 is not supported"),
        ("bits=12", "bits=12 is not stored"),
        ("eps=0", "eps=0.0 is not above 0"),
        ("eps=nan", "eps=nan is not above 0"),
        ("group=7", "group=7 is outside 16 to 4096"),
        ("alpha=2", "alpha=2.0 is outside 0 to 1"),
        ("epochs=-1", "epochs=-1 is too small"),
        ("variant=heavy", "variant=heavy"),
    ],
)
def test_parameters_that_cannot_be(given: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        index.create("train", "gradient", f"zeroqat:{given}")


def test_what_does_not_go_together(
    folders: dict[str, Path], table: Path, text: Texts, tmp_path: Path
) -> None:
    def refused(said: str, data: Any = text, model: Any = None, length: int = 24, **given: Any) -> None:
        data = data if isinstance(data, Texts) else [data]
        with pytest.raises(UserError, match=said):
            fit_quantized(
                *(model or folders["llama"], data, tmp_path / "a.pack", made(**given)),
                Course(steps=2, length=length),
            )
        assert not (tmp_path / "a.pack").exists()

    refused("light is for fine-tuning on a table", variant="light")
    refused("keeps clipping and smoothing as they are", table, variant="light", zo="quant", length=48)
    refused("group=48 does not divide the 32 inputs of model.layers.0.self_attn.q_proj", group=48)
    refused("leaves no room for a text", table, length=3)
    one = tmp_path / "one.csv"
    one.write_text("text,label\nfine,good\nwell,good\n")
    refused("rows of one class only", one)
    with pytest.raises(BudgetError, match="ram_mib is 10"):
        fit_quantized(
            *(folders["llama"], text, tmp_path / "a.pack", made(), Course(steps=2, length=24)),
            budget=Budget(ram_mib=10),
        )
    with pytest.raises(UserError, match="needs calibration text"):
        prepare(open_model(folders["llama"]), TOKENS[:0], Preparing(Bits(4, 4)), tmp_path / "a.pack")
    fit_quantized(
        folders["llama"], text, tmp_path / "few.pack", made(bits=4), Course(steps=1, length=24, rows=1)
    )
    refused("starts from a checkpoint folder", model=tmp_path / "few.pack")
    with pytest.raises(UserError, match="rate=0 is not above 0"):
        Course(rate=0)


def test_the_command_trains_resumes_and_refuses(
    folders: dict[str, Path], table: Path, tmp_path: Path
) -> None:
    def run(*words: Any) -> subprocess.CompletedProcess[str]:
        program = "import sys; from haversack.cli import main; sys.exit(main())"
        line = [sys.executable, "-c", program, "train", "fit", folders["llama"], "--data", table]
        line += ["-o", tmp_path / "a.pack", "--json", *words]
        return subprocess.run([str(word) for word in line], capture_output=True, text=True)

    short = ("--steps", 2, "--rows", 2, "--length", 48, "--rate", 1e-5)
    done = run("--gradient", "zeroqat:variant=light,epochs=0,segments=4", *short)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["steps"]["taken"] == 2 and said["ram_mib"]["measured"] <= 1.3 * said["ram_mib"]["planned"]
    for words, field in (
        (("--gradient", "zeroqat:variant=light", "--batch", 4), "batch"),
        (("--gradient", "zeroqat:variant=light,epochs=0", "--ram-mib", 5, *short), "ram_mib"),
        (("--gradient", "zeroqat:bitts=4"), "bitts"),
    ):
        refused = run(*words)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
        assert json.loads(refused.stdout or refused.stderr)["field"] == field
