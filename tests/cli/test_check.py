import json

import pytest
import typer
from typer.testing import CliRunner

from haversack.cli import check
from haversack.core.errors import UserError
from haversack.core.pack import PackWriter

app = typer.Typer()
app.command()(check.command)


@pytest.fixture
def pack(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with PackWriter(tmp_path / "a.pack") as writer:
        writer.add_tensor("a", "u8", (3000,), [bytes(3000)])
        writer.add_file("tokenizer.json", b"{}")
        writer.finish({})
    return tmp_path / "a.pack"


def test_a_whole_pack_exits_with_0(pack):
    done = CliRunner().invoke(app, [str(pack)])
    assert done.exit_code == 0 and "is whole" in done.stdout
    done = CliRunner().invoke(app, [str(pack), "--json"])
    assert json.loads(done.stdout) == {"pack": str(pack), "whole": True, "findings": []}


def test_a_damaged_pack_exits_with_2_and_lists_everything(pack):
    (pack / "tokenizer.json").write_bytes(b"[]")
    weights = bytearray((pack / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (pack / "weights.safetensors").write_bytes(weights)
    done = CliRunner().invoke(app, [str(pack)])
    assert done.exit_code == 2 and "2 findings" in done.stdout
    done = CliRunner().invoke(app, [str(pack), "--json"])
    document = json.loads(done.stdout)
    assert done.exit_code == 2 and not document["whole"]
    assert {finding["file"] for finding in document["findings"]} == {"tokenizer.json", "weights.safetensors"}


def test_no_pack_is_a_user_s_mistake(tmp_path):
    done = CliRunner().invoke(app, [str(tmp_path / "none")])
    assert isinstance(done.exception, UserError)
