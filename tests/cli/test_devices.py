import json

import pytest
from typer.testing import CliRunner

from haversack.cli import devices
from haversack.core.device import device
from haversack.core.errors import UserError


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def test_the_list_marks_what_is_estimated_and_what_is_yours():
    device("laptop").save("my-laptop")
    done = CliRunner().invoke(devices.app, ["list"])
    assert done.exit_code == 0
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "~2.2" in rows["raspberry-pi-zero-2w"] and " 22 " in rows["raspberry-pi-zero-2w"]
    assert "(yours)" in rows["my-laptop"]
    done = CliRunner().invoke(devices.app, ["list", "--json"])
    listed = {row["name"]: row for row in json.loads(done.stdout)["devices"]}
    assert listed["my-laptop"]["yours"] and not listed["laptop"]["yours"]
    assert listed["raspberry-pi-5"]["gops"]["int8"] == device("raspberry-pi-5").gops["int8"]


def test_measuring_prints_and_saves(monkeypatch):
    from haversack.kernels import _machine

    quick = _machine.measure_machine
    monkeypatch.setattr(_machine, "_fastest", lambda work, budget_s, least=3: (work(), 1e-3)[1])
    monkeypatch.setattr(
        _machine,
        "measure_machine",
        lambda name, folder, bar: quick(name, folder=folder, buffer_mib=8, bar=bar),
    )
    done = CliRunner().invoke(devices.app, ["measure", "--save", "my-box"])
    assert done.exit_code == 0, done.exception
    assert "read in 4 KiB pages" in done.stdout and "this profile predicts" in done.stdout
    assert "--device my-box" in done.stdout and device("my-box").isa
    done = CliRunner().invoke(devices.app, ["measure", "--json"])
    document = json.loads(done.stdout)
    assert document["saved"] is None and document["device"]["gops"]["f32"] > 0


def test_a_name_that_cannot_be_saved_is_refused_before_measuring():
    done = CliRunner().invoke(devices.app, ["measure", "--save", "My Box"])
    assert isinstance(done.exception, UserError) and done.exception.nearest == "my-box"
