"""What a frozen draft keeps of its acceptance while its target evolves, and what the others cost to keep up.

The target T0 is `code`. Three versions follow one another, each by LoRA on the blocks above the anchor, on
another text and as much of the general one, so that a version does not forget what its users came for. All
drafts have the same shape (the anchor's embedding, two blocks) and learn from the same general text by the
same loss: FlexSpec's bridge once, against T0; an *independent* model whose every weight learns from the
start, once, against T0, with as many steps (it is stale later); the same distilled again from each version,
which the device downloads. Beside them, without bars: a draft that begins as T0's own weights and learns
all of them, and the shipped `code-draft`, a fifth the size, trained far longer.

Acceptance is accepted over drafted tokens of greedy chains of four. Prompts: held-out Python, which is the
general text and what `kept` is judged on, and the held-out parts of the versions' texts, which are what
"shifted" says: there a target that has learned a text says what no draft of the old one can guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench._store import content_hash
from haversack.bench.flexspec._bench import bench
from haversack.bench.flexspec._texts import VERSIONS, Corpus, corpora, prompts
from haversack.core.errors import MissingExtraError

FILES = (
    "bench/flexspec/training.py",
    "bench/flexspec/_texts.py",
    "bench/flexspec/_drafts_torch.py",
    *("train/draft*.py", "train/fit.py", "train/fit_torch.py", "train/_losses_torch.py"),
    *("train/_model_torch.py", "train/_texts.py", "train/_training.py"),
    "train/parameters/lora*.py",
    "models/_family.py",
    "models/_adapter.py",
    "models/_train_loop_torch.py",
    "run/decode/linear_draft.py",
    "run/_verify.py",
)
STEPS, VERSION_STEPS, AGAIN_STEPS = 360, 50, 80
"""Of the drafts; of each version; of a draft distilled again from a version, beginning as it was before."""
ROWS, LENGTH, SEED = 4, 256, 0
TEMPERATURE, MSE = 0.8, 0.1
MATRIX_RATES = {"bridge": 0.02, "independent": 0.02, "again": 0.01}
VERSION_RATE = 0.00075
"""AdamW's, which learns the factors of a version: a quarter of what a model begins with, for a version is a
small change of a trained one."""
CHAIN, TOKENS = 4, 64
PROMPTS = 24
"""Of general text, and as many of shifted."""


@dataclass(frozen=True)
class Accepted:
    """Drafted and accepted tokens of one target and draft, of general and of shifted prompts; how many of
    the tokens are not plain decoding's."""

    general: tuple[int, int]
    shifted: tuple[int, int]
    wrong: int

    def share(self, kind: str = "all") -> float:
        """Accepted over drafted."""
        pairs = {"general": [self.general], "shifted": [self.shifted]}.get(kind, [self.general, self.shifted])
        return sum(accepted for _, accepted in pairs) / max(1, sum(drafted for drafted, _ in pairs))


def compute() -> str:
    """What matrix products are taken in: bf16, or f32 on a processor that would only emulate it."""
    import torch

    from haversack.models._train_loop_torch import compute_type

    return "bf16" if compute_type(torch.device("cpu")) == torch.bfloat16 else "f32"


def learning(steps: int, matrix_rate: float = 0.02, rate: float = 0.003) -> Any:
    """The settings that all trainings share."""
    from haversack.train._training import Learning

    return Learning(steps, ROWS, LENGTH, matrix_rate, rate, seed=SEED, compute=compute(), threads=2)


