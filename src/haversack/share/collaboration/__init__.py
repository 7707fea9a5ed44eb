"""Models on several machines that answer together by messages: vertical, horizontal, hybrid, learned."""

from __future__ import annotations

from haversack.core._names import lazily

_PUBLIC = {
    "Algorithm": "_algorithm",
    "Ask": "_network",
    "EndpointEngine": "_network",
    "FunctionEngine": "_network",
    "Message": "_network",
    "Network": "_network",
    "Node": "_network",
    "Result": "_session",
    "Session": "_session",
    "Task": "_session",
    "algorithms": "_algorithm",
    "create": "_algorithm",
    "run_virtual": "_clock",
}

__all__ = list(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
