"""Two processes over an emulated link, by the clock: rounds of drafts beside a round trip for every token.

The baseline is cloud-only decoding where the device has each token before it asks for the next: the same
server and protocol with rounds of no drafts. A server that streams its own tokens does not wait for the
device at all; the rows beside it have no bar and say so: over a link that carries its stream it is bound by
the server alone.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.flexspec._bench import TARGET, TOKEN, answered, bench, device, prompts, served

TOKENS, QUICK_TOKENS = 48, 20
DEVICES = 4
LINKS = {60: 10.0, 200: 0.2}
"""Round trip in ms: megabits a second, as in the specification's table."""


def streamed(address: tuple[str, int], prompt: Any, count: int) -> tuple[float, int]:
    """Seconds until the server has streamed `count` tokens behind `prompt`, and the bytes of its answer."""
    connection = HTTPConnection(*address, timeout=120)
    body = {"model": TARGET, "prompt": [int(token) for token in prompt], "max_tokens": count}
    body |= {"temperature": 0, "stream": True, "ignore_eos": True}
    began = time.perf_counter()
    connection.request(
        "POST",
        "/v1/completions",
        json.dumps(body),
        {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"},
    )
    answer = connection.getresponse()
    data = answer.read()
    took = time.perf_counter() - began
    connection.close()
    if answer.status != 200 or b"[DONE]" not in data:
        raise ValueError(f"the server streams nothing: {data[:200]!r}")
    return took, len(data)


def rows() -> list[Row]:
    found = []
    for rtt in LINKS:
        found += [
            Row(
                f"rtt-{rtt}",
                f"tokens a second over a link of {rtt} ms, beside a round trip for every token",
                "tokens/s",
                "time",
                Bar(">=", 1.5),
                published="25-60 % lower latency (of second hand)",
                quick=rtt == 60,
            ),
            Row(
                f"rtt-{rtt}-fixed",
                f"the same beside rounds of 5 drafts, {rtt} ms",
                "tokens/s",
                "time",
            ),
            Row(
                f"rtt-{rtt}-streamed",
                f"the same beside the server's own stream of tokens, {rtt} ms",
                "tokens/s",
                "time",
            ),
        ]
    return found


@bench.measure(
    Row(
        "devices",
        f"tokens a second of {DEVICES} devices at once over 60 ms, whose rounds share the server's passes, "
        "beside one",
        "tokens/s",
        "time",
    ),
    seconds=45,
)
def devices(run: Run) -> Outcomes:
    from concurrent.futures import ThreadPoolExecutor

    from haversack.core.link import Segment
    from haversack.simulate._channel import Channel

    asked = prompts(run, DEVICES)
    with contextlib.ExitStack() as held:
        server = held.enter_context(served("--contexts", str(DEVICES + 1)))
        engines = []
        for prompt in asked:  # each has a link of its own
            channel = held.enter_context(Channel([Segment(60, LINKS[60], 60)], server.address))
            engines.append(held.enter_context(device(channel.address)))
            answered(engines[-1], prompt, TOKENS)
        pool = held.enter_context(ThreadPoolExecutor(DEVICES))

        def side(count: int) -> Callable[[], float]:
            def measured() -> float:
                began = time.perf_counter()
                chosen = list(zip(engines, asked, strict=True))[:count]
                list(pool.map(lambda pair: answered(pair[0], pair[1], TOKENS), chosen))
                return count * TOKENS / (time.perf_counter() - began)

            return measured

        taken = run.interleave({"all at once": side(DEVICES), "one": side(1)})
    note = "devices share this machine's processors with the server"
    return {"devices": Outcome.of(taken, ours="all at once", baseline="one", note=note)}


@bench.measure(*rows(), seconds=240, quick_seconds=22)
def speed(run: Run) -> Outcomes:
    from haversack.core.link import Segment
    from haversack.simulate._channel import Channel

    count = QUICK_TOKENS if run.quick else TOKENS
    found: dict[str, Outcome] = {}
    with served() as server:
        for rtt, mbit_s in list(LINKS.items())[:1] if run.quick else LINKS.items():
            with Channel([Segment(60, mbit_s, rtt)], server.address) as channel:
                found |= _over(channel.address, rtt, count, run)
    return found


def _over(address: tuple[str, int], rtt: int, count: int, run: Run) -> dict[str, Outcome]:
    """All sides over one link."""
    ways = {"adaptive": "", "a round trip a token": "adaptive=none,length=0", "5 drafts": "adaptive=none"}
    if run.quick:
        del ways["5 drafts"]
    asked = prompts(run, 8)
    engines = {name: device(address, how) for name, how in ways.items()}
    counts = []
    try:
        for engine in engines.values():  # connects, and learns the link
            answered(engine, asked[-1], count)
        order = dict.fromkeys((*engines, "streamed"), 0)

        def side(name: str) -> Callable[[], float]:
            def measured() -> float:
                prompt = asked[order[name] % 7]
                order[name] += 1
                if name == "streamed":
                    return count / streamed(address, prompt, count)[0]
                began = time.perf_counter()
                answer = answered(engines[name], prompt, count)
                took = time.perf_counter() - began
                if name == "adaptive":
                    counts.append(answer.drafting)
                return count / took

            return measured

        names = [*engines, *(() if run.quick else ("streamed",))]
        taken = run.interleave({name: side(name) for name in names})
    finally:
        for engine in engines.values():
            engine.close()
    rounds = sum(len(one.rounds) for one in counts)
    note = (
        f"{count} tokens, {sum(one.tokens for one in counts) / rounds:.1f} a round; "
        f"{sum(one.accepted for one in counts) / max(1, sum(one.drafted for one in counts)):.0%} of drafts "
        f"accepted; {LINKS[rtt]:g} Mb/s; opening the text is counted"
    )
    found = {
        f"rtt-{rtt}": Outcome.of(taken, ours="adaptive", baseline="a round trip a token", note=note),
    }
    if not run.quick:
        found[f"rtt-{rtt}-fixed"] = Outcome.of(taken, ours="adaptive", baseline="5 drafts", note=note)
        found[f"rtt-{rtt}-streamed"] = Outcome.of(
            taken,
            ours="adaptive",
            baseline="streamed",
            note="a server that may stream waits for no device: drafts are for where it may not",
        )
    return found