class Models:
    """Every model of the bench, trained when it is first asked for and kept by content."""

    def __init__(self, run: Run) -> None:
        from haversack.models._bundled import model_folder

        self.run = run
        self.base = model_folder("code")
        self.texts: Mapping[str, Corpus] = corpora(self.base)
        self._common: dict[str, Any] = {
            "program": content_hash(FILES),
            "model": [(path.name, path.stat().st_size) for path in sorted(self.base.iterdir())],
            "settings": [STEPS, VERSION_STEPS, AGAIN_STEPS, ROWS, LENGTH, SEED, compute(), TEMPERATURE, MSE],
            "rates": {**MATRIX_RATES, "version": VERSION_RATE},
            "texts": {name: len(corpus.learned) for name, corpus in self.texts.items()},
        }

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        def told(goal: Path) -> None:
            self.run.say(f"training: {name}")
            make(goal / "model")

        key = name.replace(" ", "-")
        return cached(f"flexspec-{key}", {**self._common, "name": name}, told) / "model"

    def lesson(self, name: str, *beside: str) -> Any:
        """The text `name`, to learn from, and no more tokens than it has of each text `beside` it."""
        from haversack.train._texts import split

        most = len(self.texts[name].learned)
        return split([self.texts[one].learned[:most] for one in (name, *beside)])

    @cached_property
    def bridge(self) -> Path:
        """FlexSpec's draft."""

        def make(goal: Path) -> None:
            from haversack.train.draft import Bridge, train_draft

            settings = Bridge(temperature=TEMPERATURE, mse=MSE)
            rate = learning(STEPS, MATRIX_RATES["bridge"])
            train_draft(self.base, self.lesson("general"), goal, bridge=settings, learning=rate, name="code")

        return self._made("FlexSpec's draft", make)

    def _whole(self, name: str, target: Path, start: Path | None, steps: int, rate: float) -> Path:
        def make(goal: Path) -> None:
            from haversack.bench.flexspec._drafts_torch import distilled
            from haversack.formats.safetensors import HubFolder

            goal.mkdir()
            config = HubFolder.open(self.bridge).config
            distilled(
                *(goal, target, config, self.lesson("general"), learning(steps, rate)),
                start=start,
                temperature=TEMPERATURE,
                mse=MSE,
            )

        return self._made(name, make)

    @cached_property
    def independent(self) -> Path:
        """A draft whose every weight learned from the start, against T0."""
        return self._whole("independent draft", self.base, None, STEPS, MATRIX_RATES["independent"])

    @cached_property
    def unfrozen(self) -> Path:
        """FlexSpec's draft with every weight let go: it learns on against T0."""
        return self._whole("unfrozen draft", self.base, self.bridge, AGAIN_STEPS, MATRIX_RATES["again"])

    @cached_property
    def versions(self) -> list[Path]:
        """T0 and its three versions."""
        found = [self.base]
        for name in VERSIONS:
            found.append(self._version(name, found[-1]))
        return found

    def _version(self, name: str, before: Path) -> Path:
        def make(goal: Path) -> None:
            from haversack.train.fit import fit

            fit(
                *(before, self.lesson(name, "general"), goal),
                family=self.bridge,
                parameters="lora:rank=8",
                learning=learning(VERSION_STEPS, rate=VERSION_RATE),
            )

        return self._made(f"version on {name}", make)

    @cached_property
    def again(self) -> list[Path]:
        """The independent draft distilled anew from each version, beginning as it was for the one before."""
        found = [self.independent]
        for name, target in zip(VERSIONS, self.versions[1:], strict=True):
            rate = MATRIX_RATES["again"]
            found.append(self._whole(f"draft again for {name}", target, found[-1], AGAIN_STEPS, rate))
        return found

    def packed(self, draft: Path) -> Path:
        """A draft in 4 bits, as a device has it."""
        from haversack.bench.engine._models import _pack

        def make(goal: Path) -> None:
            _pack(draft, goal / "draft.pack", "round-to-nearest:bits=4,group=64", 0, "f16", "int8")

        return cached("flexspec-packed", {**self._common, "draft": draft.parent.name}, make) / "draft.pack"

    def prompts(self) -> dict[str, list[Any]]:
        """General and shifted prompts."""
        each = PROMPTS // len(VERSIONS)
        shifted = [one for name in VERSIONS for one in prompts(self.texts[name], each, self.run.seed)]
        return {"general": prompts(self.texts["general"], PROMPTS, self.run.seed), "shifted": shifted}

    def loss(self, model: Path, name: str) -> float:
        """Nats a token of `model` on the held-out part of a text."""
        import numpy as np

        from haversack.models._evaluation import next_token_logits
        from haversack.run import Engine

        total, count = 0.0, 0
        with Engine.open(model) as engine:
            for rows, wanted in next_token_logits(engine, self.texts[name].prompts[:4096], 1024, 768):
                wide = rows.astype(np.float64)
                wide -= wide.max(axis=1, keepdims=True)
                logs = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
                total -= float(logs[np.arange(len(wanted)), wanted].sum())
                count += len(wanted)
        return total / count


def answers(target: Path, draft: Path | None, asked: Sequence[Any]) -> list[tuple[list[int], int, int]]:
    """(tokens, drafted, accepted) of each prompt, greedily; plain decoding without a draft."""
    from haversack.run import Engine, Limits, generate

    decode = "one-by-one" if draft is None else f"linear-draft:length={CHAIN}"
    found = []
    with Engine.open(target, decode=decode, draft=None if draft is None else str(draft)) as engine:
        for prompt in asked:
            answer = generate(engine, prompt, Limits(TOKENS, end=()))
            for _ in answer:
                pass
            counts = answer.drafting
            drafted, accepted = (0, 0) if counts is None else (counts.drafted, counts.accepted)
            found.append((list(answer.tokens), drafted, accepted))
    return found


