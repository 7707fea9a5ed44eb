"""Trains `split-detector`, the small network of `haversack share split`, and writes its pack and card.

    OMP_NUM_THREADS=1 python reference/train_split_detector.py --work DIR [--out DIR]

About a quarter of an hour of computing on one core. Pictures are made (models/vision/_scenes.py) from
photographs of scikit-image and the digits of scikit-learn; the card's figures are of pictures that training
did not see. A killed run goes on from the teacher and the student that DIR holds, to the same numbers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from haversack.core.pack import Pack
from haversack.models.vision._slim_record import costs
from haversack.models.vision.slimmable import parameters, tensor_shapes
from haversack.share._split_data import MADE, MADE_HELD, made
from haversack.share._split_pack import write_split
from haversack.share._split_train_torch import METRICS, train_split
from haversack.share.slimmable import Slimmable

OUT = Path(__file__).resolve().parents[1] / "src" / "haversack" / "reference_models" / "split-detector"
HOW = Slimmable(teacher_steps=450, steps=2800, rows=8)

CARD = """# split-detector

Finds digits, coins and pieces of brick, grass, gravel and tissue in pictures of 96 x 96, cut in two: a
device runs one to four encoder members and sends 432 to 1,728 bytes; a server does the rest. A small real
network for `haversack share split`; its pictures are made by `models/vision/_scenes.py`, so their truth is
exact.

- Parameters: {parameters:,} with the teacher; a member has {member:,} multiplications, the teacher {whole:,}.
  The pack has {nbytes:,} bytes.
- Data: {made:,} made pictures to learn from, {held} others of the same photographs for the table.
- **mAP@0.5 on the {held} pictures** that training did not see, the teacher {teacher:.1f} (`haversack bench
  slimmable-split-encoders` measures on other photographs, coins, digits and pieces of texture):

| members | 1 bit | 2 bits | 3 bits | 4 bits |
|---|---|---|---|---|
{rows}

- Trained by `reference/train_split_detector.py` ({method}).

## Limits
It knows these six kinds of things, pasted before photographs; it has seen no real scene.

## Licence
Weights: Apache License 2.0, like the rest of Haversack. Trained on pictures that scikit-image ships, all CC0
or public domain (astronaut, chelsea, coffee, moon, hubble_deep_field; brick, grass, gravel, coins,
immunohistochemistry), and on digits of the Optical Recognition of Handwritten Digits data set (E. Alpaydin
and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0), of which none is contained here.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of intermediates")
    parser.add_argument("--out", type=Path, default=OUT, help="the pack to write")
    given = parser.parse_args(arguments)
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:6.0f} s  {text}", flush=True)

    known, held = made(MADE, 1), made(MADE_HELD, 2)
    trained = train_split(known, held, HOW, given.work, say)
    provenance = {
        "method": str(HOW),
        "pictures": "made",
        "count": len(known),
        "script": "reference/train_split_detector.py",
    }
    write_split(
        given.out,
        trained.net,
        trained.student.gain,
        trained.tensors,
        trained.table,
        trained.teacher_quality,
        METRICS["detect"],
        provenance,
    )
    rows = [
        f"| {k} | " + " | ".join(f"{100 * trained.table[k, b]:.1f}" for b in range(1, 5)) + " |"
        for k in range(1, 5)
    ]
    counted = costs(trained.net)
    text = CARD.format(
        parameters=parameters(tensor_shapes(trained.net)),
        member=counted["member"],
        whole=counted["teacher"],
        nbytes=Pack.open(given.out).nbytes,
        made=MADE,
        held=MADE_HELD,
        teacher=100 * trained.teacher_quality,
        rows="\n".join(rows),
        method=f"`{HOW}`",
    )
    (given.out / "CARD.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
