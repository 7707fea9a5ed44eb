"""Pickled weights are refused unread, and the command that the refusal names converts them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from haversack.core.errors import UserError
from haversack.formats.safetensors import HubFolder
from haversack.models._bundled import model_folder

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}


class Bomb:
    """A pickle of this leaves a file behind when anything reads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


NAMES = ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "weights.pt", "last.ckpt", "c.00.pth")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["folder", "file"])
def test_a_pickle_is_never_read(tmp_path: Path, name: str, how: str) -> None:
    mark = tmp_path / "mark"
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    given = folder if how == "folder" else folder / name
    with pytest.raises(UserError, match=r"is a pickle, .* refused; convert it .*python -c") as caught:
        HubFolder.open(model_folder(str(given)))
    assert "\n" not in str(caught.value) and not mark.exists()
    pickle.loads((folder / name).read_bytes())
    assert mark.exists()  # the bomb was live


def follow(error: UserError) -> None:
    """Run the command that the sentence names, up to where the sentence goes on."""
    said = str(error).partition("haversack[workshop]): ")[2].partition(" and give the folder")[0]
    command = said.removesuffix(".").replace("python -c", f"{sys.executable} -c", 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["hub checkpoint", "shards", "file"])
def test_the_named_command_converts(tmp_path: Path, how: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if how == "shards":
        names = sorted(state)
        files = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(names)}
        for file in set(files.values()):
            torch.save({name: state[name] for name in names if files[name] == file}, folder / file)
        index = {"metadata": {}, "weight_map": files}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(state, folder / ("pytorch_model.bin" if how == "hub checkpoint" else "weights.pt"))
    with pytest.raises(UserError) as caught:
        HubFolder.open(model_folder(str(folder / "weights.pt" if how == "file" else folder)))
    follow(caught.value)
    source = HubFolder.open(folder)
    assert set(source.tensors) == set(state)
    for name, value in state.items():
        assert bytes(source.bytes(name)) == value.numpy().tobytes(), name
