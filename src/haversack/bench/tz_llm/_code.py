"""The bundled model `code`, packed in 8 bits and sealed."""

from __future__ import annotations

import os
from pathlib import Path

from haversack.bench._cache import cached
from haversack.bench.engine._models import code_pack
from haversack.bench.tz_llm._models import KEY


def sealed_code() -> tuple[Path, Path]:
    """(the sealed pack, the file of its key)."""
    plain = code_pack("round-to-nearest:bits=8")

    def make(folder: Path) -> None:
        from haversack.core.pack import Pack
        from haversack.formats.sealed import seal

        (folder / "key").write_bytes(KEY)
        seal(Pack.open(plain), folder / "code.pack", KEY, name=f"bench {os.urandom(8).hex()}")

    folder = cached("tz-llm-code", {"of": str(plain), "written_by": Path(__file__).read_text()}, make)
    return folder / "code.pack", folder / "key"
