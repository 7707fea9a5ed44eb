"""A model learns labels of one's own inside a memory budget; what changed is a small delta over it.

Run: python examples/learn_my_labels.py     (needs: pip install 'haversack[workshop]')
"""

from __future__ import annotations

import csv
from pathlib import Path

from haversack.core.budget import Budget
from haversack.train._predict import answers, open_with_delta
from haversack.train.fit_labels import Rows, Wish, fit_labels


def write_table(path: Path) -> None:
    """Lines of Python, each with what it is."""
    rows = []
    for number in range(40):
        rows.append((f"def step_{number}(value):\n    return value + {number}", "function"))
        rows.append((f"class Step{number}:\n    size = {number}", "class"))
        rows.append((f"for index in range({number}):\n    print(index)", "loop"))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("text", "label"))
        table.writerows(rows)


def main() -> None:
    table, delta = Path("lines.csv"), Path("lines.delta")
    write_table(table)

    wish = Wish(parameters="head", budget=Budget(ram_mib=800), epochs=3)
    done = fit_labels("code", Rows(table), delta, wish)
    assert done is not None
    print(f"methods: {done.choice.scheme.label}")
    print(f"held-out accuracy {done.course.before.accuracy:.2f} -> {done.after.accuracy:.2f}")
    print(f"delta: {done.nbytes / 1024:.0f} KiB over {done.network}")

    network = open_with_delta("code", delta)
    (answer,) = answers(network, ["def area(width, height):\n    return width * height"], top=1)
    name, share = answer.classes[0]
    print(f"this is a {name} ({100 * share:.0f} %)")


if __name__ == "__main__":
    main()
