"""Low rank in packs: what factors cost a trained language model, and what they give the engine.

Quality: the bundled model `code` at ranks of the limit, without training again, factored by SVD and whitened
on calibration text. Speed: a drawn decoder of width 1,024, four blocks, 8 bits, dense and at 0.4 of the
limit, one token at a time; and the factored blocks as one native call beside layer by layer, which is what a
form costs that has no steps in a program.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.greenformers._bench import bench
from haversack.shrink.structure.low_rank import Shape

TRIED = {"svd-0.75": (0.75, "svd"), "whitened-0.75": (0.75, "whitened"), "whitened-0.5": (0.5, "whitened")}
EVALUATION_TOKENS, CALIBRATION_TOKENS, LENGTH = 8_192, 16_384, 512
SHARE, STEPS = 0.4, 16
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@bench.measure(
    *[
        Row(
            f"pack-{name}",
            f"`code` packed in f16 with its matrices at {rank} of the limit ({solver}), not trained again: "
            "bits per byte, beside the model as it came",
            "bits/byte",
            "quality",
        )
        for name, (rank, solver) in TRIED.items()
    ],
    Row(
        "pack-whitened",
        "relative error of outputs on calibration text at 0.75 of the limit: whitened beside svd",
        "relative",
        "quality",
        Bar("<=", 1.0),
    ),
    seconds=80,
)
def trained(run: Run) -> Outcomes:
    from haversack.formats.safetensors import HubFolder
    from haversack.models import Tokenizer, read_architecture
    from haversack.models._bundled import bundled_names, model_folder
    from haversack.models._calibration import segments, token_text
    from haversack.models._checkpoint import checkpoint
    from haversack.plan._candidates import Plan
    from haversack.plan._measure import quality

    if "code" not in bundled_names():
        raise Unavailable("the bundled model `code` is not installed")
    hub = HubFolder.open(model_folder("code"))
    architecture, tokenizer = read_architecture(hub.config), Tokenizer.of_folder(hub.path)
    source = checkpoint(hub, architecture)

    def text(purpose: str, fewest: int) -> Any:
        def encode(part: str) -> list[int]:
            return list(tokenizer.encode(part, special=False))

        return token_text(encode, architecture.vocabulary, purpose, None, fewest)

    evaluation = text("evaluation", 1024).part(EVALUATION_TOKENS)
    calibration = text("calibration", 2048)
    texts = segments(calibration.tokens, LENGTH, CALIBRATION_TOKENS // LENGTH, 0)
    found: dict[str, Outcome] = {}
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plain = quality(hub.path, None, evaluation, LENGTH, folder)
        for name, (rank, solver) in TRIED.items():
            plan = Plan("keep:kind=f16", f"low-rank:rank={rank},solver={solver}")
            layers = write(source, architecture, plan, texts, folder / f"{name}.pack")
            value = quality(folder / f"{name}.pack", plan, evaluation, LENGTH, folder)
            weights = sum(layer.error for layer in layers) / len(layers)
            errors[name] = sum(layer.output_error for layer in layers) / len(layers)
            note = f"mean relative error of weights {weights:.2f}, of outputs {errors[name]:.2f}"
            found[f"pack-{name}"] = Outcome.single(value, plain, name=solver, against="dense", note=note)
    found["pack-whitened"] = Outcome.single(
        errors["whitened-0.75"], errors["svd-0.75"], name="whitened", against="svd"
    )
    return found


def write(source: Any, architecture: Any, plan: Any, texts: Any, goal: Path) -> list[Any]:
    """Pack `source` by `plan` with the statistics of `texts`, read for either solver; its factored layers."""
    from haversack.core.pack import PackWriter
    from haversack.plan._structure import Structures
    from haversack.shrink._language import LanguageWalk
    from haversack.shrink._pipeline import Policy, compress

    walk = LanguageWalk(architecture)
    method: Any = Structures(walk, source).compression(*plan.stored)
    method.needs = frozenset({"hessian"})  # so that the errors of outputs are known for both
    with PackWriter(goal) as writer:
        compress(source, walk, method, writer, texts=texts, policy=Policy(), folder=goal.parent)
        writer.add_file("tokenizer.json", source.path / "tokenizer.json")
        writer.finish({"architecture": dict(source.config), "plan": plan.record()})
    return [layer for layer in method.layers if layer.rank is not None]


@bench.measure(
    Row(
        "pack-blocks",
        f"bytes of the blocks at {SHARE} of the limit in 8 bits, beside dense in 8 bits",
        "bytes",
        "bytes",
        Bar("<=", 0.45),
    ),
    Row("pack-decode", f"tokens a second at {SHARE} of the limit, beside dense, 8 bits", "tokens/s", "time"),
    Row(
        "pack-program",
        "tokens a second of factored blocks: each one native call, beside layer by layer",
        "tokens/s",
        "time",
        Bar(">=", 1.0),
    ),
    seconds=40,
)
def engine(run: Run) -> Outcomes:
    from haversack.run import Engine

    with tempfile.TemporaryDirectory() as scratch:
        packs = {
            name: drawn(Path(scratch) / f"{name}.pack", name == "factored") for name in ("dense", "factored")
        }
        with (
            Engine.open(packs["dense"], residency="copied") as dense,
            Engine.open(packs["factored"], residency="copied") as factored,
            Engine.open(packs["factored"], residency="copied") as by_layer,
        ):
            by_layer.forward.programs._space = None
            sides = {"dense": decoding(dense), "factored": decoding(factored), "layers": decoding(by_layer)}
            for side in sides.values():
                side()
            taken = run.interleave(sides, 2 * MIN_PAIRS)
            blocks = [
                sum(one.nbytes for one in each.model.source.tensors.values() if ".layers." in one.name)
                for each in (factored, dense)
            ]
    note = "width 1,024, four blocks, int8-dynamic, copied"
    return {
        "pack-blocks": Outcome.single(*blocks, name="factored", against="dense", note=note),
        "pack-decode": Outcome.of(taken, ours="factored", baseline="dense", note=note),
        "pack-program": Outcome.of(taken, ours="factored", baseline="layers", note=note),
    }


def drawn(path: Path, thin: bool) -> Path:
    """A pack of CONFIG with drawn codes of 8 bits, its blocks in factors if `thin`."""
    from haversack.core.pack import PackWriter
    from haversack.kernels import pack_int8
    from haversack.models import read_architecture

    generator = np.random.default_rng(0)
    architecture = read_architecture(CONFIG)
    inside = {linear.weight for block in architecture.blocks for linear in block.matrices()}
    with PackWriter(path) as writer:

        def matrix(name: str, rows: int, columns: int) -> None:
            codes = generator.integers(-127, 128, (rows, columns), dtype=np.int8)
            packed = pack_int8(codes, np.full(rows, 1 / (73 * columns**0.5), np.float32))
            writer.add_tensor(name, "int8", (rows, columns), [packed.data], None, packed.layout)

        for name, shape in architecture.tensors().items():
            if len(shape) == 1:
                writer.add_tensor(name, "f32", shape, [np.ones(shape, np.float32).data])
                continue
            rows, columns = shape
            rank = Shape(columns, rows).rank(SHARE) if thin and name in inside else None
            if rank is None:
                matrix(name, rows, columns)
                continue
            matrix(f"{name}.first", rank, columns)
            matrix(f"{name}.second", rows, rank)
            writer.add_form(name, {"form": "low-rank", "shape": [rows, columns], "rank": rank})
        plan = {"precision": "round-to-nearest:bits=8", "activations": "int8-dynamic"}
        writer.finish({"architecture": CONFIG, "plan": plan, "activations": "int8-dynamic"})
    return path


def decoding(engine: Any) -> Callable[[], float]:
    """A function that decodes STEPS tokens and returns tokens a second."""
    cache = engine.cache(64)

    def once() -> float:
        cache.truncate(0)
        start = perf_counter()
        for token in range(STEPS):
            engine.step(np.asarray([token + 1], np.int32), cache=cache)
        return STEPS / (perf_counter() - start)

    return once
