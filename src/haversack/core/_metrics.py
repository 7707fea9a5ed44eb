"""Counters, gauges and timings of a service, in the text form that Prometheus reads."""

from __future__ import annotations

import bisect
import threading
from typing import Any

from haversack.core.errors import UserError

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
Labels = tuple[tuple[str, str], ...]
_MOST_SERIES = 1000  # label values come from requests; beyond this many they are counted together


class Metrics:
    """Named numbers with labels; safe among threads. Names and label names are ours, label values may be
    anyone's."""

    def __init__(self, prefix: str = "haversack") -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[str, str]] = {}
        self._values: dict[str, dict[Labels, float]] = {}
        self._timings: dict[str, dict[Labels, tuple[list[int], float]]] = {}

    def count(self, name: str, help: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter, which only grows."""
        if amount < 0:
            raise UserError(f"the counter {name} cannot shrink by {-amount}.", field=name, given=amount)
        with self._lock:
            series = self._series(name, "counter", help, self._values, labels)
            self._values[name][series] = self._values[name].get(series, 0.0) + amount

    def gauge(self, name: str, help: str, value: float, **labels: str) -> None:
        """Set a number that rises and falls."""
        with self._lock:
            series = self._series(name, "gauge", help, self._values, labels)
            self._values[name][series] = value

    def time(self, name: str, help: str, seconds: float, **labels: str) -> None:
        """Add one duration to a histogram."""
        with self._lock:
            series = self._series(name, "histogram", help, self._timings, labels)
            counts, total = self._timings[name].get(series, ([0] * (len(SECONDS) + 1), 0.0))
            counts[bisect.bisect_left(SECONDS, seconds)] += 1
            self._timings[name][series] = (counts, total + seconds)

    def value(self, name: str, **labels: str) -> float:
        """A counter's or gauge's number; 0 when it was never touched."""
        with self._lock:
            return self._values.get(name, {}).get(_key(labels), 0.0)

    def text(self) -> str:
        """Everything, as Prometheus scrapes it."""
        with self._lock:
            lines: list[str] = []
            for name, (kind, help) in sorted(self._kinds.items()):
                full = f"{self._prefix}_{name}"
                lines += [f"# HELP {full} {help}", f"# TYPE {full} {kind}"]
                for labels, value in sorted(self._values.get(name, {}).items()):
                    lines.append(f"{full}{_shown(labels)} {value:.17g}")
                for labels, (counts, total) in sorted(self._timings.get(name, {}).items()):
                    passed = 0
                    for edge, count in zip((*map(str, SECONDS), "+Inf"), counts, strict=True):
                        passed += count
                        lines.append(f"{full}_bucket{_shown((*labels, ('le', edge)))} {passed}")
                    lines += [
                        f"{full}_sum{_shown(labels)} {total:.17g}",
                        f"{full}_count{_shown(labels)} {passed}",
                    ]
            return "\n".join(lines) + "\n"

    def _series(
        self, name: str, kind: str, help: str, table: dict[str, dict[Labels, Any]], labels: dict[str, str]
    ) -> Labels:
        if self._kinds.setdefault(name, (kind, help))[0] != kind:
            raise UserError(f"{name} is a {self._kinds[name][0]}, not a {kind}.", field=name)
        known = table.setdefault(name, {})
        key = _key(labels)
        if key not in known and len(known) >= _MOST_SERIES:
            return _key(dict.fromkeys(labels, "other"))
        return key


def _key(labels: dict[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _shown(labels: Labels) -> str:
    def quoted(value: str) -> str:
        return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

    inside = ",".join(f'{name}="{quoted(value)}"' for name, value in labels)
    return f"{{{inside}}}" if inside else ""
