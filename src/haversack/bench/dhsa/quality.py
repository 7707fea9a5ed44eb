"""Which of the questions at the end of a document are answered, at one budget of keys for every side.

Documents of 4,096 tokens and their questions are generated, and every side reads the same ones in this run.
What a side may choose (the size of fixed blocks; how far predicted borders are apart) is chosen on documents
of another split, four values each.
"""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.dhsa._bench import bench
from haversack.bench.dhsa._models import TEST, TUNE, answered, documents, sparse

LENGTH = 4096
DENSE_LENGTHS = (2048, 4096)
TEXTS, TUNED, QUICK_TEXTS = 12, 4, 3
BLOCKS = (8, 16, 32, 64)
APARTS = (2, 4, 6, 8)
WIDE = 64
"""Keys of the blocks of block-sparse attention as it is mostly built: as wide as a block of queries."""
UNIT = "share of questions"
QUARTER, EIGHTH = LENGTH // 4, LENGTH // 8
OTHERS = {
    "sliding": "the last keys alone",
    "mean": "DHSA without the root of the length",
    "max": "DHSA with the largest numbers of a chunk",
    "fixed": "DHSA with borders at equal distances",
    "apart": "DHSA with a choice for each key head",
    "dhsa_topk": "the later form by means of key blocks",
    "dhsa_vs": "the later form by columns and diagonals",
    "block": "blocks of keys by their means",
}


def budgets() -> dict[str, int]:
    return {"quarter": QUARTER, "eighth": EIGHTH}


def rows() -> list[Row]:
    found = [
        Row(
            f"dense-{length}",
            f"the recall model answers documents of {length:,} tokens densely",
            UNIT,
            "quality",
            Bar(">=", 0.95),
            judged="ours",
            quick=length == LENGTH,
        )
        for length in DENSE_LENGTHS
    ]
    found += [
        Row(
            "quarter",
            "DHSA at a quarter of the keys answers at least 0.97 of what dense attention does",
            UNIT,
            "quality",
            Bar(">=", 0.97),
            published="equal to dense (Gemma-2-2B, needle test and LongBench)",
            quick=True,
        ),
        Row(
            "eighth-against-blocks",
            "DHSA at an eighth of the keys answers at least 1.06 times what fixed blocks do",
            UNIT,
            "quality",
            Bar(">=", 1.06),
            published="6 to 18 % better than block-sparse attention",
        ),
    ]
    found.append(
        Row(
            "eighth-against-wide",
            f"the same beside blocks of {WIDE} keys, as wide as a block of queries",
            UNIT,
            "quality",
        )
    )
    for name, size in budgets().items():
        found.append(Row(f"dhsa-{name}", f"DHSA at {size} keys, beside dense", UNIT, "quality"))
        for other, said in OTHERS.items():
            found.append(Row(f"{other}-{name}", f"{said}, at {size} keys, beside dense", UNIT, "quality"))
    return found


def side(name: str, size: int, run: Run) -> str:
    """The attention of a side, its own setting the best of four on the other split."""
    tune = documents(TUNE, TUNED, LENGTH)

    def best(given: list[str]) -> str:
        return max(given, key=lambda attention: answered(attention, tune, run.say))

    if name == "sliding":
        return sparse("sliding", size, run.say)
    if name in ("block", "dhsa_topk", "dhsa_vs"):
        return best([sparse(name, size, run.say, key_block=block) for block in BLOCKS])
    changed = {
        "mean": {"pooling": "mean"},
        "max": {"pooling": "max"},
        "fixed": {"borders": "fixed"},
        "apart": {"heads": "apart"},
        "dhsa": {},
    }[name]
    if name == "fixed":
        return sparse("dhsa", size, run.say, **changed)
    return best([sparse("dhsa", size, run.say, apart=value, **changed) for value in APARTS])


@bench.measure(*rows(), seconds=700, quick_seconds=30)
def recall(run: Run) -> Outcomes:
    texts = documents(TEST, QUICK_TEXTS if run.quick else TEXTS, LENGTH, run.seed)
    run.say("questions answered densely")
    dense = answered("dense", texts, run.say)
    note = f"{sum(int(text.first.sum()) for text in texts)} questions in {len(texts)} generated documents"
    found: dict[str, Outcome | Unavailable] = {
        f"dense-{LENGTH}": Outcome.single(dense, name="dense", note=note)
    }
    if run.quick:
        ours = answered(sparse("dhsa", QUARTER, run.say, apart=APARTS[1]), texts, run.say)
        found["quarter"] = Outcome.single(ours, dense, name="DHSA", against="dense", note=note)
        return found
    for length in DENSE_LENGTHS[:-1]:
        shorter = documents(TEST, TEXTS, length, run.seed)
        found[f"dense-{length}"] = Outcome.single(answered("dense", shorter, run.say), name="dense")
    scores: dict[tuple[str, str], float] = {}
    for name, size in budgets().items():
        for other in ("dhsa", *OTHERS):
            run.say(f"questions answered by {other} at {size} keys")
            attention = side(other, size, run)
            scores[other, name] = answered(attention, texts, run.say)
            told = f"{note}; {attention.partition(',predictor')[0]}"
            found[f"{other}-{name}"] = Outcome.single(
                scores[other, name], dense, name=other, against="dense", note=told
            )
    found["quarter"] = Outcome.single(
        scores["dhsa", "quarter"], dense, name="DHSA", against="dense", note=note
    )
    wide = answered(sparse("block", EIGHTH, run.say, key_block=WIDE), texts, run.say)
    found["eighth-against-wide"] = Outcome.single(
        scores["dhsa", "eighth"], wide, name="DHSA", against=f"blocks of {WIDE}", note=note
    )
    found["eighth-against-blocks"] = Outcome.single(
        scores["dhsa", "eighth"], scores["block", "eighth"], name="DHSA", against="fixed blocks", note=note
    )
    return found
