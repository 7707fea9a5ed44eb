"""From the files that data sets come in to a delta, and from a mesh to its class."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.formats.test_idx import mnist
from tests.formats.test_off import modelnet

from haversack.core.errors import UserError
from haversack.train._predict import answers, open_with_delta
from haversack.train.fit_labels import Rows, Wish, fit_labels
from haversack.train.networks.layered import LayeredNetwork

MAIN = "import sys; from haversack.cli import main; sys.exit(main())"
PLAIN = Wish("all", "backprop", "f32", epochs=2, batch=8, threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))


def test_mnists_files_teach_lenet(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    mnist(data, "train", [n % 10 for n in range(40)], True)
    mnist(data, "t10k", [n % 10 for n in range(10)], True)
    LayeredNetwork("lenet5", tuple("0123456789")).write(tmp_path / "net")
    done = fit_labels(tmp_path / "net", Rows(data), tmp_path / "delta", PLAIN)
    assert done is not None and not done.new_head and done.course.done == 10
    line = [sys.executable, "-c", MAIN, "train", "fit", str(tmp_path / "net"), "--data", str(data)]
    line += ["--parameters", "all", "--gradient", "backprop", "--precision", "f32", "--epochs", "2"]
    ran = subprocess.run([*line, "--json", "-o", str(tmp_path / "d")], capture_output=True, check=True)
    ram_mib = json.loads(ran.stdout)["ram_mib"]
    assert ram_mib["measured"] < ram_mib["planned"] + 2
    assert len(done.examples.learned) == 40 and len(done.examples.held_out) == 10


def test_meshes_teach_pointnet_and_are_told_apart(tmp_path: Path) -> None:
    data = modelnet(tmp_path / "ModelNet2")
    LayeredNetwork("pointnet", ("a", "b")).write(tmp_path / "net")
    done = fit_labels(tmp_path / "net", Rows(data, head="new"), tmp_path / "delta", PLAIN)
    assert done is not None and done.classes == ("chair", "sofa")
    network = open_with_delta(str(tmp_path / "net"), tmp_path / "delta")
    mesh = data / "sofa" / "test" / "sofa_0002.off"
    (answer,) = answers(network, [str(mesh)], 2)
    assert {name for name, _ in answer.classes} == {"chair", "sofa"}
    assert np.isclose(sum(share for _, share in answer.classes), 1)
    with pytest.raises(UserError, match="cannot be read"):
        answers(network, [str(tmp_path / "none.off")], 2)
