"""Networks that `haversack train apply` wrote, for `haversack embed build`: the base with its delta."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from haversack.core.errors import UserError
from haversack.models.graph import Graph


def applied_graph(folder: Path) -> Graph:
    """The graph in a folder, its constants as they were learned; it ends in a classifier of floats.

    Raises UserError for a folder of another kind of network.
    """
    from haversack.train.networks._graph import GraphNetwork
    from haversack.train.networks._open import open_network

    network = open_network(folder)
    if not isinstance(network, GraphNetwork):
        raise UserError(
            f"{folder} holds a network that is no graph of integers; compile a .pkl or .tflite network with "
            "its delta (haversack train apply), or export it to ONNX.",
            field="model",
            given=str(folder),
        )
    constants = {**network.graph.constants, **network.tensors()}
    return replace(network.graph, name=network.name, constants=constants)
