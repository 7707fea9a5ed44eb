"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

NATIVE_FILES = ("native/*.cpp", "native/*.h", "native/base/*", "native/simd/*", "native/bind/*")
ENGINE_FILES = (
    "bench/engine/*.py",
    "kernels/*.py",
    *NATIVE_FILES,
    "models/*.py",
    "models/language/*.py",
    "run/**/*.py",
)
SHRINK_FILES = (*ENGINE_FILES, "shrink/**/*.py", "models/texts/*", "reference_models/code/*")

bench = Bench("engine", watches=ENGINE_FILES)