def accepted(target: Path, draft: Path, asked: Mapping[str, Sequence[Any]], plain: Any) -> Accepted:
    """What `target` accepts of `draft`, and how many tokens are not `plain`'s."""
    counts, wrong = {}, 0
    for kind, given in asked.items():
        found = answers(target, draft, given)
        counts[kind] = (sum(one[1] for one in found), sum(one[2] for one in found))
        for (tokens, _, _), (wanted, _, _) in zip(found, plain[kind], strict=True):
            wrong += sum(a != b for a, b in zip(tokens, wanted, strict=True))
    return Accepted(counts["general"], counts["shifted"], wrong)


def downloaded(draft: Path, pack: Path, versions: Sequence[Path]) -> int:
    """Bytes of drafts that a device with `pack`, the draft of a family, has to fetch while its target becomes
    one of `versions` after the other: none for a version whose anchor has the draft's hash."""
    from haversack.core.errors import UserError
    from haversack.core.pack import Pack
    from haversack.formats.safetensors import HubFolder
    from haversack.models import read_architecture
    from haversack.models._family import declared_family, require_family

    total = 0
    family = declared_family(HubFolder.open(draft))
    assert family is not None
    for version in versions:
        source = HubFolder.open(version)
        try:
            require_family(source, read_architecture(source.config), family, "the draft")
        except UserError:
            total += Pack.open(pack).nbytes
    return total


ROW_KEPT = Row(
    "kept",
    "acceptance on general text with the third version beside that with T0, the draft being the same",
    "accepted / drafted",
    "quality",
    Bar(">=", 0.85),
)
ROW_STALE = Row(
    "against-stale",
    "acceptance on shifted text with the third version, beside an independent draft of equal size, stale",
    "accepted / drafted",
    "quality",
    Bar(">=", 1.1),
)
ROW_EXACT = Row(
    "versions-exact",
    "greedy tokens that are not the target's own, over all versions and drafts",
    "tokens",
    "quality",
    Bar("==", 0),
    judged="ours",
    quick=True,
)
ROW_SYNC = Row(
    "sync-bytes",
    "bytes of drafts that a device fetches over three versions, beside a new draft for each (4 bits)",
    "bytes",
    "bytes",
    Bar("==", 0),
    judged="ours",
    published="0: no draft update over target versions",
    quick=True,
)
INFORMING = (
    Row("kept-all", "the same as kept, on general and shifted text", "accepted / drafted", "quality"),
    Row("kept-shifted", "the same, on shifted text alone", "accepted / drafted", "quality"),
    Row(
        "kept-stale",
        "what the independent draft keeps, third version beside T0, all prompts",
        "accepted / drafted",
        "quality",
    ),
    Row(
        "against-again",
        "acceptance on shifted text with the third version, beside a draft distilled again from it",
        "accepted / drafted",
        "quality",
    ),
    Row(
        "against-unfrozen",
        "acceptance on shifted text with the third version, beside the same draft with every weight let go",
        "accepted / drafted",
        "quality",
    ),
    Row(
        "against-code-draft",
        "acceptance on shifted text with the third version, beside the shipped code-draft (0.9 million)",
        "accepted / drafted",
        "quality",
    ),
    Row("in-4-bits", "acceptance with T0 in 4 bits, beside the float draft", "accepted / drafted", "quality"),
    Row(
        "versions-learned",
        "held-out loss of the third version on its own text, beside the second version's",
        "nats / token",
        "quality",
    ),
)


@bench.measure(
    ROW_KEPT, ROW_STALE, ROW_EXACT, ROW_SYNC, *INFORMING, seconds=900, quick_seconds=20, watches=FILES
)
def training(run: Run) -> Outcomes:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("training drafts and versions", "PyTorch", "workshop") from error
    if run.quick:
        return barely_trained(run)
    models = Models(run)
    targets, asked = models.versions, models.prompts()
    shipped = models.base.with_name("code-draft")
    four_bits = models.packed(models.bridge)
    sides: dict[str, list[Path]] = {
        "FlexSpec": [models.bridge] * 4,
        "independent": [models.independent] * 4,
        "again": models.again,
    }
    ends = {"unfrozen": models.unfrozen, "code-draft": shipped, "4 bits": four_bits}
    found: dict[str, dict[int, Accepted]] = {name: {} for name in (*sides, *ends)}
    for index, target in enumerate(targets):
        run.say(f"acceptance with T{index}")
        plain = {kind: answers(target, None, given) for kind, given in asked.items()}
        for name, drafts in sides.items():
            if name == "again" and index == 0:
                continue
            found[name][index] = accepted(target, drafts[index], asked, plain)
        for name, draft in ends.items():
            if index in (0, 3):
                found[name][index] = accepted(target, draft, asked, plain)
    return outcomes(models, found)


