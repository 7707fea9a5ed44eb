"""The plain context: every token of the prompt reaches the cache.

Paper: none. Cost: a cache entry a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method
from haversack.run._cache import Cache

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Tokens(Method):
    name = "tokens"
    stage = "run"
    slot = "context"
    paper = "-"
    summary = "Every token of the prompt is read."

    def admit(self, segments: list[I32], cache: Cache) -> I32:
        """The tokens to read, i32 [n], of a prompt's `segments`.

        Raises UserError, with both lengths, when `cache` has no room for them and one token more.
        """
        tokens = np.concatenate(segments) if segments else np.empty(0, np.int32)
        room = cache.capacity - cache.length
        if len(tokens) > room and not cache.apart:
            raise UserError(
                f"the prompt has {len(tokens)} tokens and the context {room}; shorten it or raise the "
                "context.",
                field="prompt",
                given=len(tokens),
                nearest=room,
            )
        return tokens
