"""How much of the memory's bandwidth decoding uses: bytes of weights read a second, beside a plain read."""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Outcome, Outcomes, Row
from haversack.bench.engine._bench import bench
from haversack.bench.engine.against_llama_cpp import DECODED, PROMPT, SHAPE, TOKENS, ours
from haversack.core.pack import Pack

BUFFER_BYTES = 512 << 20


@bench.measure(
    *[
        Row(
            f"bandwidth-{threads}",
            f"bytes read a second while decoding on {threads} thread{'s' if threads > 1 else ''}, "
            "over reading memory in the same minute",
            "GB/s",
            "time",
        )
        for threads in (1, 2)
    ],
    seconds=60,
)
def bandwidth(run: Run) -> Outcomes:
    from haversack.kernels import set_threads
    from haversack.kernels._machine import bandwidth_gb_s

    one = ours("copied")
    pack = Pack.open(one.weights.parent)
    whole = sum(entry.nbytes for entry in pack.tensors.values())
    embedding = pack.tensors["model.embed_tokens.weight"]
    read_per_token = whole - embedding.nbytes + embedding.nbytes // SHAPE.vocabulary
    found = {}
    worker, _ = one.start()
    with worker:
        for threads in (1, 2):
            worker.ask("threads", n=threads)
            set_threads(threads)

            def decoding() -> float:
                seconds = worker.ask("decode", tokens=TOKENS[PROMPT:])["seconds"]
                return DECODED * read_per_token / float(seconds) / 1e9

            taken = run.interleave(
                {"reading memory": lambda: bandwidth_gb_s("read", True, BUFFER_BYTES), "decoding": decoding}
            )
            note = f"{read_per_token / 1e6:.0f} MB a token, both in 2 MiB pages"
            found[f"bandwidth-{threads}"] = Outcome.of(
                taken, ours="decoding", baseline="reading memory", note=note
            )
    return found
