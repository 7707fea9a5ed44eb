"""What verification reads of a harness: all of it, whatever the harness writes through."""

from __future__ import annotations

import sys

import pytest

from haversack.core.errors import HaversackError
from haversack.embed.verify import printed

LINES = 60_000


def test_a_print_longer_than_a_pipe_is_read_whole() -> None:
    """By a program that, as QEMU does, never waits for its reader."""
    program = (
        "import os; os.set_blocking(1, False)\n"
        f"for _ in range({LINES // 100}): os.write(1, b'output 7f\\n' * 100)\n"
        "os.write(1, b'guards 0\\n')"
    )
    text = printed([sys.executable, "-c", program])
    assert text.count("output 7f\n") == LINES and text.endswith("guards 0\n")


def test_a_harness_that_breaks_says_what_it_said_last() -> None:
    with pytest.raises(HaversackError, match=r"ended with 3\): so far"):
        printed([sys.executable, "-c", "print('so far', flush=True); raise SystemExit(3)"])