def barely_trained(run: Run) -> Outcomes:
    """The rows that hold whatever was learned, on a draft and a version of a few steps, made anew."""
    from tempfile import TemporaryDirectory

    import numpy as np

    from haversack.bench.engine._models import _pack
    from haversack.models import Tokenizer
    from haversack.models._bundled import model_folder
    from haversack.models._calibration import default_text
    from haversack.train._texts import split
    from haversack.train._training import Learning
    from haversack.train.draft import Bridge, train_draft
    from haversack.train.fit import fit

    base = model_folder("code")
    encode = Tokenizer.of_folder(base).encode
    tokens = np.asarray(encode(default_text("calibration")[:60_000], special=False), np.int32)
    few = Learning(3, 2, 128, seed=run.seed % 1000, threads=2)
    with TemporaryDirectory() as folder:
        draft, version, pack = (Path(folder, name) for name in ("draft", "version", "draft.pack"))
        run.say("a draft and a version of three steps")
        train_draft(base, split([tokens]), draft, bridge=Bridge(start="block"), learning=few, name="code")
        fit(base, split([tokens]), version, family=draft, learning=few)
        _pack(draft, pack, "round-to-nearest:bits=4,group=64", 0, "f16", "int8")
        starts = np.random.default_rng(run.seed).integers(0, len(tokens) - 64, 2)
        asked: dict[str, Any] = {"general": [tokens[at : at + 64] for at in starts], "shifted": []}
        wrong = 0
        for target in (base, version):
            plain = {kind: answers(target, None, given) for kind, given in asked.items()}
            wrong += accepted(target, draft, asked, plain).wrong
        fetched, whole = downloaded(draft, pack, [version]), _nbytes(pack)
    note = "a draft and one version of three steps"
    return {
        "versions-exact": Outcome.single(wrong, note=f"{4 * TOKENS} tokens; {note}"),
        "sync-bytes": Outcome.single(fetched, whole, name="FlexSpec", against="downloaded again", note=note),
    }


def outcomes(models: Models, found: Mapping[str, Mapping[int, Accepted]]) -> dict[str, Outcome]:
    """The rows' numbers."""
    ours, stale = found["FlexSpec"], found["independent"]
    last = len(VERSIONS)
    course = ", ".join(f"T{index} {one.share('general'):.3f}" for index, one in ours.items())
    note = f"by version: {course}; {settings()}"

    def kept(side: Mapping[int, Accepted], kind: str) -> Outcome:
        return Outcome.single(side[last].share(kind), side[0].share(kind), name="third version", against="T0")

    def against(name: str, said: str) -> Outcome:
        theirs = found[name][last]
        more = f"all prompts: {ours[last].share():.3f} beside {theirs.share():.3f}"
        return Outcome.single(
            ours[last].share("shifted"), theirs.share("shifted"), name="FlexSpec", against=said, note=more
        )

    packs = [models.packed(draft) for draft in models.again[1:]]
    fetched = downloaded(models.bridge, models.packed(models.bridge), models.versions[1:])
    wrong = sum(one.wrong for side in found.values() for one in side.values())
    count = sum(len(side) for side in found.values()) * 2 * PROMPTS * TOKENS
    losses = [models.loss(model, VERSIONS[-1]) for model in models.versions[-2:]]
    return {
        "kept": Outcome(kept(ours, "general").ours, kept(ours, "general").baseline, note),
        "against-stale": against("independent", "independent, stale"),
        "versions-exact": Outcome.single(wrong, note=f"{count:,} tokens"),
        "sync-bytes": Outcome.single(
            fetched, sum(_nbytes(pack) for pack in packs), name="FlexSpec", against="downloaded again"
        ),
        "kept-all": kept(ours, "all"),
        "kept-shifted": kept(ours, "shifted"),
        "kept-stale": kept(stale, "all"),
        "against-again": against("again", "distilled again"),
        "against-unfrozen": against("unfrozen", "unfrozen"),
        "against-code-draft": against("code-draft", "code-draft"),
        "in-4-bits": Outcome.single(
            found["4 bits"][0].share(), ours[0].share(), name="4 bits", against="float"
        ),
        "versions-learned": Outcome.single(
            losses[1], losses[0], name="third version", against="second version"
        ),
    }


def settings() -> str:
    """What was trained, in words."""
    step = ROWS * LENGTH
    return (
        f"drafts {STEPS} steps of {step:,} tokens, versions {VERSION_STEPS}, drafts again {AGAIN_STEPS}; "
        f"products in {compute()}"
    )


def _nbytes(pack: Path) -> int:
    from haversack.core.pack import Pack

    return Pack.open(pack).nbytes
