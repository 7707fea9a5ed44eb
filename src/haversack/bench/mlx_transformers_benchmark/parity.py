"""Rows of equality: our encoders beside transformers for every case, the backends beside the reference, the
real MiniLM beside its own library, and that padding changes no bit."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench._store import source_root
from haversack.bench.mlx_transformers_benchmark._bench import bench
from haversack.bench.mlx_transformers_benchmark._grid import TOLERANCE, open_backends
from haversack.bench.mlx_transformers_benchmark._models import PARAMETERS, bert_base, minilm, sentences

FAMILIES = ("bert", "roberta", "xlm-roberta")
EXACT = ("torch-eager", "torch-compiled", "onnxruntime", "jax", "mlx", "haversack")


def _cases() -> ModuleType:
    root = source_root()
    path = root / "tests" / "models" / "record_encoders.py" if root else None
    if path is None or not path.is_file():
        raise Unavailable("the cases and recordings are in the source tree, and this is an installed package")
    spec = importlib.util.spec_from_file_location("haversack_encoder_cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checkpoint(folder: Path, config: dict[str, Any], weights: dict[str, Any]) -> Path:
    import json

    from haversack.formats.safetensors import write_safetensors

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    write_safetensors(
        folder / "model.safetensors", [(name, "f32", a.shape, a.data) for name, a in arrays.items()]
    )
    return folder


@bench.measure(
    *[
        Row(
            f"parity-{family}",
            f"{family}, bare and with each head, equals transformers on padded batches: largest difference "
            "over the largest value",
            "relative",
            "quality",
            Bar("<=", 1e-4),
            judged="ours",
            quick=family == "bert",
        )
        for family in FAMILIES
    ],
    seconds=60,
    quick_seconds=10,
)
def parity(run: Run) -> Outcomes:
    from haversack.run._encoder import Encoder

    cases = _cases()
    live = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for family in FAMILIES:
            errors = []
            for name, config in cases.CASES.items():
                if config["model_type"] != family or (run.quick and family != "bert"):
                    continue
                weights, batch = cases.draw(name, config)
                with Encoder.open(_checkpoint(Path(scratch) / name, config, weights)) as encoder:
                    one = encoder.architecture
                    want = ["sequence", *(["pooled"] if one.pooler else []), *(["head"] if one.head else [])]
                    said = encoder.encode_ids(batch["ids"], batch["mask"], batch["types"], want=want)
                ours = {"sequence": np.concatenate(said.sequence), "pooled": said.pooled}
                ours["head"] = np.concatenate(said.head) if isinstance(said.head, list) else said.head
                stored = dict(np.load(cases.RECORDINGS / f"{name}.npz"))
                answers = cases.reference(config, weights, batch) if live else stored
                for key in ("sequence", "pooled", "head"):
                    if key in answers:
                        mine = ours[key] if live else cases.kept(ours[key])
                        largest = np.abs(answers[key]).max() if live else stored[f"{key}_largest"]
                        errors.append(float(np.abs(mine - answers[key]).max() / largest))
            if errors:
                against = "transformers, live" if live else "recordings of transformers"
                note = f"{len(errors)} outputs against {against}"
                found[f"parity-{family}"] = Outcome.single(max(errors), note=note)
    return found


@bench.measure(
    *[
        Row(
            f"gate-{name}",
            f"{name} gives the last hidden states of BERT-base that the numpy reference gives, before any "
            "time is taken: largest difference",
            "absolute",
            "quality",
            Bar("<=", TOLERANCE),
            judged="ours",
        )
        for name in EXACT
    ],
    Row(
        "parameters",
        "BERT-base without a head, its pooler included, has as many parameters as published",
        "parameters",
        "quality",
        Bar("==", PARAMETERS),
        judged="ours",
        published=PARAMETERS,
    ),
    seconds=240,
)
def gates(run: Run) -> Outcomes:
    from haversack.models._calibration import default_text

    corpus = default_text("evaluation")[:100_000]
    opened = open_backends(bert_base(), EXACT, corpus, threads=2, tolerance=float("inf"))
    found: dict[str, Outcome | Unavailable] = {
        f"gate-{name}": Outcome.single(one.difference, note=f"mean cosine {one.cosine:.7f}")
        for name, one in opened.ready.items()
    }
    found |= {f"gate-{name}": Unavailable(reason) for name, reason in opened.skipped.items()}
    count = sum(int(np.prod(array.shape)) for array in opened.checkpoint.tensors.values())
    return {**found, "parameters": Outcome.single(count)}


@bench.measure(
    Row(
        "minilm",
        "sentence vectors of all-MiniLM-L6-v2 equal those of sentence-transformers: largest difference",
        "absolute",
        "quality",
        Bar("<=", 1e-4),
        judged="ours",
    ),
    Row(
        "padding",
        "numbers of a text's vector that padding or the texts beside it change, f32 and int8-dynamic",
        "numbers",
        "quality",
        Bar("==", 0),
        judged="ours",
        quick=True,
    ),
    seconds=60,
    quick_seconds=15,
)
def real(run: Run) -> Outcomes:
    return {"minilm": _minilm(), "padding": _padding()} if not run.quick else {"padding": _padding()}


def _minilm() -> Outcome | Unavailable:
    from haversack.run._encoder import Encoder

    if importlib.util.find_spec("sentence_transformers") is None:
        return Unavailable("sentence-transformers is not installed; run: pip install sentence-transformers")
    try:
        folder = minilm()
    except Unavailable as error:
        return error
    from sentence_transformers import SentenceTransformer

    texts = sentences(64)
    with Encoder.open(folder) as encoder:
        ours = encoder.embed(texts)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_numpy=True)
    return Outcome.single(float(np.abs(ours - theirs).max()), note=f"{len(texts)} sentences")


def _padding() -> Outcome:
    from haversack.bench.mlx_transformers_benchmark._haversack import int8_pack
    from haversack.run._encoder import Encoder

    folder = bert_base()
    texts = sentences(9)
    changed = 0
    for source, residency in ((folder, "copied"), (folder, "mapped"), (int8_pack(folder), "copied")):
        with Encoder.open(source, residency=residency) as encoder:
            together = encoder.tokens(texts)
            longest = max(len(text) for text in together)
            ids = np.zeros((len(texts), longest + 5), np.int32)
            for row, text in zip(ids, together, strict=True):
                row[: len(text)] = text.ids
            padded = encoder.encode_ids(ids, ids != 0).sequence
            for text, states in zip(together, padded, strict=True):
                alone = encoder.encode_tokens([text]).sequence[0]
                changed += int((alone != states).sum())
    return Outcome.single(changed, note="9 texts, three ways of holding the weights")
