"""The bench of Edge-ASR: its grid says what is defined, bars follow from the grid, its sound is held out."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack.bench import Outcome, Run, Unavailable, find_bench
from haversack.bench.edge_asr import costs, diagnostics, errors, spelling
from haversack.bench.edge_asr._bench import MODELS, NAMES, SETTINGS, choice, undefined
from haversack.bench.edge_asr._strings import SetErrors, calibration_strings, set_errors, test_sets
from haversack.core import index
from haversack.core.errors import UserError
from haversack.shrink._precision import StoredKind

test_sets.__test__ = False  # type: ignore[attr-defined]  # it makes sets, it is no test


def run(quick: bool = True) -> Run:
    return Run(quick, 1, time.monotonic() + 600)


def test_every_kind_that_is_claimed_is_seen_in_a_minute() -> None:
    bench = find_bench("edge-asr")
    assert bench is find_bench("16")
    assert {row.kind for row in bench.rows if row.quick} == {row.kind for row in bench.rows}
    assert sum(measure.seconds for measure in bench.measures) <= 45 * 60


def test_the_grid_is_eight_methods_at_four_settings_on_two_models() -> None:
    ids = {row.id for row in find_bench("16").rows}
    assert len(NAMES) == 8 and len(SETTINGS) == 4 and len(MODELS) == 2
    lacking = {
        (method, setting.name)
        for method in NAMES
        for setting in SETTINGS.values()
        if f"wer-base-{setting.name}-{method}" not in ids
    }
    assert lacking == {("spqr", "w8a8"), ("spqr", "w4a8")}
    assert all(undefined(method, SETTINGS[setting]) for method, setting in lacking)


def test_a_choice_is_a_method_of_the_index_or_a_reason() -> None:
    for setting in SETTINGS.values():
        for method in NAMES:
            try:
                chosen = choice(method, setting)
            except Unavailable as reason:
                assert NAMES[method] in str(reason) or "SpQR" in str(reason)
                continue
            made = index.create("shrink", "precision", chosen)
            assert made.bits == setting.bits  # type: ignore[attr-defined]
    assert choice("rtn", SETTINGS["w4a16"]) == "round-to-nearest:bits=4,group=32"
    assert choice("gptq", SETTINGS["w8a8"]) == "gptq:bits=8"


def rates(rate: float) -> SetErrors:
    return SetErrors({"ada": rate, "bo": rate}, 100, 0, 0, 0)


def grid(**increases: float) -> errors.Grid:
    """A grid in which every setting adds the same, on the small model twice as much."""
    cells: dict[tuple[str, str, str], SetErrors | Unavailable] = {}
    for size, setting, method in errors.CELLS:
        found = increases.get(method)
        factor = 2 if size == "small" else 1
        cells[size, setting.name, method] = (
            Unavailable("not there") if found is None else rates(4.0 + factor * found)
        )
    return cells


FLOATS = {size: rates(4.0) for size in MODELS}


def held(cells: errors.Grid) -> dict[str, bool | None]:
    """The verdicts of the harness."""
    from haversack.bench._rows import judge

    rows = {row.id: row for row in errors.BARS}
    verdicts: dict[str, bool | None] = {}
    for name, outcome in errors.judged(cells, FLOATS).items():
        verdicts[name] = judge(rows[name], outcome)["holds"] if isinstance(outcome, Outcome) else None
    return verdicts


def test_the_bars_follow_from_the_grid() -> None:
    good = dict(rtn=4.0, smoothquant=0.2, awq=1.5, omniquant=1.0, gptq=1.2, tesseraq=0.9, quik=3.0, spqr=0.5)
    assert all(held(grid(**good)).values())
    assert held(grid(**good))["w8a8-small"] is True  # 0.4 points
    bad = held(
        grid(
            **{
                **good,
                "smoothquant": 3.5,
                "spqr": 2.5,
                "tesseraq": 2.4,
                "omniquant": 2.6,
                "gptq": 2.7,
                "awq": 2.8,
            }
        )
    )
    assert bad["w3a16-nearest"] is False and bad["w3a16-best"] is True
    worse = held(grid(**{name: 5.0 + at for at, name in enumerate(good)}))
    assert worse["w3a16-best"] is False and worse["w3a16-rank"] is False and worse["w8a8-base"] is False


def test_what_is_missing_is_a_reason_and_the_rest_is_judged() -> None:
    few = held(grid(rtn=4.0, gptq=1.0, awq=1.5))
    assert few["w8a8-base"] is None and few["w3a16-nearest"] is True and few["w3a16-rank"] is True
    none = held(grid(gptq=1.0))
    assert none["w3a16-best"] is None
    still = held(grid(rtn=0.0, gptq=0.0))
    assert still["w3a16-nearest"] is None  # nothing to halve


def test_places_that_are_shared() -> None:
    assert errors.ranks({"a": 1.0, "b": 3.0, "c": 1.0, "d": 2.0}) == {"a": 1.5, "b": 4.0, "c": 1.5, "d": 3.0}


def test_errors_are_pooled_in_a_set_and_averaged_over_sets() -> None:
    said = {"ada": ["one two three four", "five six"], "bo": ["seven"]}
    written = {"ada": ["one two three", "five six six"], "bo": ["seven"]}
    found = set_errors(said, written)
    assert found.by_set == pytest.approx({"ada": 100 * 2 / 6, "bo": 0.0})
    assert found.mean == pytest.approx(100 / 6)
    assert (found.words, found.deletions, found.insertions, found.substitutions) == (7, 1, 1, 0)
    with pytest.raises(UserError, match="no words"):
        set_errors({"ada": [""]}, {"ada": ["one"]})


def test_nothing_is_tuned_on_what_is_tested(data: Callable[[str], Path]) -> None:
    data("audio/spoken-digits.tar.xz")
    sets, calibration = test_sets(3), calibration_strings()
    assert len(calibration) == 128
    assert {one.speaker for one in calibration} == set(sets)
    assert all("-test-" in one.name for few in sets.values() for one in few)
    assert all("-train-" in one.name for one in calibration)


def test_absent_data_is_a_reason_not_a_failure(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.delenv("HAVERSACK_DATA", raising=False)
    for measure in (errors.floats, spelling.spelling, diagnostics.diagnostics, costs.costs):
        with pytest.raises(Unavailable, match="HAVERSACK_DATA"):
            measure(run())


def test_a_rounded_network_is_rounded_on_what_it_will_get(tmp_path: Path) -> None:
    """Two 1x1 convolutions: the second is calibrated on what the rounded first one sends in."""
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(3)
    first, second = (rng.standard_normal((8, 8, 1, 1)).astype(np.float32) for _ in range(2))
    nodes = [
        onnx.helper.make_node("Conv", ["log_mel", "first"], ["middle"]),
        onnx.helper.make_node("Conv", ["middle", "second"], ["end"]),
    ]
    float_type = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "two",
        [onnx.helper.make_tensor_value_info("log_mel", float_type, ["n", 8, 3, 3])],
        [onnx.helper.make_tensor_value_info("end", float_type, ["n", 8, 3, 3])],
        [onnx.numpy_helper.from_array(first, "first"), onnx.numpy_helper.from_array(second, "second")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    features = rng.standard_normal((5, 8, 3, 3)).astype(np.float32)
    inputs = []

    def quantize(weight: np.ndarray, entering: np.ndarray) -> np.ndarray:
        inputs.append(entering)
        return np.round(weight)

    changed = onnx.load_from_string(spelling.compressed(model.SerializeToString(), features, quantize))
    rows = np.moveaxis(features, 1, -1).reshape(-1, 8)
    assert np.allclose(inputs[0], rows, atol=1e-5)
    assert np.allclose(inputs[1], rows @ np.round(first[:, :, 0, 0]).T, atol=1e-4)
    kept = [onnx.numpy_helper.to_array(one) for one in changed.graph.initializer]
    assert all(np.array_equal(one, np.round(one)) for one in kept)
    assert [one.name for one in changed.graph.output] == ["end"]


def test_a_quantizer_of_convolutions_keeps_what_it_is_asked_to() -> None:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((24, 64)).astype(np.float32)
    inputs = (rng.standard_normal((400, 64)) * rng.uniform(0.1, 10, 64)).astype(np.float32)
    missed = {}
    for method in spelling.METHODS:
        quantize, nbytes = spelling.quantizer(method, 4)
        missed[method] = float(np.square(inputs @ (quantize(weight.copy(), inputs) - weight).T).sum())
        plain = StoredKind.of_bits(4, 32).nbytes(24, 64)
        assert nbytes(24, 64) == plain + (128 if method == "awq" else 0)
    assert missed["gptq"] < missed["rtn"] and missed["awq"] < missed["rtn"]
    with pytest.raises(Unavailable, match="bits=5"):
        spelling.quantizer("rtn", 5)


def test_the_shipped_network_needs_its_runner(data: Callable[[str], Path]) -> None:
    data("models/moonshine-micro/spelling_cnn_mel_int8.tflite")
    features = np.zeros((1, 1, 64, 128), np.float32)
    if importlib.util.find_spec("ai_edge_litert") is None:
        with pytest.raises(Unavailable, match="ai-edge-litert"):
            spelling.shipped_logits(features)
    else:
        assert spelling.shipped_logits(features).shape == (1, 51)
