"""Run methods: the plain tokens alone and in pairs, the planned memory; or a refusal by declaration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack.core import index
from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import UserError
from haversack.core.index import MethodEntry
from haversack.run import Engine, Limits, Sampler, generate
from haversack.run._slots import GIVEN, NAMES
from haversack.run._source import open_model, traits_of

ENTRIES = [entry for entry in index.methods("run") if entry.slot in NAMES]
PROMPT = (np.random.default_rng(2).integers(0, 256, 40)).tolist()
ANSWER = 24
# Where a parameter's default would be idle on a prompt this short, a value that is not.
WORKING = {
    ("attention", "dhsa"): "mode=dhsa_topk",  # the plain mode needs a predictor that knows the model
    ("prefill", "chunked"): "tokens=16",
    ("prefill", "chunked:shadow"): "tokens=16",
    ("residency", "streamed"): "keep=1",
    ("residency", "sealed"): "keep=1",
    ("decode", "tree"): "alpha=1e-5,branch_threshold=1e-3",
    ("decode", "remote"): "log_probabilities=true,timeout_s=20",
}

every_method = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.slot}-{entry.name}")
PAIRS = [(one, two) for one, two in itertools.combinations(ENTRIES, 2) if one.slot != two.slot]
every_pair = pytest.mark.parametrize(
    ("one", "two"), PAIRS, ids=[f"{one.slot}-{one.name}+{two.slot}-{two.name}" for one, two in PAIRS]
)

Answer = tuple[list[int], list[float]]


def test_every_slot_of_the_stage_that_has_methods_is_tested() -> None:
    assert {entry.slot for entry in index.methods("run")} <= set(NAMES)


SEALED, NESTED, SHADOW = "sealed-weights", "weight-type:nested", "shadow-outliers"
GIVEN_BY_PACKS = ("expert-store:experts", "expert-store:matrices", "head-predictor")


def asks_a_server(*entries: MethodEntry) -> bool:
    return any(parameter.name == "server" for entry in entries for parameter in entry.parameters)


def choice(entry: MethodEntry, draft: Path, sealed: Path, server: str = "ws://127.0.0.1:1") -> str:
    given = []
    if asks_a_server(entry):
        given.append(f"server={server}")
    if SEALED in entry.requires:
        given.append(f"key={sealed / 'key'}")
    if (entry.slot, entry.name) in WORKING:
        given.append(WORKING[entry.slot, entry.name])
    if any(parameter.name == "draft" for parameter in entry.parameters):
        given.append(f"draft={draft}")
    return f"{entry.name}:{','.join(given)}" if given else entry.name


@pytest.fixture(scope="module")
def model_of(
    checkpoint: Path,
    mixture_pack: Path,
    matrices_pack: Path,
    nested_pack: Path,
    shadow_pack: Path,
    sealed: Path,
) -> Callable[..., Path]:
    """What the methods are tried on: a mixture of experts where one of them needs what its pack has, a sealed
    pack where one needs that. `plain`: the same model as it is run without them.
    """

    def choose(*entries: MethodEntry, plain: bool = False) -> Path:
        needed = {trait for entry in entries for trait in entry.requires}
        if SEALED in needed and not plain:
            return sealed / "small.pack"
        if NESTED in needed:
            return nested_pack
        if SHADOW in needed:
            return shadow_pack
        if "expert-store:experts" in needed:
            return mixture_pack
        return matrices_pack if needed & set(GIVEN_BY_PACKS) else checkpoint

    return choose


@pytest.fixture(scope="module")
def answer(
    model_of: Callable[..., Path], draft: Path, sealed: Path, checkpoint: Path, served: Callable[[Path], str]
) -> Callable[..., Answer]:
    """Tokens and log-probabilities of a run with these methods, the rest plain; each run once. `plain`: of
    the same model without them. Where a server verifies, it has the plain model, and the model here drafts.
    """
    kept: dict[tuple[object, ...], Answer] = {}

    def run(*entries: MethodEntry, sampler: Sampler | None = None, plain: bool = False) -> Answer:
        model = model_of(*entries, plain=plain)
        key = (model, () if plain else tuple(entries), sampler)
        if key not in kept:
            kept[key] = fresh(*(() if plain else entries), sampler=sampler, model=model)
        return kept[key]

    def fresh(*entries: MethodEntry, sampler: Sampler | None = None, model: Path | None = None) -> Answer:
        model = model or model_of(*entries)
        server = ""
        if asks_a_server(*entries):
            server = served(model_of(*entries, plain=True))
            model = draft if model == checkpoint else model
        slots = {entry.slot: choice(entry, draft, sealed, server) for entry in entries}
        with Engine.open(model, **slots) as engine:
            made = generate(engine, PROMPT, Limits(max_tokens=ANSWER, end=()), sampler)
            for _ in made:
                pass
            return made.tokens, made.log_probabilities

    run.fresh = fresh  # type: ignore[attr-defined]
    return run


@every_method
def test_alone_it_gives_the_plain_tokens(entry: MethodEntry, answer: Callable[..., Answer]) -> None:
    """Greedy: the same tokens with the same bits, or the method says that it changes the answer."""
    tokens, logs = answer(entry)
    assert len(tokens) == ANSWER
    assert all(np.isfinite(logs))
    assert (tokens, logs) == answer(entry, plain=True)


@every_method
def test_the_same_under_a_seed(entry: MethodEntry, answer: Callable[..., Answer]) -> None:
    sampler = Sampler(temperature=1.0, top_k=50, seed=5)
    assert answer.fresh(entry, sampler=sampler) == answer.fresh(entry, sampler=sampler)  # type: ignore[attr-defined]
    others = {tuple(answer(entry, sampler=Sampler(temperature=1.0, seed=seed))[0]) for seed in range(3)}
    assert len(others) == 3


@every_pair
def test_in_pairs_it_gives_the_plain_tokens_or_refuses(
    one: MethodEntry, two: MethodEntry, answer: Callable[..., Answer], model_of: Callable[..., Path]
) -> None:
    needed = one.requires | two.requires
    given = {*GIVEN, *({"draft-model"} & needed), *traits_of(open_model(model_of(one, two)).source)}
    plain = [
        index.find("run", slot, name)
        for slot, name in (
            ("residency", "mapped"),
            ("attention", "dense"),
            ("context", "tokens"),
            ("prefill", "whole"),
            ("decode", "one-by-one"),
        )
        if slot not in (one.slot, two.slot)
    ]
    if index.conflicts([one, two, *plain], given):
        with pytest.raises(UserError, match="cannot run"):
            answer.fresh(one, two)  # type: ignore[attr-defined]
        return
    assert answer(one, two) == answer(one, two, plain=True)


@every_method
def test_the_budget_is_kept_before_any_work(
    entry: MethodEntry, model_of: Callable[..., Path], draft: Path, sealed: Path
) -> None:
    """What it plans fits in just that budget; below, it refuses and names the smallest that would do."""
    slots, checkpoint = {entry.slot: choice(entry, draft, sealed)}, model_of(entry)
    with Engine.open(checkpoint, **slots, tokens=(40, ANSWER)) as engine:
        needed = engine.memory_plan((40, ANSWER)).total_mib
    assert needed > 0
    with Engine.open(checkpoint, **slots, tokens=(40, ANSWER), budget=Budget(ram_mib=needed + 0.01)):
        pass
    with pytest.raises(BudgetError) as caught:
        Engine.open(checkpoint, **slots, tokens=(40, ANSWER), budget=Budget(ram_mib=needed / 2))
    (failure,) = [each for each in caught.value.failures if each.field == "ram_mib"]
    assert failure.needed <= 1.01 * needed
    with Engine.open(checkpoint, **slots, tokens=(40, ANSWER), budget=Budget(ram_mib=failure.needed)):
        pass


@every_method
def test_what_was_refused_leaves_the_cache_as_it_was(
    entry: MethodEntry, model_of: Callable[..., Path], draft: Path, sealed: Path
) -> None:
    with Engine.open(model_of(entry), **{entry.slot: choice(entry, draft, sealed)}) as engine:
        cache = engine.cache(48)
        engine.step(PROMPT[:8], cache=cache)
        with pytest.raises(UserError):
            engine.step([10**6], cache=cache)
        with pytest.raises(UserError):
            engine.step(PROMPT[:8] * 6, cache=cache)
        assert cache.length == 8
        again, _ = engine.step(PROMPT[8:16], cache=cache)
        other = engine.cache(48)
        plain, _ = engine.step(PROMPT[:16], cache=other)
        assert again is not None and plain is not None
        assert np.array_equal(again, plain)
