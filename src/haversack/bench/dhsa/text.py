"""What DHSA costs a model on real text: the reference model `code` on Python source it was not trained on, in
windows of its whole context, beside dense attention and beside equal blocks of keys at the same budget.

It stands where the specification asks for a small character model: its tokens are those of a real tokenizer,
its text is nobody's invention, and it was trained on its whole context, which a character model of minutes is
not.
"""

from __future__ import annotations

from pathlib import Path

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._rows import Outcome, Outcomes, Row
from haversack.bench._store import content_hash
from haversack.bench.dhsa._bench import bench
from haversack.bench.dhsa._models import PREDICTOR_FILES

WINDOW, STRIDE = 2048, 1536
BUDGETS = {"": WINDOW // 4, "-eighth": WINDOW // 8}
TOKENS = 12_000
PIECES, LENGTH = 12, 1024
ROWS = tuple(
    Row(f"{name}{size}", claim, "bits/byte", "quality")
    for size, budget in BUDGETS.items()
    for name, claim in (
        ("code-loss", f"loss of `code` at {budget} of {WINDOW:,} keys, beside dense attention"),
        ("code-blocks", f"the same at {budget} keys beside equal blocks of 32 keys"),
    )
)


def code_predictor(folder: Path, run: Run) -> Path:
    """A boundary predictor of `code`, taught on the calibration text that ships."""
    from haversack.formats.safetensors import HubFolder
    from haversack.models import Tokenizer, read_architecture
    from haversack.models._calibration import segments, token_text
    from haversack.run.attention._predictor import FILE
    from haversack.train.boundaries import train_boundary_predictor

    def make(goal: Path) -> None:
        run.say("teaching the boundary predictor of `code`")
        vocabulary = read_architecture(HubFolder.open(folder).config).vocabulary
        encode = Tokenizer.of_folder(folder).encode
        text = token_text(encode, vocabulary, "calibration", None, PIECES * LENGTH)
        texts = list(segments(text.tokens, LENGTH, PIECES, 0))
        train_boundary_predictor(folder, texts).predictor.write(goal / FILE)

    model = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]
    inputs = {"model": model, "taught": [PIECES, LENGTH], "program": content_hash(PREDICTOR_FILES)}
    return cached("dhsa-code", inputs, make) / FILE


@bench.measure(*ROWS, seconds=240)
def losses(run: Run) -> Outcomes:
    from haversack.bench.engine._models import code_folder
    from haversack.bench.engine.quality import evaluation_text
    from haversack.models._evaluation import bits_per_byte
    from haversack.run._engine import Engine

    folder = code_folder()
    text = evaluation_text(run).part(TOKENS)

    def loss(attention: str) -> float:
        run.say(f"loss of `code` with {attention.partition(',')[0]}")
        with Engine.open(folder, attention=attention) as engine:
            return bits_per_byte(engine, text.tokens, text.byte_count, WINDOW, STRIDE)

    dense = loss("dense")
    note = f"{len(text.tokens):,} held-out tokens, dense {dense:.4f} bits/byte"
    found = {}
    for size, budget in BUDGETS.items():
        given = f"budget={budget},query_block=64,local=64,sinks=16,tail=0"
        ours = loss(f"dhsa:{given},predictor={code_predictor(folder, run)}")
        blocks = loss(f"dhsa:mode=block,{given}")
        found[f"code-loss{size}"] = Outcome.single(ours, dense, name="DHSA", against="dense", note=note)
        found[f"code-blocks{size}"] = Outcome.single(ours, blocks, name="DHSA", against="blocks", note=note)
    return found
