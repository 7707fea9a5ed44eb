"""Hub names: fetched from a stub that answers as the hub does, checked, resumed, refused with a sentence."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.core.index import source_root
from haversack.models._hub import NAME, split_name
from haversack.models._hub_cache import hub_origin

pytest.importorskip("huggingface_hub")
_spec = importlib.util.spec_from_file_location("hub_stub", Path(__file__).with_name("hub_stub.py"))
assert _spec is not None and _spec.loader is not None
stub = importlib.util.module_from_spec(_spec)
sys.modules["hub_stub"] = stub
_spec.loader.exec_module(stub)

ROOT = source_root()
assert ROOT is not None
CODE = ROOT / "src" / "haversack" / "reference_models" / "code"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
FETCH = "import sys; from haversack.models._hub import fetch; print(fetch(sys.argv[1]))"


def checkpoint(folder: Path, **changes: Any) -> dict[str, bytes]:
    """The files of a small random checkpoint with the tokenizer of `code`."""
    from haversack.formats.safetensors import write_safetensors
    from haversack.models import read_architecture

    vocabulary = json.loads((CODE / "config.json").read_text())["vocab_size"]
    config = {**CONFIG, "vocab_size": vocabulary, **changes}
    rng = np.random.default_rng(3)
    tensors = {
        name: (rng.standard_normal(shape, np.float32) / 8).astype(np.float32)
        for name, shape in read_architecture(config).tensors().items()
    }
    folder.mkdir()
    write_safetensors(folder / "w", [(name, "f32", one.shape, one.data) for name, one in tensors.items()])
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": (folder / "w").read_bytes(),
        "tokenizer.json": (CODE / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
        "LICENSE": b"CC0",
        "pytorch_model.bin": b"never fetched" * 1000,
        "modeling_own.py": b"never fetched",
        "vocab.json": b"never fetched",
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return checkpoint(tmp_path_factory.mktemp("hub") / "m")


@pytest.fixture
def hub() -> Iterator[Any]:
    server = stub.Hub()
    yield server
    server.close()


class Client:
    """Commands in processes of their own, with a cache of their own and the stub as the hub."""

    def __init__(self, hub: Any, home: Path) -> None:
        self.cache = home / "hub"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.environment = {
            **kept,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_HUB_ETAG_TIMEOUT": "1",
        }

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def fetch(self, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("-c", FETCH, name, **environment)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def command(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(
            "-c", "import sys; from haversack.cli import main; sys.exit(main())", *words, **environment
        )


@pytest.fixture
def client(hub: Any, tmp_path: Path) -> Client:
    return Client(hub, tmp_path / "home")


def partials(client: Client) -> list[Path]:
    return sorted(client.cache.glob("models--*/blobs/*-partial"))


def test_run_fetches_what_it_needs_and_no_more(hub: Any, client: Client, files: dict[str, bytes]) -> None:
    hub.repositories["owner/tiny"] = stub.Repository(files)
    line = ("run", "owner/tiny", "--prompt", "def f", "--max-tokens", "4", "--json")
    done = client.command(*line, HF_TOKEN=hub.token)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    fetched = {path.rpartition("/")[2] for method, path, _, _ in hub.requests if "/resolve/" in path}
    assert fetched == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "LICENSE",
    }
    storage = [token for _, path, _, token in hub.requests if path.startswith("/storage/")]
    assert storage and storage == [None] * len(storage)  # the token goes to the hub alone
    assert {token for _, path, _, token in hub.requests if "/resolve/" in path} == {f"Bearer {hub.token}"}

    hub.requests.clear()
    again = json.loads(client.command(*line).stdout)
    assert again["text"] == said["text"]
    assert [path for _, path, _, _ in hub.requests if "api" not in path] == []

    hub.status = 503  # the hub is down, then unreachable, then not asked
    for environment, told in (({}, True), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, True)):
        offline = client.command(*line, **environment)
        assert json.loads(offline.stdout)["text"] == said["text"], offline.stderr
        assert ("using owner/tiny from the cache" in offline.stderr) == told
    hub.requests.clear()
    pinned = ("run", f"owner/tiny@{hub.repositories['owner/tiny'].commit}", *line[2:])
    for done in (client.command(*line, HF_HUB_OFFLINE="1"), client.command(*pinned)):
        again = json.loads(done.stdout)
        assert again["text"] == said["text"] and not hub.requests
        assert again["ram_mib"]["measured"] < said["ram_mib"]["measured"] - 10  # the library stays out
    assert said["ram_mib"]["measured"] <= said["ram_mib"]["planned"]


def test_a_revision_is_recorded_in_the_pack(
    hub: Any, client: Client, files: dict[str, bytes], tmp_path: Path
) -> None:
    repository = hub.repositories["owner/tiny"] = stub.Repository(files)
    goal = tmp_path / "tiny.pack"
    words = ("--device", "laptop", "--precision", "keep:kind=f16", "--effort", "0", "-o", str(goal))
    done = client.command("pack", f"owner/tiny@{repository.commit}", *words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    from haversack.core.pack import Pack, check_pack

    pack = Pack.open(goal)
    assert pack.record.provenance["hub"] == "owner/tiny"
    assert pack.record.provenance["revision"] == repository.commit
    assert not check_pack(goal)
    assert json.loads(pack.read_file("tokenizer_config.json"))["chat_template"] == "{{ messages }}"


def test_a_killed_download_goes_on_where_it_stopped(hub: Any, client: Client, tmp_path: Path) -> None:
    files = checkpoint(tmp_path / "big", hidden_size=512, intermediate_size=3072, num_attention_heads=8)
    weights = files["model.safetensors"]
    assert len(weights) > 24 * 2**20
    hub.repositories["owner/big"] = stub.Repository(files)
    hub.stop_after["model.safetensors"] = 21 * 2**20
    process = client.start("-c", FETCH, "owner/big")
    assert hub.sent.wait(60)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size >= 20 * 10**6 for path in partials(client)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (partial,) = partials(client)
    have = partial.stat().st_size
    assert partial.read_bytes() == weights[:have]
    assert not list(client.cache.glob("models--*/snapshots/*/config.json"))

    hub.stop_after.clear()
    hub.requests.clear()
    done = client.fetch("owner/big")
    assert done.returncode == 0, done.stderr
    ranges = [asked for _, path, asked, _ in hub.requests if path.startswith("/storage/owner/big/model")]
    assert ranges == [f"bytes={have}-"]
    folder = Path(done.stdout.strip())
    assert (folder / "model.safetensors").read_bytes() == weights and not partials(client)
    assert hub_origin(folder) == {"hub": "owner/big", "revision": folder.name}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_byte_is_found_and_removed(
    hub: Any, client: Client, files: dict[str, bytes], name: str
) -> None:
    hub.repositories["owner/tiny"] = stub.Repository(files)
    middle = len(files[name]) // 2
    altered = bytearray(files[name])
    altered[middle] ^= 1
    hub.serve[name] = bytes(altered)
    done = client.command("run", "owner/tiny", "--prompt", "a", "--json")
    assert done.returncode == 2
    said = json.loads(done.stdout)["error"]
    assert name in said and "removed" in said and ("SHA-256" if "model" in name else "git hash") in said
    assert not partials(client) and not list(client.cache.glob(f"models--*/snapshots/*/{name}"))
    hub.serve.clear()
    assert client.fetch("owner/tiny").returncode == 0


def test_a_stalling_hub_is_given_up(hub: Any, client: Client, files: dict[str, bytes]) -> None:
    """The hub library asks again five times; what came until then stays for the next run."""
    hub.repositories["owner/tiny"] = stub.Repository(files)
    hub.stop_after = dict.fromkeys(files, 1)
    begun = time.monotonic()
    done = client.command("run", "owner/tiny", "--prompt", "a", "--json")
    assert done.returncode == 2 and time.monotonic() - begun < 40
    assert "stopped answering" in json.loads(done.stdout)["error"]


def test_shards_are_those_the_index_names(hub: Any, client: Client, files: dict[str, bytes]) -> None:
    shards = {name: value for name, value in files.items() if name != "model.safetensors"}
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    shards["model.safetensors.index.json"] = json.dumps(index).encode()
    shards |= {"model-1.safetensors": b"one", "model-2.safetensors": b"two", "other.safetensors": b"no"}
    hub.repositories["owner/parts"] = stub.Repository(shards)
    done = client.fetch("owner/parts@main")
    assert done.returncode == 0, done.stderr
    found = {path.name for path in Path(done.stdout.strip()).glob("*.safetensors*")}
    assert found == {"model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"}
    del shards["model-2.safetensors"]
    hub.repositories["owner/less"] = stub.Repository(shards)
    assert "the repository lacks" in client.fetch("owner/less").stderr


def test_refusals_say_what_to_do(hub: Any, client: Client, files: dict[str, bytes]) -> None:
    hub.repositories["owner/private"] = stub.Repository(files, private=True)
    hub.repositories["owner/gated"] = stub.Repository(files, gated=True)
    hub.repositories["owner/tiny"] = stub.Repository(files)
    huge = stub.Repository(files, sizes={"model.safetensors": 1 << 60})
    pickled = {name: data for name, data in files.items() if name != "model.safetensors"}
    hub.repositories |= {"owner/huge": huge, "owner/old": stub.Repository(pickled)}
    hub.repositories["owner/g"] = stub.Repository({"config.json": b"{}", "m.gguf": b"GGUF"})
    assert client.fetch("owner/tiny").returncode == 0
    program = (
        "import sys, json; from haversack.core.errors import UserError; "
        "from haversack.models._bundled import model_folder\n"
        "for name in sys.argv[1:]:\n"
        "    try: model_folder(name); print('fetched')\n"
        "    except UserError as error: print(error)"
    )
    cases = {
        "owner/absent": ["hub has no such model", "HF_TOKEN"],
        "owner/tinny": ["Did you mean owner/tiny"],
        "owner/tiny@v9": ["no such revision"],
        "owner/private": ["private", "HF_TOKEN"],
        "owner/gated": ["is gated", "HF_TOKEN"],
        "owner/huge": ["its disk has", "HF_HOME"],
        "owner/old": ["pytorch_model.bin", "refused"],
        "owner/g": ["m.gguf"],
        "owner/..x": ["is no hub name"],
        "owner/a b": ["is no hub name"],
    }
    done = client.run("-c", program, *cases)
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), done.stderr
    for line, (name, said) in zip(lines, cases.items(), strict=True):
        assert name.partition("@")[0] in line and all(part in line for part in said), line
    with_token = client.run("-c", program, "owner/private", "owner/gated", HF_TOKEN=hub.token)
    assert with_token.stdout.splitlines() == ["fetched", "fetched"], with_token.stderr
    down = client.run("-c", program, "owner/never", HF_ENDPOINT="http://127.0.0.1:9")
    assert "not in the cache" in down.stdout and "does not answer" in down.stdout
    offline = client.run("-c", program, "owner/never", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in offline.stdout


def test_a_full_disk_is_a_sentence(hub: Any, client: Client, files: dict[str, bytes]) -> None:
    """The partial file lies on a device that is always full."""
    hub.repositories["owner/tiny"] = stub.Repository(files)
    blobs = client.cache / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    name = f"{stub.digest(files['model.safetensors'])}.haversack-partial"
    (blobs / name).symlink_to("/dev/full")
    done = client.command("run", "owner/tiny", "--prompt", "a", "--json")
    assert done.returncode == 2 and "the disk is full" in json.loads(done.stdout)["error"], done.stderr


def test_two_that_fetch_at_once_fetch_once(hub: Any, client: Client, files: dict[str, bytes]) -> None:
    hub.repositories["owner/tiny"] = stub.Repository(files)
    both = [client.start("-c", FETCH, "owner/tiny") for _ in range(2)]
    out = [process.communicate(timeout=60)[0] for process in both]
    assert out[0] == out[1] and Path(out[0].strip(), "config.json").is_file()
    large = [path for _, path, _, _ in hub.requests if path.endswith("/model.safetensors")]
    assert len(large) == 2  # the address and the storage behind it, once
    assert not partials(client)


def test_a_hostile_hub_writes_nowhere_else(hub: Any, client: Client, files: dict[str, bytes]) -> None:
    """Names that lead out of the cache are not fetched, and an index cannot point at them."""
    index = {"weight_map": {"a": "../../../evil.safetensors"}}
    shards = {name: data for name, data in files.items() if name != "model.safetensors"}
    shards |= {"model.safetensors.index.json": json.dumps(index).encode(), "/LICENSE": b"x"}
    hub.repositories["owner/evil"] = stub.Repository(shards | {"../../../evil.safetensors": b"x"})
    done = client.fetch("owner/evil")
    assert done.returncode != 0 and "the repository lacks" in done.stderr
    everything = [path.name for path in client.cache.parent.parent.rglob("*")]
    assert "evil.safetensors" not in everything
    assert not [path for _, path, _, _ in hub.requests if "evil.safetensors" in path]


def test_names() -> None:
    assert split_name("a/b") == ("a/b", "main")
    assert split_name("Qwen/Qwen2.5-0.5B@refs/pr/3") == ("Qwen/Qwen2.5-0.5B", "refs/pr/3")
    for name in (
        "a",
        "a/b/c",
        "/a/b",
        "a/b@",
        "a/b@../x",
        "a--b/c",
        "a/b.",
        "é/b",
        "a/b@/x",
        "a/" + "b" * 97,
    ):
        with pytest.raises(UserError, match="no hub name"):
            split_name(name)
    assert NAME.fullmatch("a/b") and hub_origin(Path("/x/y")) == {}
