"""Write the texts that `haversack pack` calibrates and evaluates with when the user names none.

``python reference/default_texts.py [--stdlib DIR]`` takes whole files of the list in code_text.tsv,
calibration from the training part and evaluation from the held-out packages, in the order of the SHA-256 of
their paths, so that no maintainer picks them. They are Python source under the PSF licence, kept beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
from pathlib import Path

from code_text import read_text

FOLDER = Path(__file__).parents[1] / "src" / "haversack" / "models" / "texts"
# Bytes of each text: 64 k tokens three times over for calibration, 100 k tokens and more for evaluation.
SIZES = {"calibration": ("train", 720_000), "evaluation": ("held-out", 480_000)}
LONGEST_FILE = 60_000  # one long file would make the text a text about one thing


def chosen(files: list[tuple[str, str]], size: int) -> list[tuple[str, str]]:
    """Whole files, in the order of their paths' hashes, until `size` bytes are reached."""
    found, total = [], 0
    for path, text in sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).hexdigest()):
        if total >= size:
            break
        if len(text.encode()) <= LONGEST_FILE:
            found.append((path, text))
            total += len(text.encode())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stdlib", type=Path, default=None, help="default: that of the running interpreter")
    texts = read_text(parser.parse_args().stdlib)
    for purpose, (part, size) in SIZES.items():
        files = chosen(texts[part], size)
        data = "\n".join(text for _, text in files).encode()
        target = FOLDER / f"code-{purpose}.txt.xz"
        target.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
        (FOLDER / f"code-{purpose}.files").write_text(
            "".join(f"{path}\n" for path, _ in files), encoding="utf-8"
        )
        print(f"{purpose}: {len(files)} files, {len(data):,} bytes, {target.stat().st_size:,} packed")


if __name__ == "__main__":
    main()
