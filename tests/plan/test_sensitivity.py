"""Bits by layer: the knapsack against every choice there is, and a real small model that loses less by it."""

import itertools
import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.cli import main
from haversack.cli._records import OUTPUTS, LayerBitsRecord
from haversack.core.budget import Budget
from haversack.core.device import device
from haversack.core.pack import Pack, PackWriter
from haversack.core.progress import progress
from haversack.formats.safetensors import HubFolder
from haversack.models import Tokenizer, read_architecture
from haversack.models._bundled import model_folder
from haversack.models._calibration import default_text, segments, token_text
from haversack.plan import _sensitivity
from haversack.plan._candidates import SAME_QUALITY
from haversack.plan._enumerate import Space, predicted
from haversack.plan._job import RECORD_NBYTES, TOKENIZER_FILES, Job, pack_files
from haversack.plan._language_job import Bench
from haversack.plan._predict import MIB
from haversack.plan._search import Clock, measured
from haversack.plan._sensitivity import (
    Layer,
    best_bits,
    between,
    blended,
    halves,
    layers_of,
    lines_of,
    loss_of,
    measured_layers,
    no_worse,
    promising,
    refined,
)
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, stored_kinds, stored_nbytes
from haversack.shrink.precision.gptq import Gptq
from haversack.shrink.precision.mixed import WIDTHS, Mixed, text_of

GROUP = 32


def layer(nbytes, lost):
    return Layer(0, ("a",), dict(zip(WIDTHS, nbytes, strict=True)), dict(zip(WIDTHS, lost, strict=True)))


sizes = st.tuples(st.integers(1, 40), st.integers(41, 60), st.integers(61, 120))
losses = st.tuples(st.integers(0, 50), st.integers(0, 30), st.just(0))


@settings(max_examples=200, deadline=None)
@given(given=st.lists(st.tuples(sizes, losses), min_size=1, max_size=5), most=st.integers(0, 500))
def test_the_knapsack_finds_what_trying_everything_finds(given, most):
    layers = [layer(*one) for one in given]

    def sums(bits):
        pairs = list(zip(layers, bits, strict=True))
        return sum(one.nbytes[b] for one, b in pairs), sum(one.lost[b] for one, b in pairs)

    every = [sums(bits) for bits in itertools.product(WIDTHS, repeat=len(layers))]
    least = min((lost for nbytes, lost in every if nbytes <= most), default=None)
    found = best_bits(layers, most)
    assert (found is None) == (least is None)
    if found is not None:
        nbytes, lost = sums(found)
        assert nbytes <= most and lost == least


