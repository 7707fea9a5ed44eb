"""An ONNX graph that decodes, for ONNX Runtime on phones, in browsers and servers.

Inputs: `input_ids`, `position_ids` i64 [batch, n], `attention_mask` i64 [batch, past + n] and, for each block
with attention, `past_key_values.N.key` and `.value` f32 [batch, heads, past, width] (past 0 for a new text).
Outputs: `logits` f32 [batch, n, vocabulary] and `present.N.key`, `.value`, which are the next call's past.
These are the names that optimum and transformers.js use. Weights lie in model.onnx.data beside model.onnx.

`--weights stored`: float matrices in their own type; packed ones as they are, through ONNX Runtime's operator
MatMulNBits (domain com.microsoft), which keeps every integer and scale. `f32` and `f16` write numbers and
need operators of ONNX alone (opset 18). Packed matrices take the type of activations of the pack's plan, or
the one asked for: `f32` computes on the numbers that the integers stand for, `int8-dynamic` lets ONNX Runtime
round the inputs of each product to int8, which it does much faster. All other arithmetic is in f32.

A pack with static ranges (--precision mobilequant) is written in f32 arithmetic on its integers, and its
ranges lie beside the graph in encodings.json, by the names of the graph's tensors: what a compiler for an
integer device reads.

Limit: where rotary frequencies depend on the length of the text (dynamic, longrope), they follow the highest
position of each call; a text that outgrows the first context while it is decoded has to be given again whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError
from haversack.core.memory import MemoryPlan
from haversack.core.progress import Progress
from haversack.models._architecture import (
    Architecture,
    Attention,
    Block,
    Branch,
    FeedForward,
    Linear,
    Mixture,
    Norm,
    Part,
    Positions,
)
from haversack.models._rope import Rope
from haversack.run._source import Model
from haversack.run.export._encodings import ENCODINGS, encodings_of
from haversack.run.export._onnx_graph import ACCURACY, DATA_NAME, Graph, load_onnx, write_model
from haversack.run.export._onnx_layers import Step, attention, feed_forward, softcap
from haversack.run.export._onnx_mixture import mixture
from haversack.run.export._tensors import export_plan, hub_config

LAYOUT = "folder"
NAMES = ("model.onnx", DATA_NAME, ENCODINGS)
WEIGHTS = ("stored", "f32", "f16")
ACTIVATIONS = tuple(ACCURACY)
LAYERS = {"attention": attention, "feed_forward": feed_forward, "mixture": mixture}
"""Kind of a layer's record -> how it is written."""
# What this file writes of each record. Another field that says something is refused, never left out.
_WRITTEN: dict[type, str] = {
    Architecture: "family vocabulary width context embedding blocks final_norm head start_of_text "
    "end_of_text embedding_scale logit_softcap positions project_in project_out parts",
    Block: "index branches parallel",
    Branch: "layer norm post_norm after_norm",
    Attention: "heads key_value_heads head_width scale query key value output rope window softcap query_norm "
    "key_norm",
    FeedForward: "width activation gate up down",
    Mixture: "router experts top scoring scored normalized tap shared shared_gate",
    Linear: "weight inputs outputs bias",
    Positions: "weight count offset",
    Part: "name holder shape first transposed",  # where tensors are kept, not what is computed
    Norm: "weight width eps kind offset bias",
    Rope: "width theta scaling factor original_context low high truncate attention_factor style short long",
}
# What only an encoder with a decoder has, which is refused as a whole.
_REFUSED: dict[type, str] = {
    Architecture: "reader head_scale",
    Attention: "distance",
    Mixture: "capacity",
}


def planned(model: Model, weights: str) -> MemoryPlan:
    """Memory of the export."""
    load_onnx()
    return export_plan(model)


