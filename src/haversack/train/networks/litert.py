"""LiteRT networks: int8 files NAME.tflite of convolutions and dense layers.

Source: formats/litert.py reads them with bounds, models/graph/litert.py makes graphs of them.
What is here: the network learns in its own integers, with LiteRT's arithmetic on the way forward; a softmax
at the end is left out, the last layer becomes a float classifier.
Cost: numpy. Limits: files in floats are refused: what range their pictures have is not in the file.
"""

from __future__ import annotations

from pathlib import Path

from haversack.core.errors import UserError
from haversack.formats.litert import is_litert_file
from haversack.train._network import Network


def recognises(path: Path) -> bool:
    """Whether `path` is such a file."""
    return path.is_file() and is_litert_file(path)


def open_network(path: Path, seed: int) -> Network:
    """The network in the file. Raises UserError and DamagedFileError as models/graph/litert.py does, and
    UserError for one in floats."""
    from haversack.models.graph.litert import load_litert
    from haversack.train.networks._graph import GraphNetwork

    graph = load_litert(path)
    if graph.tensors[graph.inputs[0]].quantization is None or not graph.linears():
        raise UserError(
            f"{path} computes in floats, and learning here needs 8-bit integers; give its int8 file.",
            field="model",
            given="f32",
            nearest="int8",
        )
    return GraphNetwork(graph, path.stem)
