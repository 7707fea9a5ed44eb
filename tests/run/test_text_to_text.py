"""Packs of an encoder with a decoder: the same tokens wherever weights live, experts in the bytes allowed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.text_to_text import SWITCH, VOCABULARY, draw, tokenizer_json, write_folder

from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.memory import drop_cached, run_measured
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.models import read_architecture
from haversack.models._experts import experts_of
from haversack.run import Engine, Limits, Sampler, generate
from haversack.run._paths import PROFILE_NAME, Profile
from haversack.run._prediction import Paths
from haversack.shrink.precision.edgemoe import compressed

READ = np.random.default_rng(3).integers(3, VOCABULARY - 3, 30).astype(np.int32)
WRITTEN = np.random.default_rng(4).integers(3, VOCABULARY - 3, 20).astype(np.int32)
LARGE = {**SWITCH, "d_ff": 1024, "d_model": 256, "d_kv": 64, "num_experts": 8}
"""64 MiB of experts in f32."""
PROGRAM = """
import json, sys
import numpy as np
from haversack.core.budget import Budget
from haversack.run import Engine
pack, prompt, text, ram_mib = json.loads(sys.argv[1])
size = (len(prompt), 16)
with Engine.open(pack, residency="streamed:edgemoe", budget=Budget(ram_mib=ram_mib), tokens=size) as engine:
    cache = engine.cache(17)
    row, best = engine.read(np.asarray(prompt, np.int32), cache), []
    for token in text:
        best.append(int(row[0].argmax()))
        row = engine.step([token], cache=cache)[0]
