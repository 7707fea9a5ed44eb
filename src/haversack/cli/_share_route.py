"""What `share route` and `share ledger` read from files."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError

MOST_TERMS = 10_000


def read_terms(path: Path | None) -> tuple[str, ...]:
    """The terms of a file, one a line, empty lines left out. Raises UserError when it cannot be read or has
    too many."""
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text.", field="private", given=str(path)) from error
    terms = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(terms) > MOST_TERMS:
        raise UserError(f"{path} has more than {MOST_TERMS} terms.", field="private", given=len(terms))
    return terms


def read_ledger(path: Path, last: int) -> dict[str, Any]:
    """A ledger's totals, by where requests were answered, and the last requests. Raises UserError for a file
    that is absent, DamagedFileError for an entry that was altered."""
    from haversack.core.ledger import COUNTERS, Ledger

    if not path.is_file():
        raise UserError(f"{path} does not exist.", field="ledger", given=str(path))
    entries = Ledger(path).entries
    totals = dict.fromkeys(COUNTERS, 0.0)
    requests: dict[str, dict[str, Any]] = {}
    for entry in entries:
        totals[entry.counter] += entry.amount
        found = re.match(r"(r-[0-9a-f]{12}) (\w+): ", entry.what)
        number, where = (found[1], found[2]) if found else (f"other {len(requests)}", "other")
        one = requests.setdefault(
            number + where,
            {"time": entry.time, "where": where, "what": entry.what, **dict.fromkeys(COUNTERS, 0.0)},
        )
        one[entry.counter] += entry.amount
    answered: dict[str, dict[str, Any]] = {}
    for one in requests.values():
        place = answered.setdefault(
            one["where"], {"where": one["where"], "requests": 0, **dict.fromkeys(COUNTERS, 0.0)}
        )
        place["requests"] += 1
        for counter in COUNTERS:
            place[counter] += one[counter]
    latest = list(requests.values())[len(requests) - last :] if last else []
    return {
        "ledger": str(path),
        "entries": len(entries),
        "totals": totals,
        "answered": list(answered.values()),
        "last": [{**one, "time": _shown(one["time"])} for one in latest],
    }


def _shown(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
