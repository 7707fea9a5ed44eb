"""What `share collaborate` does: a network and tasks from files, an algorithm from its text, a report."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haversack.core.budget import Budget
from haversack.core.errors import DamagedFileError, UserError
from haversack.share.collaboration._algorithm import Algorithm, algorithms, create
from haversack.share.collaboration._session import Result, Task

MOST_TASKS = 100_000
_FIELDS = {"prompt", "context", "answer", "topic", "privacy", "modalities", "history"}


def listed() -> list[dict[str, Any]]:
    """Every algorithm with its parameters, as `--list` shows them."""
    return [
        {
            "code": kind.code,
            "name": kind.name,
            "summary": kind.summary,
            "parameters": [field.name for field in dataclasses.fields(kind)],
        }
        for kind in algorithms().values()
    ]


def read_tasks(path: Path, budget: Budget, privacy: str, most: int) -> list[Task]:
    """Tasks, one JSON object a line. Raises UserError when the file cannot be read, DamagedFileError for a
    line that is no task."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text.", field="tasks", given=str(path)) from error
    tasks = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
                raise ValueError("it has no prompt")
            if unknown := set(record) - _FIELDS:
                raise ValueError(f"{min(unknown)[:40]} is no field of a task")
            history = tuple((str(one), str(other)) for one, other in record.pop("history", ()))
            tasks.append(Task(**{"privacy": privacy, **record}, history=history, budget=budget, most=most))
        except (ValueError, TypeError, RecursionError) as error:
            raise DamagedFileError(path, f"line {number}: {error}", field="tasks") from error
        if len(tasks) > MOST_TASKS:
            raise UserError(f"{path} has more than {MOST_TASKS} tasks.", field="tasks")
    if not tasks:
        raise UserError(f"{path} holds no task.", field="tasks", given=str(path))
    return tasks


def swept(text: str, sweep: str | None) -> Iterator[tuple[str, str]]:
    """(value, algorithm's text) for each value of `--sweep NAME=V1,V2,...`; the text itself without one."""
    if sweep is None:
        yield "", text
        return
    name, _, values = sweep.partition("=")
    if not values or not name.isidentifier():
        raise UserError(
            f"sweep={sweep} is not NAME=V1,V2,...", field="sweep", given=sweep, nearest="tau=0.5,0.7,0.9"
        )
    for value in values.split(","):
        if re.search(rf"\b{name}=", text):
            yield value, re.sub(rf"\b{name}=[^,()]*", f"{name}={value}", text)
        elif text.endswith(")"):
            yield value, f"{text[:-1]},{name}={value})"
        else:
            yield value, f"{text}({name}={value})"


def run_tasks(
    network_file: Path,
    algorithm: str,
    tasks: list[Task],
    ledger_file: Path | None,
    audit_file: Path | None,
    at_once: int,
) -> tuple[list[Result], Algorithm]:
    """The results, over real sockets."""
    from haversack.core.ledger import Ledger
    from haversack.core.progress import progress
    from haversack.share.collaboration._network_file import network_of, read_entry
    from haversack.share.collaboration.trust import AuditLog

    entry = read_entry(network_file)
    made = create(algorithm)
    ledger = None if ledger_file is None else Ledger(ledger_file)
    audit = None if audit_file is None else AuditLog(audit_file)

    async def work() -> list[Result]:
        network, endpoints = network_of(entry, audit=audit)
        try:
            made.check(network)
            turns = asyncio.Semaphore(at_once)
            with progress("collaborating", total=len(tasks)) as bar:

                async def one(task: Task) -> Result:
                    async with turns:
                        result = await made.go(task, network, ledger)
                    bar.advance(1)
                    return result

                return list(await asyncio.gather(*map(one, tasks)))
        finally:
            for endpoint in endpoints:
                await endpoint.close()

    return asyncio.run(work()), made


def record_of(value: str, algorithm: str, results: list[Result]) -> dict[str, Any]:
    """A run in numbers."""
    known = [result.right for result in results if result.right is not None]
    calls: dict[str, int] = {}
    for result in results:
        for node, count in result.counts.calls.items():
            calls[node] = calls.get(node, 0) + count
    seconds = sorted(result.seconds for result in results)
    return {
        "algorithm": algorithm,
        "swept": value,
        "tasks": len(results),
        "right": sum(known) / len(known) if known else None,
        "degraded": sum(bool(result.degraded) for result in results),
        "calls": calls,
        "tokens": sum(sum(pair) for result in results for pair in result.counts.tokens.values()),
        "nbytes": sum(result.total_bytes for result in results),
        "cost_usd": sum(result.counts.cost_usd for result in results),
        "median_s": seconds[len(seconds) // 2],
        "longest_s": seconds[-1],
    }


def answer_record(result: Result) -> dict[str, Any]:
    """One answer with what it took."""
    return {
        "answer": result.answer,
        "right": result.right,
        "degraded": result.degraded,
        "seconds": result.seconds,
        "cost_usd": result.counts.cost_usd,
        "nbytes": result.total_bytes,
        "calls": dict(result.counts.calls),
        "trace": [
            {"at": step.at, "sender": step.sender, "to": step.to, "kind": step.kind, "nbytes": step.nbytes}
            | {"outcome": step.outcome}
            for step in result.trace
        ],
    }


def serve(
    network_file: Path,
    algorithm: str,
    budget: Budget,
    privacy: str,
    most: int,
    ledger_file: Path | None,
    port: int,
    *,
    json: bool,
) -> None:
    """Serve the network until SIGTERM or SIGINT."""
    import sys

    from haversack.cli._output import print_json
    from haversack.core.ledger import Ledger
    from haversack.share.collaboration._network_file import read_entry
    from haversack.share.collaboration._server import CollaborationServer

    ledger = None if ledger_file is None else Ledger(ledger_file)
    made = create(algorithm)
    server = CollaborationServer(
        read_entry(network_file), made, budget, privacy=privacy, most=most, ledger=ledger, port=port
    )
    if json:
        print_json({"algorithms": [], "runs": [], "answer": None, "url": server.service.url})
    else:
        print(f"{made.name} over {network_file} answers at {server.service.url}/v1; end with Ctrl-C")
    sys.stdout.flush()
    server.service.run()
