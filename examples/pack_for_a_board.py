"""Pack a model for a board from Python: which plans were measured, which one was chosen, and why.

Run: python examples/pack_for_a_board.py FOLDER_OF_THE_PACK
"""

from __future__ import annotations

import sys
from pathlib import Path

from haversack.core.budget import Budget, BudgetError
from haversack.core.device import device
from haversack.plan import Job, pack_model, ranked


def main() -> None:
    goal = Path(sys.argv[1] if len(sys.argv) > 1 else "code.pack")
    board = device("raspberry-pi-zero-2w")

    try:  # an impossible budget is refused before any work, and the refusal says what would do
        pack_model(Job("code", goal, board, Budget(ram_mib=8)))
    except BudgetError as error:
        print(f"refused: {error}\n")

    job = Job("code", goal, board, Budget(ram_mib=96), effort_s=5, precision="round-to-nearest:group=64")
    outcome = pack_model(job)
    measured = [one for one in outcome.candidates if one.source == "measured"]
    for one in ranked(measured, "quality"):
        mark = "->" if one.plan == outcome.chosen.plan else "  "
        print(f"{mark} {one.plan.label:<60} {100 * one.loss:+6.2f} %  {one.ram_mib:6.1f} MiB")
    print(f"\n{outcome.pack} in {outcome.seconds:.0f} s; open {outcome.pack / 'report.html'}")


if __name__ == "__main__":
    main()
