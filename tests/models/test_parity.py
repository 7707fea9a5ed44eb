"""The engine gives what `transformers` gave: tracked recordings, and live where PyTorch is installed.

The bar of every comparison: max |difference| <= 1e-4 x max |logit| over prompt and 32 decoded steps, greedy
tokens identical.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from tests.models.parity import BAR, NAMES, answer, difference, recorded

from haversack.models import read_architecture


def test_every_case_is_recorded(record: Any) -> None:
    assert sorted(record.CASES) == NAMES
    for name in NAMES:
        assert recorded(record, name)[0] == json.loads(json.dumps(record.CASES[name][0]))
    size = sum(path.stat().st_size for path in record.RECORDINGS.iterdir())
    assert size < 2 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_recording(name: str, record: Any, drawn: Any, memory_source: Any) -> None:
    config, weights, prompt, stored = drawn(name)
    found = answer(memory_source(config, weights), prompt, record.DECODED)
    assert found.tokens == stored["tokens"].tolist()
    assert (found.logits[stored["rows"]].argmax(axis=1) == stored["argmax"]).all()
    assert difference(found, stored) <= BAR
    assert abs(np.abs(found.logits[stored["rows"]]).max() / stored["largest"].max() - 1) <= BAR


@pytest.mark.parametrize("name", NAMES)
def test_live(name: str, record: Any, drawn: Any, memory_source: Any) -> None:
    pytest.importorskip("torch", reason="live parity needs PyTorch")
    pytest.importorskip("transformers", reason="live parity needs transformers")
    config, weights, _, _ = drawn(name)
    prompt = record.draw_prompt(name + "-live", record.CASES[name][1] + 5)  # a prompt that was not recorded
    logits, tokens = record.reference(config, weights, prompt, record.DECODED)
    found = answer(memory_source(config, weights), prompt, record.DECODED)
    assert found.tokens == tokens
    assert float(np.abs(found.logits - logits).max()) <= BAR * float(np.abs(logits).max())


def test_a_tied_head_is_not_an_untied_one(record: Any, drawn: Any, memory_source: Any) -> None:
    config, weights, prompt, stored = drawn("llama")
    tied = {**config, "tie_word_embeddings": True}
    found = answer(memory_source(tied, weights), prompt, 1)
    assert difference(found, stored) > BAR


@pytest.mark.parametrize("newer", [True, False])
def test_both_spellings_of_rope_are_one(newer: bool, record: Any) -> None:
    config = copy.deepcopy(record.CASES["llama-yarn"][0])
    scaling, theta = config.pop("rope_scaling"), config.pop("rope_theta")
    if newer:
        config["rope_parameters"] = {**scaling, "rope_theta": theta}
    else:
        config["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
        config["rope_theta"] = theta
    assert read_architecture(config) == read_architecture(record.CASES["llama-yarn"][0])
