"""Packs that are sealed: what sealing changes in the job, the plan and the report.

Plans are screened and measured unsealed, in memory that leaves room for the process that will hold the key;
only what is written under the user's name is encrypted. The candidates lie in the clear beside it while the
search runs, as the checkpoint itself does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from haversack.core.errors import UserError
from haversack.core.memory import MIB
from haversack.formats.sealed import Sealer, read_key, require_cipher
from haversack.run.residency.sealed import HOLDER_NBYTES

if TYPE_CHECKING:
    from haversack.plan._job import Job


def for_sealing(job: Job) -> Job:
    """`job` with room in its budget for the process that holds the key. Raises UserError for a key that is
    none and for another residency."""
    named = (job.residency or "").partition(":")[0]
    if job.key is None:
        if named == "sealed":
            raise UserError(
                "--residency sealed is for packs that are sealed; add --seal --key KEYFILE.",
                field="residency",
                given=job.residency,
            )
        return job
    require_cipher()
    read_key(job.key)
    if named not in ("", "sealed"):
        raise UserError(
            f"a sealed pack is run with --residency sealed, not {named}; leave it out.",
            field="residency",
            given=job.residency,
            nearest="sealed",
        )
    limit = job.budget.ram_mib
    if limit is None:
        limit = job.device.ram_mib
    budget = replace(job.budget, ram_mib=max(1.0, limit - HOLDER_NBYTES / MIB))
    return replace(job, budget=budget, residency=None)


def sealed_plan(job: Job, plan: dict[str, Any]) -> dict[str, Any]:
    """What pack.json keeps of the plan that was measured as `plan`."""
    if job.key is None:
        return plan
    streamed = str(plan["residency"]).startswith("streamed")
    return {**plan, "residency": "sealed:keep=0" if streamed else "sealed"}


def sealer(job: Job) -> Sealer | None:
    """What encrypts the pack of `job`, where it is to be sealed."""
    return None if job.key is None else Sealer(read_key(job.key), job.output.name)


def sealed_facts(job: Job) -> list[tuple[str, str]]:
    """A line for the report."""
    if job.key is None:
        return []
    spare = HOLDER_NBYTES / MIB
    return [
        (
            "sealed",
            "weights encrypted with AES-256-GCM; measured before that, with room for the process that holds "
            f"the key ({spare:.0f} MiB) left in the memory",
        )
    ]
