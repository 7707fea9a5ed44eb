"""Networks for tests: nodes that are functions, a device and a cloud with a slow link between."""

from __future__ import annotations

from typing import Any

from haversack.core.link import Link, Segment
from haversack.share._prices import Price
from haversack.share.collaboration._network import Ask, FunctionEngine, Network, Node


def node(name: str, answer: Any, confidence: float | None = None, **given: Any) -> Node:
    """A node that gives `answer`, or what it makes of what is asked."""

    def say(ask: Ask) -> tuple[str, float | None]:
        said = answer(ask) if callable(answer) else answer
        return said if isinstance(said, tuple) else (said, confidence)

    return Node(name, FunctionEngine(say), **given)


def slow(mbit_s: float = 1.0, rtt_ms: float = 100.0) -> Link:
    return Link([Segment(1, mbit_s, rtt_ms)])


def pair(device: Any = "d", cloud: Any = "c", **given: Any) -> Network:
    """A device and a cloud, a slow link between."""
    links = {("device", "cloud"): slow(), ("cloud", "device"): slow()}
    more = {"decode_tokens_s": 10.0, "prefill_tokens_s": 1000.0}
    phone = node("device", device, given.pop("confidence", None), **more)
    return Network([phone, node("cloud", cloud, tier="cloud", price=Price(10.0, 30.0), **more)], links)
