"""What `haversack export --to onnx` writes, run by ONNX Runtime: its logits beside the engine's, its size
beside the pack's, and how fast both decode.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.engine._bench import SHRINK_FILES
from haversack.bench.engine._models import code_pack
from haversack.bench.engine.parity import FAMILIES
from haversack.bench.formats._bench import FORMATS_FILES, bench, difference, family_outcomes, needs, ours

DECODED = 8
PACKED = {"int8": "round-to-nearest:bits=8", "int4": "round-to-nearest:bits=4,group=64"}
PROMPT, SPEED_TOKENS = 64, 32


class Graph:
    """An exported folder in ONNX Runtime, with `threads` threads (0: its own choice)."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=providers)
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.forget()

    def forget(self) -> None:
        """Begin a new text."""
        inputs = [one for one in self.session.get_inputs() if one.name.startswith("past")]
        self.past = {one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32) for one in inputs}
        self.at = 0

    def step(self, ids: Any) -> Any:
        """Logits f32 [n, vocabulary] of the tokens that follow."""
        n = len(ids)
        given = {
            "input_ids": np.asarray([ids], np.int64),
            "attention_mask": np.ones((1, self.at + n), np.int64),
            "position_ids": np.arange(self.at, self.at + n, dtype=np.int64)[None],
        }
        found = self.session.run(self.outputs, given | self.past)
        names = [name.replace("present", "past_key_values") for name in self.outputs[1:]]
        self.past = dict(zip(names, found[1:], strict=True))
        self.at += n
        return found[0][0]

    def answer(self, prompt: Any, decoded: int) -> tuple[Any, list[int]]:
        """Logits of the prompt and of `decoded` - 1 greedy tokens, and the tokens."""
        rows, tokens = [self.step(prompt)], []
        for index in range(decoded):
            tokens.append(int(rows[-1][-1].argmax()))
            if index < decoded - 1:
                rows.append(self.step(tokens[-1:]))
        return np.concatenate(rows), tokens


def exported(model: Path, goal: Path, activations: str = "f32") -> Path:
    """`model` as ONNX at `goal`."""
    from haversack.run._source import open_model
    from haversack.run.export import export

    export(open_model(model), "onnx", goal, activations=activations)
    return goal


@bench.measure(
    *[
        Row(
            f"onnx-{family}",
            f"{family} exported to ONNX says in ONNX Runtime, over prompt and {DECODED} decoded steps, what "
            "the engine says, greedy tokens identical: largest difference over the largest logit",
            "relative",
            "quality",
            Bar("<=", 1e-4),
            judged="ours",
        )
        for family in FAMILIES
    ],
    seconds=60,
)
def families(run: Run) -> Outcomes:
    needs("onnx", "onnxruntime")

    def answer(folder: Path, goal: Path, prompt: Any) -> tuple[Any, list[int]]:
        return Graph(exported(folder, goal)).answer(prompt, DECODED)

    return family_outcomes("onnx", FAMILIES, answer, DECODED)


@bench.measure(
    *[
        Row(
            f"onnx-code-{kind}",
            f"`code` packed in {kind}, exported without rounding, says in ONNX Runtime what the engine says "
            "on the same integers: largest difference over the largest logit",
            "relative",
            "quality",
            Bar("<=", 1e-4),
            judged="ours",
            quick=True,
        )
        for kind in PACKED
    ],
    *[
        Row(
            f"onnx-size-{kind}",
            f"graph and weights of that export over the weights of the pack ({kind})",
            "MiB",
            "bytes",
            Bar("<=", 1.15),
            quick=True,
        )
        for kind in PACKED
    ],
    seconds=30,
    quick_seconds=20,
    watches=(*FORMATS_FILES, *SHRINK_FILES),
)
def packed(run: Run) -> Outcomes:
    needs("onnx", "onnxruntime")
    found = {}
    rng = np.random.default_rng(run.seed)
    for kind, precision in PACKED.items():
        pack = code_pack(precision)
        prompt = rng.integers(3, 4000, 96).astype(np.int32)
        with TemporaryDirectory() as scratch:
            folder = exported(pack, Path(scratch) / "out")
            logits, tokens = Graph(folder).answer(prompt, DECODED)
            size = sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
        expected, same = ours(pack, prompt, DECODED)
        found[f"onnx-code-{kind}"] = Outcome.single(difference(logits, expected, tokens, same))
        own = (pack / "weights.safetensors").stat().st_size
        found[f"onnx-size-{kind}"] = Outcome.single(
            size / 2**20, own / 2**20, name="ONNX", against="pack's weights"
        )
    return found


@bench.measure(
    Row(
        "onnx-decode-int4",
        f"decoding {SPEED_TOKENS} tokens of `code` in int4 after {PROMPT}, int8-dynamic activations on both "
        "sides, one thread: the engine beside ONNX Runtime on its export",
        "tokens/s",
        "time",
    ),
    seconds=30,
    watches=(*FORMATS_FILES, *SHRINK_FILES),
)
def speed(run: Run) -> Outcomes:
    needs("onnx", "onnxruntime")
    from haversack.run import Engine

    pack = code_pack(PACKED["int4"])
    prompt = np.random.default_rng(run.seed).integers(3, 4000, PROMPT).astype(np.int32)
    with TemporaryDirectory() as scratch:
        graph = Graph(exported(pack, Path(scratch) / "out", "int8-dynamic"), threads=1)
        with Engine.open(pack, activations="int8-dynamic", threads=1) as engine:

            def theirs() -> float:
                graph.forget()
                token = int(graph.step(prompt)[-1].argmax())
                begun = time.perf_counter()
                for _ in range(SPEED_TOKENS):
                    token = int(graph.step([token])[-1].argmax())
                return SPEED_TOKENS / (time.perf_counter() - begun)

            def here() -> float:
                cache = engine.cache(PROMPT + SPEED_TOKENS)
                logits = engine.step(prompt, cache=cache)[0]
                begun = time.perf_counter()
                for _ in range(SPEED_TOKENS):
                    assert logits is not None
                    logits = engine.step([int(logits[-1].argmax())], cache=cache)[0]
                return SPEED_TOKENS / (time.perf_counter() - begun)

            taken = run.interleave({"ONNX Runtime": theirs, "haversack": here})
    return {"onnx-decode-int4": Outcome.of(taken, ours="haversack", baseline="ONNX Runtime")}
