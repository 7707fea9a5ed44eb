"""Compresses a model by one plan and ends: what `haversack pack --compare` measures from outside.

Reads a request (plan/_compare.py) from standard input; prints {"seconds"}, or the record of a refusal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from haversack.core.errors import UserError
from haversack.core.progress import progress, quiet


def main() -> int:
    """0 when the pack is written under the name asked for, 2 for a user's mistake."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported, as the command does
    asked = json.load(sys.stdin)
    try:
        print(json.dumps({"seconds": compressed(asked)}))
    except UserError as error:
        print(json.dumps(error.record(), default=str))
        return error.exit_code
    return 0


def compressed(asked: dict[str, object]) -> float:
    """Write the pack; the seconds that reading the calibration text, compressing and writing took."""
    from haversack.core.budget import Budget
    from haversack.core.device import device
    from haversack.plan._candidates import Plan
    from haversack.plan._job import Job, scratch_folder
    from haversack.plan._sides import side_of
    from haversack.shrink._pipeline import Policy

    goal, policy, calibration = Path(str(asked["goal"])), asked["policy"], asked["calibration"]
    assert isinstance(policy, dict)
    job = Job(
        model=str(asked["model"]),
        output=goal,
        device=device(str(asked["device"])),
        budget=Budget(),
        policy=Policy(**policy),
        calibration=None if calibration is None else Path(str(calibration)),
        calibration_tokens=int(str(asked["calibration_tokens"])),
        work_ram_mib=None if asked["work_ram_mib"] is None else float(str(asked["work_ram_mib"])),
        seed=int(str(asked["seed"])),
    )
    plan = asked["plan"]
    assert isinstance(plan, list)
    with quiet(), progress("compressing") as bar, scratch_folder(goal) as scratch:
        side = side_of(job, scratch, bar)
        begun = time.perf_counter()
        side.compress(Plan(*plan)).rename(goal)
        return time.perf_counter() - begun
