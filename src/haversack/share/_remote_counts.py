"""What an answer written with a server cost: rounds, bytes, times, joules, and what is not verified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class RoundLog:
    """One round: drafts and how many held; seconds drafting, all in all under way, and of those at the
    server; bits up; the modelled joules of the device a token it was expected to cost, and whether that kept
    the budget (True as well for the length of least joules where none does)."""

    drafted: int
    accepted: int
    draft_s: float
    elapsed_s: float
    served_s: float
    up_bits: int
    joules_a_token: float
    kept_budget: bool


@dataclass
class RemoteCounts:
    """Counts of one answer. Joules are modelled: watts times seconds; the server's are its own column.

    `repeated`: rounds asked for again; `stale`: answers to what was answered already; `reopened`: times the
    text was sent again; `alone`: [first, end) of the answer's tokens that the draft wrote alone. `notices`:
    what people are told as it happens.
    """

    told: ClassVar[str] = "remote"

    mode: str = "tokens"
    model: str = ""
    target: str = ""
    rounds: list[RoundLog] = field(default_factory=list)
    repeated: int = 0
    stale: int = 0
    reopened: int = 0
    alone: list[list[int]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    up_bytes: int = 0
    down_bytes: int = 0
    opening_s: float = 0.0
    offline_s: float = 0.0
    device_j: float = 0.0
    cloud_j: float = 0.0
    acceptance_expected: float = 0.0
    rtt_s: float | None = None

    @property
    def drafted(self) -> int:
        return sum(one.drafted for one in self.rounds)

    @property
    def accepted(self) -> int:
        return sum(one.accepted for one in self.rounds)

    @property
    def acceptance(self) -> float | None:
        """The share of drafted tokens that was right; None when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def lengths(self) -> list[int]:
        """K, round by round."""
        return [one.drafted for one in self.rounds]

    @property
    def unverified(self) -> int:
        """Tokens that the draft wrote alone."""
        return sum(end - first for first, end in self.alone)

    @property
    def tokens(self) -> int:
        """Tokens that the server verified or wrote."""
        return sum(one.accepted + 1 for one in self.rounds)

    def wrote_alone(self, place: int) -> None:
        """Token `place` of the answer is the draft's own."""
        if self.alone and self.alone[-1][1] == place:
            self.alone[-1][1] = place + 1
        else:
            self.alone.append([place, place + 1])

    def _times(self) -> tuple[float, float, float]:
        """Seconds drafting, on the link, at the server."""
        drafting = sum(one.draft_s for one in self.rounds)
        serving = sum(one.served_s for one in self.rounds)
        return drafting, sum(one.elapsed_s for one in self.rounds) - serving, serving

    def brief(self) -> str:
        """A few words."""
        said = f"{self.tokens / len(self.rounds):.1f} tokens a round" if self.rounds else ""
        return f"{said}, {self.unverified} UNVERIFIED" if self.unverified else said

    def words(self) -> str:
        """One line for people, the acceptance first."""
        if not self.rounds:
            said = "remote: no round was needed" if not self.alone else "remote: no round was answered"
        else:
            drafting, link, serving = self._times()
            share = (
                "nothing drafted" if self.acceptance is None else f"{self.acceptance:.0%} of drafts accepted"
            )
            count = len(self.rounds)
            said = (
                f"remote: {share}, {self.tokens / count:.2f} tokens a round ({count} rounds of "
                f"{self.drafted / count:.1f} drafts); {drafting:.2f} s drafting, {link:.2f} s on the link, "
                f"{serving:.2f} s at the server; {self.up_bytes / 1024:.1f} KiB up, "
                f"{self.down_bytes / 1024:.1f} KiB down; modelled {self.device_j:.2f} J here, "
                f"{self.cloud_j:.2f} J there"
            )
        if self.repeated or self.reopened:
            said += f"; {self.repeated} rounds asked for again, {self.reopened} times connected again"
        if self.unverified:
            said += f"; {self.unverified} tokens UNVERIFIED, written alone while the link was lost"
        return said

    def stats(self) -> dict[str, Any]:
        """The same for `run --json`."""
        drafting, link, serving = self._times()
        return {
            "model": self.model,
            "target": self.target,
            "mode": self.mode,
            "rounds": len(self.rounds),
            "tokens_a_round": round(self.tokens / len(self.rounds), 4) if self.rounds else 0.0,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "acceptance": None if self.acceptance is None else round(self.acceptance, 4),
            "acceptance_judged": round(self.acceptance_expected, 4),
            "lengths": self.lengths,
            "repeated": self.repeated,
            "stale": self.stale,
            "reopened": self.reopened,
            "unverified": self.unverified,
            "alone": [list(one) for one in self.alone],
            "up_bytes": self.up_bytes,
            "down_bytes": self.down_bytes,
            "rtt_s": None if self.rtt_s is None else round(self.rtt_s, 6),
            "drafting_s": round(drafting, 6),
            "link_s": round(max(0.0, link), 6),
            "serving_s": round(serving, 6),
            "opening_s": round(self.opening_s, 6),
            "offline_s": round(self.offline_s, 6),
            "device_j": round(self.device_j, 6),
            "cloud_j": round(self.cloud_j, 6),
            "over_budget": sum(not one.kept_budget for one in self.rounds),
        }
