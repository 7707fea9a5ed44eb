"""The plain context: every token of every segment, in order, or a refusal with both lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.run.context.tokens import Tokens


class Room:
    """What `admit` reads of a cache."""

    def __init__(self, length: int, capacity: int, apart: bool = False) -> None:
        self.length, self.capacity, self.apart = length, capacity, apart


@given(
    segments=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9), max_size=4),
    length=st.integers(0, 8),
    free=st.integers(0, 20),
)
@settings(deadline=None)
def test_all_tokens_in_order_or_both_lengths(segments: list[list[int]], length: int, free: int) -> None:
    given_tokens = [token for segment in segments for token in segment]
    arrays = [np.asarray(segment, np.int32) for segment in segments]
    room = Room(length, length + free)
    if len(given_tokens) > free:
        with pytest.raises(UserError) as caught:
            Tokens().admit(arrays, room)  # type: ignore[arg-type]
        assert (caught.value.given, caught.value.nearest) == (len(given_tokens), free)
        assert str(len(given_tokens)) in str(caught.value) and str(free) in str(caught.value)
    else:
        admitted = Tokens().admit(arrays, room)  # type: ignore[arg-type]
        assert admitted.dtype == np.int32
        assert admitted.tolist() == given_tokens


def test_a_prompt_that_an_encoder_reads_takes_no_room() -> None:
    read = Tokens().admit([np.arange(9, dtype=np.int32)], Room(1, 4, apart=True))  # type: ignore[arg-type]
    assert read.tolist() == list(range(9))
