"""What must hold exactly: a budget as long as the prompt is dense attention; and what a run plans to take."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.dhsa._bench import bench
from haversack.bench.dhsa._models import TEST, documents, recall_folder, sparse

LENGTH = 2048
SMALL = 512
EQUAL = Row(
    "budget-of-all",
    "a budget of at least the prompt's length gives dense attention's logits to 1e-5",
    "largest difference",
    "quality",
    Bar("<=", 1e-5),
    judged="ours",
    quick=True,
)
THROUGH = Row(
    "kernel-of-all",
    "so does every key, gathered and read by the sparse kernel",
    "largest difference",
    "quality",
    Bar("<=", 1e-5),
    judged="ours",
    quick=True,
)
PLANNED = Row(
    "peak-planned",
    "the memory planned for a sparse prompt of 8,192 tokens beside the peak of a fresh process",
    "MiB",
    "memory",
    Bar(">=", 1.0),
)
PROGRAM = """
import json, sys
import numpy as np
from haversack.core.memory import peak_mib
from haversack.run._engine import Engine
model, attention, path, count = sys.argv[1:]
tokens = np.load(path)[: int(count)]
with Engine.open(model, attention=attention, context_length=len(tokens)) as engine:
    engine.slots.prefill.prefill(engine, tokens, engine.cache(len(tokens)))
    planned = engine.memory_plan((len(tokens), 1)).total_mib
    print(json.dumps({"planned": planned, "measured": peak_mib(engine.model.source.files)}))
"""


@bench.measure(EQUAL, THROUGH, seconds=15, quick_seconds=8)
def equal_to_dense(run: Run) -> Outcomes:
    from haversack.run._engine import Engine

    tokens = documents(TEST, 1, LENGTH, run.seed)[0].tokens

    def logits(attention: str) -> np.ndarray:
        with Engine.open(recall_folder(run.say), attention=attention) as engine:
            found, _ = engine.step(tokens, cache=engine.cache(LENGTH), want="all")
            assert found is not None
            return found

    dense = logits("dense")
    sides = {
        "budget-of-all": sparse("dhsa", LENGTH, run.say),
        "kernel-of-all": sparse("dense", SMALL, run.say),
    }
    return {
        name: Outcome.single(float(np.abs(logits(attention) - dense).max()), name="DHSA")
        for name, attention in sides.items()
    }


@bench.measure(PLANNED, seconds=30)
def planned(run: Run) -> Outcomes:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.npy"
        np.save(path, documents(TEST, 1, 8192, run.seed)[0].tokens)
        said = {}
        for name, attention in (("sparse", sparse("dhsa", 1024, run.say)), ("dense", "dense")):
            line = [sys.executable, "-c", PROGRAM, str(recall_folder(run.say)), attention, str(path), "8192"]
            ended = subprocess.run(line, capture_output=True, text=True, check=False)
            if ended.returncode:
                return {"peak-planned": Unavailable(f"the run ended with {ended.stderr.strip()[-200:]}")}
            said[name] = json.loads(ended.stdout)
    note = (
        f"dense: planned {said['dense']['planned']:.1f}, measured {said['dense']['measured']:.1f} MiB; dense "
        "attention is tiled here, so DHSA takes what its choice takes beside it"
    )
    ours = said["sparse"]
    return {
        "peak-planned": Outcome.single(
            ours["planned"], ours["measured"], name="planned", against="measured", note=note
        )
    }
