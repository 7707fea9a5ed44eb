"""`haversack embed build --train`: what it takes, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from haversack.cli._output import print_json


def build_that_learns(
    model: str,
    output: Path,
    target: str,
    ram_kib: float | None,
    storage_kib: float | None,
    golden: int | None,
    seed: int | None,
    json: bool,
    *,
    scheme: str,
    recipe: dict[str, Any],
    wide: str,
    kernels: str,
    **training: Any,
) -> None:
    """Compile, and print."""
    from haversack.embed.train import STEPS, Recipe, Training, build_training
    from haversack.embed.train_kernels import kernels_by

    if seed is not None:
        training["seed"] = seed
    wish = Training(
        scheme,
        recipe=Recipe(**recipe),
        wide=tuple(name for name in wide.split("+") if name),
        **training,
    )
    done = build_training(
        *(model, output, kernels_by(kernels, model, wish)),
        target_name=target,
        ram_kib=ram_kib,
        storage_kib=storage_kib,
        count=STEPS if golden is None else golden,
    )
    record = done.record()
    if json:
        print_json(record)
        return
    learns = record["training"]
    print(
        f"{record['model']}, {record['kind']}, for {record['target']}: a step of {scheme} takes an arena of "
        f"{record['arena_bytes']:,} bytes (no plan is below {record['arena_bound_bytes']:,}) and "
        f"{learns['learned_bytes'] + learns['carried_bytes']:,} bytes of what learns "
        f"({learns['learned_numbers']:,} numbers), {learns['ram_bytes'] / 1024:.1f} KiB of RAM in all; "
        f"constants {record['constant_bytes']:,} bytes"
    )
    print(
        f"{learns['forward_macs']:,} multiplications with an addition forward, {learns['backward_macs']:,} "
        f"back; {record['cycles']:,} cycles by the model of the core"
    )
    print(f"written: {output}: {', '.join(record['files'])}")
    print(f"check it: haversack embed verify {output}")
