"""The same algorithm over real sockets: two processes on this machine, each an OpenAI-compatible server of a
trained model, and the answers of virtual time again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.llms_over_networks import _models as toys
from haversack.bench.llms_over_networks._bench import NETWORK, bench
from haversack.bench.llms_over_networks.vertical import answered
from haversack.core.link import Link, Segment
from haversack.share.collaboration._network import EndpointEngine, Network, Node
from haversack.share.collaboration._session import Result, Task
from haversack.share.collaboration.cascades import Cascade

WATCHED = (
    *NETWORK,
    "bench/llms_over_networks/sockets.py",
    "bench/llms_over_networks/_serve_model.py",
    "share/_endpoint.py",
)
TASKS = 24
TAU = 0.7


@bench.measure(
    Row(
        "sockets",
        "a cascade over two real servers gives the answers that it gives in virtual time",
        "equal answers",
        "quality",
        Bar("==", 1.0),
        judged="ours",
        quick=True,
    ),
    Row(
        "sockets-waiting",
        "seconds over an emulated link of 80 ms with real waiting, over those of virtual time; informs",
        "seconds",
        "time",
        quick=True,
    ),
    seconds=60,
    quick_seconds=30,
    watches=WATCHED,
)
def sockets(run: Run) -> Outcomes:
    """A cascade by log probabilities."""
    try:
        import httpx  # noqa: F401
    except ImportError as error:
        raise Unavailable("needs httpx: pip install 'haversack[share]'") from error
    texts, answers, _, _ = answered(TASKS, 7000 + run.seed % 1000)
    tasks = [Task(text, answer=str(answer)) for text, answer in zip(texts, answers, strict=True)]
    virtual = Network(
        [
            toys.list_node("device", toys.list_model("device"), texts),
            toys.list_node("cloud", toys.list_model("cloud"), texts, tier="cloud"),
        ],
        _links(),
    )
    cascade = Cascade(tau=(TAU,))
    predicted = [cascade.run(task, virtual) for task in tasks]
    servers = [_served(which) for which in ("device", "cloud")]
    try:
        urls = [_address(server) for server in servers]
        began = time.monotonic()
        found = asyncio.run(_asked(urls, tasks, cascade))
        took = time.monotonic() - began
    finally:
        for server in servers:
            server.communicate()
    same = float(np.mean([one.answer == other.answer for one, other in zip(found, predicted, strict=True)]))
    waited = sum(one.seconds for one in predicted)
    return {
        "sockets": Outcome.single(same, note=f"{TASKS} tasks in {took:.1f} s"),
        "sockets-waiting": Outcome.single(
            sum(one.seconds for one in found), waited, name="real sockets", against="virtual time"
        ),
    }


def _links() -> dict[tuple[str, str], Link]:
    trace = [Segment(1, 20.0, 80.0)]
    return {("device", "cloud"): Link(trace), ("cloud", "device"): Link(trace)}


def _served(which: str) -> subprocess.Popen[str]:
    toys.list_model(which)  # trained before, so that the servers only load
    program = [sys.executable, str(Path(__file__).with_name("_serve_model.py")), which]
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = server.stdout.readline().strip()
    if not line:
        raise Unavailable("a server of the bench did not start")
    return line


async def _asked(urls: list[str], tasks: list[Task], cascade: Cascade) -> list[Result]:
    from haversack.share._endpoint import Address, Endpoint

    ends = [Endpoint(Address(url)) for url in urls]
    try:
        nodes = [
            Node(name, EndpointEngine(end, confidence=True), name)
            for name, end in zip(("device", "cloud"), ends, strict=True)
        ]
        network = Network(nodes, _links())
        return [await cascade.go(task, network) for task in tasks]
    finally:
        for end in ends:
            await end.close()