def write(model: Model, goal: Path, weights: str, bar: Progress) -> None:
    """Write model.onnx, model.onnx.data and config.json into the folder `goal`.

    Raises UserError naming the layer or field that has no form here.
    """
    onnx = load_onnx()
    _refuse_unknown(model.architecture)
    if model.activations not in ACTIVATIONS:  # int8-static: its grids are written beside the graph
        model = dataclasses.replace(model, activations="f32")
    with (goal / DATA_NAME).open("wb") as data:
        graph = Graph(model, data, weights)
        caches = _decoder(graph, model.architecture, bar)
        data.flush()
        os.fsync(data.fileno())
    write_model(goal / NAMES[0], graph.model_proto(*_ends(onnx, model.architecture, caches)))
    found = encodings_of(model.source, graph)
    if found is not None:
        (goal / ENCODINGS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (goal / "config.json").write_text(json.dumps(hub_config(model), indent=2) + "\n", encoding="utf-8")


def _decoder(graph: Graph, architecture: Architecture, bar: Progress) -> list[tuple[int, Attention]]:
    """All nodes; the blocks that have a cache."""
    step = Step(graph)
    hidden = graph.rows(architecture.embedding, graph.reshape("input_ids", -1))
    if architecture.embedding_scale != 1.0:
        hidden = graph.add("Mul", hidden, graph.constant(architecture.embedding_scale))
    if architecture.project_in is not None:
        hidden = graph.linear(hidden, architecture.project_in)
    learned = architecture.positions
    if learned is not None:
        places = graph.reshape("position_ids", -1)
        places = graph.add("Add", places, graph.whole(learned.offset))
        hidden = graph.add("Add", hidden, graph.rows(learned.weight, places))
    caches = []
    for block in architecture.blocks:
        hidden = _block(graph, step, block, hidden)
        if block.attention is not None:
            caches.append((block.index, block.attention))
        bar.advance(len(block.tensors()))
    norm = architecture.final_norm
    normal = hidden if norm is None else graph.norm(hidden, norm)
    if architecture.project_out is not None:
        normal = graph.linear(normal, architecture.project_out)
    logits = graph.linear(normal, architecture.head)
    if architecture.logit_softcap is not None:
        logits = softcap(graph, logits, architecture.logit_softcap)
    shape = graph.add("Concat", step.batch, step.count, graph.whole(architecture.vocabulary), axis=0)
    graph.add("Reshape", logits, shape, out="logits")
    return caches


def _block(graph: Graph, step: Step, block: Block, hidden: str) -> str:
    step.entry = entry = hidden
    for branch in block.branches:
        x = entry if block.parallel else hidden
        if branch.norm is not None:
            x = graph.norm(x, branch.norm)
        layer: Any = branch.layer
        write_layer: Any = LAYERS[layer.kind]
        out = write_layer(graph, step, layer, x, block.index)
        if branch.post_norm is not None:
            out = graph.norm(out, branch.post_norm)
        hidden = graph.add("Add", hidden, out)
        if branch.after_norm is not None:
            hidden = graph.norm(hidden, branch.after_norm)
    return hidden


def _ends(
    onnx: Any, architecture: Architecture, caches: list[tuple[int, Attention]]
) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs with their types and shapes."""
    whole, real = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    value = onnx.helper.make_tensor_value_info
    tokens = ["batch_size", "sequence_length"]
    inputs = [
        value("input_ids", whole, tokens),
        value("attention_mask", whole, ["batch_size", "total_sequence_length"]),
        value("position_ids", whole, tokens),
    ]
    outputs = [value("logits", real, [*tokens, architecture.vocabulary])]
    for index, layer in caches:
        for name in ("key", "value"):
            for ends, label, length in (
                (inputs, "past_key_values", "past_sequence_length"),
                (outputs, "present", "total_sequence_length"),
            ):
                shape = ["batch_size", layer.key_value_heads, length, layer.head_width]
                ends.append(value(f"{label}.{index}.{name}", real, shape))
    return inputs, outputs


def _refuse_unknown(architecture: Architecture) -> None:
    """Raises UserError for a kind of layer, or a field of a record, that would be left out."""
    for block in architecture.blocks:
        for branch in block.branches:
            layer: Any = branch.layer
            if layer.kind not in LAYERS:
                raise UserError(
                    f"block {block.index} of this {architecture.family} has a layer of the kind "
                    f"{layer.kind!r}, which has no form in ONNX here (allowed {', '.join(LAYERS)}).",
                    field="layer",
                    given=layer.kind,
                )
    waiting: list[Any] = [architecture]
    while waiting:
        record = waiting.pop()
        if type(record) not in _WRITTEN:
            raise UserError(
                f"this {architecture.family} has a {type(record).__name__}, which has no form in ONNX here.",
                field="architecture",
                given=type(record).__name__,
            )
        written = _WRITTEN[type(record)].split()
        for field in dataclasses.fields(record):
            held = getattr(record, field.name)
            if field.name not in written and held != field.default:
                raise UserError(
                    f"{type(record).__name__}.{field.name}={held!r:.60} of this {architecture.family} has no "
                    "form in ONNX here.",
                    field=field.name,
                    given=str(held)[:60],
                )
            inner = held if isinstance(held, tuple) else (held,)
            waiting += [one for one in inner if dataclasses.is_dataclass(one)]