print(json.dumps(best))
"""


def write_pack(path: Path, config: dict[str, Any], bits: tuple[int, ...] = (4, 2, 8, 32)) -> Path:
    """A pack whose experts have `bits` in turn, and a profile of drawn paths."""
    architecture = read_architecture(config, reader=True)
    experts = experts_of(architecture)
    assert experts is not None
    inside = {linear.weight for linear in architecture.matrices()}
    with PackWriter(path) as writer:
        writer.keep_experts("drawn", experts.owners)
        for name, values in draw(config).items():
            if name in experts.owners:
                found = compressed(values, bits[experts.owners[name][1] % len(bits)])
                stored: Any = getattr(found, "stored", None)
                matrix = found.packed()
                data = matrix.data if stored is None else stored()
                kind = found.kind
                writer.add_tensor(name, kind.kind, matrix.shape, [data], kind.group, matrix.layout)
            else:
                half = name in inside and "classifier" not in name
                values = values.astype("<f2") if half else values
                writer.add_tensor(name, "f16" if half else "f32", values.shape, [values])
        writer.add_file("tokenizer.json", tokenizer_json().encode())
        rng = np.random.default_rng(5)
        layers = len(experts.blocks) - experts.read
        routes = rng.integers(0, experts.count, (200, layers, 1)).astype(np.int32)
        profile = Profile.of_routes(routes, experts.count, "drawn", experts.read)
        writer.add_file(PROFILE_NAME, profile.to_bytes())
        record = {"architecture": config, "plan": {"activations": "f32"}, "provenance": {"identity": "drawn"}}
        writer.finish(record)
    return path


def written(engine: Engine, count: int = 20) -> np.ndarray:
    """Logits f32 [count + 1, vocabulary] of a drawn text."""
    cache = engine.cache(count + 1)
    rows = [engine.read(READ, cache)]
    rows += [engine.step([token], cache=cache)[0] for token in WRITTEN[:count].tolist()]
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("switch") / "switch.pack", SWITCH)


@pytest.fixture(scope="module")
def plain(pack: Path) -> np.ndarray:
    with Engine.open(pack, residency="mapped") as engine:
        return written(engine)


@pytest.mark.parametrize("way", ["copied", "streamed", "streamed:keep=2", "streamed:keep=6"])
def test_the_pack_runs_wherever_its_weights_live(way: str, pack: Path, plain: np.ndarray) -> None:
    assert check_pack(pack) == []
    with Engine.open(pack, residency=way) as engine:
        for _ in range(2):  # a second text begins with the encoder again
            assert np.array_equal(written(engine), plain)


def test_blocks_of_the_encoder_are_read_once_a_text(pack: Path) -> None:
    """What a token reads from storage are the decoder's blocks and the output matrix, not the encoder's."""
    with Engine.open(pack, residency="streamed") as engine:
        cache = engine.cache(30)
        engine.read(READ, cache)
        engine.step([5], cache=cache)
        before = engine.held.bytes_read
        for _ in range(10):
            engine.step([5], cache=cache)
        a_token = (engine.held.bytes_read - before) / 10
        units = [unit.nbytes for unit in engine.held._units]
    assert a_token < 1.1 * (sum(units[4:]) + 4096)


@pytest.mark.parametrize("predict", ["paths", "gate", "none"])
@pytest.mark.parametrize("eviction", ["intent", "printed", "lru", "none"])
def test_no_buffer_changes_a_bit(predict: str, eviction: str, pack: Path, plain: np.ndarray) -> None:
    for kib in (0, 60, 150, 4000):
        way = f"streamed:edgemoe,buffer_kib={kib},eviction={eviction},predict={predict}"
        with Engine.open(pack, residency=way) as engine:
            assert np.array_equal(written(engine), plain)
            told = engine.held.record(1.0)
            assert told["peak_nbytes"] <= engine.held.budget
            assert told["hits"] + told["late"] + told["demands"] == told["asked"] > 0


def test_the_process_keeps_to_its_budget(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "large.pack", LARGE, (32,))
    size = (len(READ), 16)
    with Engine.open(path, residency="mapped") as engine:
        expected = written(engine, 16).argmax(axis=1)[:16].tolist()
    with Engine.open(path, residency="streamed:edgemoe:buffer_kib=0", tokens=size) as engine:
        least = engine.memory_plan(size).total_mib
    files = Pack.open(path).files
    drop_cached(files)
    given = json.dumps([str(path), READ.tolist(), WRITTEN[:16].tolist(), least + 4])
    done = run_measured([sys.executable, "-c", PROGRAM, given], files=files, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
    assert done.peak_mib <= least + 4
    with pytest.raises(BudgetError):
        Engine.open(path, residency="streamed:edgemoe", budget=Budget(ram_mib=least - 4), tokens=size)


@pytest.mark.parametrize("cache_type", ["f16", "int8"])
def test_smaller_caches_stay_near(cache_type: str, pack: Path, plain: np.ndarray) -> None:
    with Engine.open(pack, residency="mapped", cache_type=cache_type) as engine:
        cache = engine.cache(8)
        row = engine.read(READ, cache)
        assert {layer.kind for layer in cache.cross.values()} == {cache_type}
    assert np.abs(row - plain[:1]).max() <= (0.01 if cache_type == "f16" else 0.1) * np.abs(plain[0]).max()


def test_generate_shows_sentinels_and_stops_at_the_end(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    with Engine.open(folder) as engine:
        answer = generate(engine, "a <extra_id_0> dog", Limits(max_tokens=12, end=()))
        tokens = [token.id for token in answer]
        assert answer.prompt_tokens == 6 and len([t for t in tokens if t is not None]) == 12
        shown = [t for t in answer.tokens if t in engine.model.tokenizer().sentinels()]
        assert answer.text.count("<extra_id_") == len(shown)
        assert [*generate(engine, "a <extra_id_0> dog", Limits(12, end=(answer.tokens[0],)))] == []
        drawn = [
            [t.id for t in generate(engine, "a dog", Limits(8, end=()), Sampler(temperature=1.0, seed=seed))]
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]


def test_a_prompt_longer_than_what_is_written_is_read(tmp_path: Path) -> None:
    config = {**SWITCH, "n_positions": 64}
    with Engine.open(write_folder(tmp_path / "m", config)) as engine:
        answer = generate(engine, READ.tolist() + READ.tolist(), Limits(max_tokens=3, end=()))
        assert len([*answer]) == 3
        with pytest.raises(UserError, match="65 tokens and the context holds 64"):
            generate(engine, [5] * 65)


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        ({"attention": "sliding:window=8"}, "sliding does not work with encoder-decoder"),
        ({"attention": "dhsa:mode=dhsa_topk"}, "dhsa does not work with encoder-decoder"),
        ({"prefill": "chunked"}, "chunked does not work with encoder-decoder"),
        ({"decode": "linear-draft", "draft": "code-draft"}, "linear-draft does not work"),
        ({"residency": "streamed:edgemoe"}, "expert-store"),
    ],
)
def test_what_does_not_go_together_is_refused(slots: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        Engine.open(write_folder(tmp_path / "m"), **slots)


def test_a_step_before_anything_was_read_is_refused(pack: Path) -> None:
    with (
        Engine.open(pack, residency="mapped") as engine,
        pytest.raises(UserError, match="writes what follows from a text"),
    ):
        engine.step([0], cache=engine.cache(4))


@pytest.mark.parametrize(
    ("name", "shape", "error"),
    [
        ("decoder.block.1.layer.2.mlp.experts.expert_2.wo.weight", None, DamagedFileError),
        ("encoder.block.1.layer.1.mlp.router.classifier.weight", (5, 64), UserError),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (8, 4), UserError),
        ("shared.weight", (VOCABULARY, 32), UserError),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, shape: tuple[int, ...] | None, error: type[Exception], tmp_path: Path, monkeypatch: Any
) -> None:
    import tests.run.text_to_text as made

    weights = draw(SWITCH)
    weights = {key: value for key, value in weights.items() if key != name or shape is not None}
    if shape is not None:
        weights[name] = np.zeros(shape, np.float32)
    monkeypatch.setattr(made, "draw", lambda *_: weights)
    with pytest.raises(error) as caught:
        Engine.open(made.write_folder(tmp_path / "m"))
    assert caught.value.field == name


def test_an_output_matrix_of_its_own_is_not_passed_over(tmp_path: Path, monkeypatch: Any) -> None:
    import tests.run.text_to_text as made

    weights = draw(SWITCH)
    for values, fits in ((weights["shared.weight"], True), (weights["shared.weight"] * 2, False)):
        both = {**weights, "lm_head.weight": values}
        monkeypatch.setattr(made, "draw", lambda *_, both=both: both)
        folder = made.write_folder(tmp_path / str(fits))
        if fits:
            Engine.open(folder).close()
            continue
        with pytest.raises(UserError, match=r"lm_head\.weight that is not the embedding") as caught:
            Engine.open(folder)
        assert caught.value.field == "tie_word_embeddings"


def test_paths_begin_behind_the_encoder() -> None:
    routes = np.array([[[0], [1], [0]], [[1], [0], [1]]] * 4, np.int32)
    profile = Profile.of_bytes(Profile.of_routes(routes, 2, "m", first=2).to_bytes())
    assert (profile.layers, profile.first) == (5, 2)
    assert profile.frequencies.tolist() == [[0, 0], [0, 0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    paths = Paths(profile)
    paths.chose(1, [0])
    assert paths.likely(2) == [0, 1]
    paths.chose(2, [0])
    assert paths.likely(3) == [1]
    paths.chose(3, [1])
    assert paths.likely(4) == [0]
    with pytest.raises(UserError, match="another model"):
        profile.require("m", 5, 2)
    profile.require("m", 5, 2, first=2)
