"""Int8 networks of MCUNet's tiny training: files NAME.pkl, which are zip files with plain numbers.

Source: mit-han-lab/tiny-training (algorithm/assets/mcu_models); formats/mcu_pickle.py reads them without
running anything, models/graph/mcu.py makes graphs of them.
What is here: the network learns in its own integers (--precision int8-qas) or stores rounded steps of floats
(f32); the classifier becomes a float layer on what its input stands for.
Cost: numpy. Limits: pictures of the network's own size, three channels.
"""

from __future__ import annotations

from pathlib import Path

from haversack.formats.mcu_pickle import is_mcu_file
from haversack.train._network import Network


def recognises(path: Path) -> bool:
    """Whether `path` is such a file."""
    return is_mcu_file(path)


def open_network(path: Path, seed: int) -> Network:
    """The network in the file. Raises UserError and DamagedFileError as formats/mcu_pickle.py does."""
    from haversack.models.graph.mcu import load_mcu
    from haversack.train.networks._graph import GraphNetwork

    return GraphNetwork(load_mcu(path), path.stem)