def test_many_layers_take_no_time():
    draw = np.random.default_rng(0)
    layers = [
        layer(size * np.asarray(WIDTHS), (*sorted(draw.random(2), reverse=True), 0.0))
        for size in draw.integers(1000, 1_000_000, 200)
    ]
    least, most = (sum(one.nbytes[bits] for one in layers) for bits in (3, 8))
    found = best_bits(layers, (least + most) // 2)
    assert sum(one.nbytes[bits] for one, bits in zip(layers, found, strict=True)) <= (least + most) // 2
    uniform = sum(one.lost[4] for one in layers)
    assert sum(one.lost[bits] for one, bits in zip(layers, found, strict=True)) < uniform


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    """The smallest bundled model as GPTQ packs it at every width, with its calibration text."""
    folder, at = model_folder("code-draft"), tmp_path_factory.mktemp("packs")
    source = HubFolder.open(folder)
    walk = LanguageWalk(read_architecture(source.config))
    encode = Tokenizer.of_folder(folder).encode
    text = token_text(encode, walk.architecture.vocabulary, "calibration", None, 40_000)

    def packed(name, method):
        with PackWriter(at / name) as writer:
            compress(
                *(source, walk, method, writer),
                texts=segments(text.tokens[4096:-4096], 256, 6, 0),
                policy=Policy(),
                folder=at,
            )
            writer.finish({"architecture": source.config, "plan": {}})
        return Pack.open(at / name)

    packs = {bits: packed(f"{bits}.pack", Gptq(bits=bits, group=GROUP)) for bits in WIDTHS}
    return walk, packs, text, packed


def test_it_loses_no_more_than_the_uniform_plan_of_as_many_bytes(draft, monkeypatch):
    """On text that neither calibrated a method nor measured a sensitivity."""
    walk, packs, text, packed = draft
    monkeypatch.setattr(_sensitivity, "TOKENS", 1024)
    first, second = halves(text)
    architecture = walk.architecture
    layers = measured_layers(layers_of(walk, GROUP), packs, architecture, first, "f32")
    assert sum(one.lost[3] for one in layers) > sum(one.lost[4] for one in layers) > 0
    assert all(one.lost[8] == 0 for one in layers)
    uniform = sum(one.nbytes[4] for one in layers)
    bits = no_worse(layers, 4, uniform, packs, architecture, second, "f32")
    chosen = bits or (4,) * len(layers)
    assert sum(one.nbytes[width] for one, width in zip(layers, chosen, strict=True)) <= uniform
    ours, theirs = (
        loss_of(blended(layers, one, packs), architecture, second, "f32")
        for one in (chosen, [4] * len(layers))
    )
    assert ours <= theirs
    # With a third more bytes it is better, and the pack of `mixed` holds exactly the bytes that were counted.
    most = uniform * 4 // 3
    bits = no_worse(layers, 4, most, packs, architecture, second, "f32")
    assert bits is not None and len(set(bits)) > 1
    by_block = tuple(
        tuple(width for one, width in zip(layers, bits, strict=True) if one.block == block)
        for block in range(walk.blocks)
    )
    method = Mixed(layers=text_of(by_block), group=GROUP)
    pack = packed("mixed.pack", method)
    kinds = stored_kinds(walk, method, Policy())
    assert sum(entry.nbytes for entry in pack.tensors.values()) == stored_nbytes(walk, kinds)
    for one, width in zip(layers, bits, strict=True):
        assert {pack.tensors[name].kind for name in one.names} == {f"int{width}"}
        assert sum(pack.tensors[name].nbytes for name in one.names) == one.nbytes[width] <= most
    anew = loss_of(blended(layers, [8] * len(layers), {8: pack}), architecture, second, "f32")
    assert anew < theirs, "calibrated anew it still loses less than 4 bits for all"


@pytest.fixture(scope="module")
def files_nbytes():
    """Of what a pack holds beside its weights."""
    names = pack_files(model_folder("code-draft"))
    return RECORD_NBYTES + sum(path.stat().st_size for name, path in names.items() if name in TOKENIZER_FILES)


@pytest.fixture(scope="module")
def limit(draft, files_nbytes):
    """MiB of storage between those of 4 and 8 bits."""
    walk = draft[0]
    small, large = (
        stored_nbytes(walk, stored_kinds(walk, Gptq(bits=bits, group=GROUP), Policy())) for bits in (4, 8)
    )
    return ((small + large) / 2 + files_nbytes) / MIB


def test_the_planner_fills_what_uniform_bits_leave(draft, limit, files_nbytes, tmp_path, monkeypatch):
    monkeypatch.setattr(_sensitivity, "TOKENS", 1024)
    (tmp_path / "text.py").write_text(default_text("evaluation")[:8000])
    budget = Budget(storage_mib=limit)
    job = Job(
        "code-draft",
        tmp_path / "x.pack",
        device("raspberry-pi-5"),
        budget,
        evaluation=tmp_path / "text.py",
        calibration_tokens=2048,
    )
    source = HubFolder.open(model_folder("code-draft"))
    said = []
    with progress("") as bar:
        shop = Bench(job, source, tmp_path, bar)
        fixed = {"activations": "f32", "residency": "mapped", "cache_type": "f32"}
        space = Space(shop.architecture, job.device, files_nbytes, 256, precision="gptq", **fixed)
        found = {one.plan.precision: one for one in predicted(space)[0]}
        assert promising(list(found.values()), budget)
        reference, uniform = shop.reference(), f"gptq:bits=4,group={GROUP}"
        found[uniform] = base = measured(found[uniform], reference, shop)
        every = [*found.values()]
        assert between(every, budget) == base and between([base], budget) is None
        hurried = refined(every, base, shop, space, budget, reference, Clock(0.0), said.append)
        assert hurried.chosen == base and "more than the effort leaves" in hurried.said and not said
        result = refined(every, base, shop, space, budget, reference, Clock(1e9), said.append)
    (mixed,) = [one for one in result.found if one.plan.precision.startswith("mixed:")]
    assert budget.fits(mixed.demand()) and base.storage_mib < mixed.storage_mib <= limit
    assert mixed.quality < base.quality
    assert result.chosen.loss < mixed.loss + SAME_QUALITY
    bits = [one.bits for one in result.layers]
    assert len(bits) == len(layers_of(draft[0], GROUP)) and len(set(bits)) > 1
    assert f"layers={''.join(map(str, bits[:4]))}." in mixed.plan.precision
    lines = dict(lines_of(result))
    assert f"{mixed.quality:.4f} bits per byte" in lines["bits by layer"]
    assert lines["block 0: q_proj, k_proj, v_proj"].startswith(f"{bits[0]} bits; bits per byte +")
    assert lines_of(hurried) == [("bits by layer", hurried.said)]
    (record, *_) = (one.record() for one in result.layers)
    assert record["bits"] == bits[0] and set(record["sensitivity"]) == {"3", "4", "8"}
    msgspec.convert(record, LayerBitsRecord)


def test_the_report_says_what_came_of_it(limit, tmp_path, capsys):
    """The command's own path, without the time for more."""
    (tmp_path / "text.py").write_text(default_text("evaluation")[:8000])
    line = ["pack", "code-draft", "-d", "raspberry-pi-5", "-o", str(tmp_path / "x.pack"), "--json"]
    line += ["--storage-mib", str(limit), "--calibration-tokens", "2048", "--effort", "0.3"]
    line += ["--activations", "f32", "--cache-type", "f32", "--residency", "mapped"]
    assert main([*line, "--evaluation", str(tmp_path / "text.py")]) == 0
    said = capsys.readouterr().out
    record = json.loads(said)
    msgspec.json.decode(said.encode(), type=OUTPUTS["pack"])
    assert record["sensitivity"] == [] and "mixed" not in said
    assert "more than the effort leaves" in (tmp_path / "x.pack" / "report.html").read_text()
