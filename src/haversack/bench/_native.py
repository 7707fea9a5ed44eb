"""The native files that the benches of kernels and engines watch."""

from __future__ import annotations

NATIVE_FILES = (
    *("native/*.cpp", "native/*.h", "native/base/*", "native/simd/*", "native/bind/*"),
    *("!native/automaton*", "!native/bind/automaton*", "!kernels/automaton.py"),
)
"""All but those of constraints, which no kernel uses."""
