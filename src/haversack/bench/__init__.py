"""One file per published system, and the named bench `engine`: method and baseline in one run, judged by
bars.

A bench file declares a `Bench` named `bench`; each of its functions measures a few rows::

    bench = Bench("edgemoe", number=4, watches=("run/residency/edgemoe.py", "kernels/*.py"))

    @bench.measure(
        Row("decode", "Decodes faster than ...", unit="tokens/s", kind="time", published="1.2x-2.7x",
            bar=Bar(">=", 1.2), quick=True),
        seconds=120, quick_seconds=20,
    )
    def decode(run: Run) -> Outcomes:
        taken = run.interleave({"whole layers": whole, "experts": experts})
        return {"decode": Outcome.of(taken, baseline="whole layers", ours="experts")}

`haversack bench SYSTEM` runs it (_harness.py), judges the rows (_rows.py) and stores them (_store.py).
"""

from __future__ import annotations

from haversack.core._names import lazily

_PUBLIC = {
    "Bar": "_rows",
    "Outcome": "_rows",
    "Outcomes": "_rows",
    "Row": "_rows",
    "Side": "_rows",
    "Unavailable": "_rows",
    "Bench": "_harness",
    "Run": "_harness",
    "run_bench": "_harness",
    "stored_result": "_store",
    "bench_names": "_find",
    "find_bench": "_find",
}
__all__ = sorted(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
