"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

ENGINE_FILES = (
    "bench/engine/*.py",
    "kernels/*.py",
    "native/*/*.cpp",
    "native/*/*.h",
    "models/*.py",
    "models/language/*.py",
    "run/**/*.py",
)
SHRINK_FILES = (*ENGINE_FILES, "shrink/**/*.py", "models/texts/*", "reference_models/code/*")

bench = Bench("engine", watches=ENGINE_FILES)
