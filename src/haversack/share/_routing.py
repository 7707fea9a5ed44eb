"""What decides between device and cloud: a router gives the chance that the cloud is needed.

Routers of whole queries and of single steps of an agent have the same form, so that one threshold, one
calibration and one server serve both.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Asked(NamedTuple):
    """What a router looks at. `text`: the task or query; `history`: (observation, action) pairs;
    `admissible`: allowed actions, empty for a plain query."""

    text: str
    history: tuple[tuple[str, str], ...] = ()
    admissible: tuple[str, ...] = ()


class Router(Protocol):
    """Judges what is asked; `kind` is "query" or "step"."""

    kind: str

    def p_cloud(self, asked: Asked) -> float:
        """In [0, 1]; the cloud answers when it is at least the threshold."""
        ...
