"""What a store holds, in numbers: contributors, hours, clips, jobs by stage and why clips were dropped."""

from __future__ import annotations

from typing import Any

from haversack.collect._books import Books


def state_of(books: Books) -> dict[str, Any]:
    """Numbers for people and for metrics; nobody's name but pseudonyms."""
    contributors = books.rows(
        "SELECT contributor, count(*) AS clips, sum(seconds) AS seconds, sum(bytes) AS bytes FROM clips "
        "WHERE state = 'complete' GROUP BY contributor ORDER BY contributor"
    )
    jobs = books.rows(
        "SELECT stage, version, state, count(*) AS count, coalesce(sum(cpu_s), 0) AS cpu_s FROM jobs "
        "GROUP BY stage, version, state ORDER BY stage, version, state"
    )
    dropped = books.rows(
        "SELECT stage, drop_reason, count(*) AS count FROM jobs WHERE drop_reason IS NOT NULL "
        "GROUP BY stage, drop_reason ORDER BY stage, drop_reason"
    )
    recent = books.rows(
        "SELECT c.uuid AS clip, c.contributor, c.seconds, count(j.stage) AS stages, "
        "max(j.drop_reason) AS drop_reason FROM clips c LEFT JOIN jobs j ON j.clip = c.uuid AND "
        "j.state = 'done' WHERE c.state = 'complete' GROUP BY c.uuid, c.contributor, c.seconds, c.completed "
        "ORDER BY c.completed DESC LIMIT 50"
    )
    return {
        "clips": books.number("SELECT count(*) FROM clips WHERE state = 'complete'"),
        "receiving": books.number("SELECT count(*) FROM clips WHERE state = 'receiving'"),
        "hours": sum(row["seconds"] for row in contributors) / 3600,
        "bytes": sum(row["bytes"] for row in contributors),
        "devices": books.number("SELECT count(*) FROM devices"),
        "forgotten": books.number("SELECT count(*) FROM tombstones"),
        "contributors": [
            {
                "contributor": row["contributor"],
                "clips": row["clips"],
                "hours": row["seconds"] / 3600,
                "bytes": row["bytes"],
            }
            for row in contributors
        ],
        "jobs": [dict(row) for row in jobs],
        "dropped": [dict(row) for row in dropped],
        "recent": [dict(row) for row in recent],
    }
