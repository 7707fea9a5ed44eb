"""Remote decoding over a real socket: the server's plain tokens, by seed, for many devices, after losses."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haversack.core import index
from haversack.core.errors import UserError
from haversack.run import Engine, Limits, Sampler, generate

pytest.importorskip("fastapi")
pytest.importorskip("websockets")

TOKEN = "a-token-of-enough-letters"
PROMPT = "on the other hand and in the end"
COUNT = 48
SAMPLERS = {
    "greedy": Sampler(),
    "drawn": Sampler(temperature=1.0, top_p=0.95, seed=11),
    "penalized": Sampler(temperature=0.8, repetition_penalty=1.3, top_k=40, seed=3),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny: Path, models: Any) -> Path:
    """A draft with the served model's tokenizer: its weights, shaken a little."""
    folder: Path = tmp_path_factory.mktemp("drafts") / "small"
    return models.shaken(tiny, folder)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def verifying(serving: Any, tiny: Path, small: Path) -> Iterator[Any]:
    with serving.serving(tiny, verify=True, draft=small, token=TOKEN, contexts=3) as server:
        yield server


def method(server: Any, text: str = "", token: str = TOKEN) -> Any:
    url = server if isinstance(server, str) else server.verify_url
    given = ",".join(filter(None, (f"server={url}", f"token={token}" if token else "", text)))
    return index.create("run", "decode", f"remote:{given}")


def written(model: Path, decode: Any, sampler: Sampler, **options: Any) -> Any:
    """The finished answer to PROMPT."""
    with Engine.open(model, decode=decode) as engine:
        limits = Limits(options.pop("count", COUNT), end=options.pop("end", ()))
        answer = generate(engine, options.pop("prompt", PROMPT), limits, sampler)
        for _ in answer:
            pass
        return answer


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize(
    "how", ["", "adaptive=none,length=0", "adaptive=none,length=16", "most=3", "adaptive=channel"]
)
def test_the_very_tokens_of_the_server_s_plain_run(
    kind: str, how: str, verifying: Any, tiny: Path, small: Path
) -> None:
    sampler = SAMPLERS[kind]
    plain = written(tiny, "one-by-one", sampler)
    decode = method(verifying, ",".join(filter(None, (how, "log_probabilities=true"))))
    found = written(small, decode, sampler)
    assert found.tokens == plain.tokens and found.text == plain.text
    assert found.log_probabilities == plain.log_probabilities
    stats = found.drafting.stats()
    assert stats["accepted"] + stats["rounds"] == COUNT and stats["unverified"] == 0
    assert stats["drafted"] == sum(stats["lengths"]) and stats["up_bytes"] > 0
    if not how:
        assert stats["accepted"] > 0 and stats["rounds"] < COUNT


def test_by_rejection_it_is_the_same_under_a_seed_and_accepts_more(
    verifying: Any, tiny: Path, small: Path
) -> None:
    decode, accepted = method(verifying, "sampling=rejection,adaptive=none,length=4"), [0, 0]
    for seed in range(4):
        sampler = Sampler(temperature=1.0, seed=seed)
        one, two = (written(small, decode, sampler) for _ in range(2))
        assert one.tokens == two.tokens
        coupled = written(small, method(verifying, "adaptive=none,length=4"), sampler)
        assert coupled.tokens == written(tiny, "one-by-one", sampler).tokens
        for at, answer in enumerate((coupled, one)):
            accepted[at] += answer.drafting.accepted
    assert accepted[1] >= accepted[0]


def test_an_answer_ends_where_the_plain_one_does(verifying: Any, tiny: Path, small: Path) -> None:
    """A token that ends a text, a stop text, and a full context, all of them inside a round of drafts."""
    plain = written(tiny, "one-by-one", Sampler())
    end = plain.tokens[9]
    for options in ({"end": (end,)}, {"count": 7}):
        one = written(tiny, "one-by-one", Sampler(), **options)
        two = written(small, method(verifying, "adaptive=none,length=8"), Sampler(), **options)
        assert (one.tokens, one.stop) == (two.tokens, two.stop)
    long = list(range(1, 257)) * 2
    one = written(tiny, "one-by-one", Sampler(), prompt=long[:505])
    two = written(small, method(verifying, "adaptive=none,length=8"), Sampler(), prompt=long[:505])
    assert one.stop == two.stop == "context" and one.tokens == two.tokens


def test_devices_at_once_keep_apart(verifying: Any, tiny: Path, small: Path) -> None:
    """Two devices and a chat of OpenAI's client share the server's steps; each gets what it would alone."""
    openai = pytest.importorskip("openai")
    prompts = ["the inn on the hill", "another thing in the end"]
    plain = [written(tiny, "one-by-one", Sampler(), prompt=one).tokens for one in prompts]
    found: dict[int, Any] = {}

    def device(at: int) -> None:
        found[at] = [
            written(small, method(verifying), Sampler(), prompt=prompts[at]).tokens for _ in range(3)
        ]

    threads = [threading.Thread(target=device, args=(at,)) for at in range(2)]
    with openai.OpenAI(base_url=f"{verifying.url}/v1", api_key=TOKEN, max_retries=0) as client:
        for thread in threads:
            thread.start()
        texts = [
            client.completions.create(model="tiny", prompt=PROMPT, max_tokens=COUNT, temperature=0)
            for _ in range(3)
        ]
        for thread in threads:
            thread.join()
    assert found == {at: [plain[at]] * 3 for at in range(2)}
    assert len({text.choices[0].text for text in texts}) == 1


def test_slots_are_free_when_answers_are_over(verifying: Any, small: Path, serving: Any) -> None:
    written(small, method(verifying), Sampler())
    serving.until(lambda: verifying.app.batch.state().running == 0 and not verifying.app.verifier.devices)


@pytest.mark.parametrize(
    ("token", "said"), [("", "wants a token"), ("another-token-of-letters", "does not accept the token")]
)
def test_a_token_that_is_missing_or_wrong(verifying: Any, small: Path, token: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        written(small, method(verifying, token=token), Sampler())
    assert caught.value.field == "token"


def test_a_server_without_a_token_cannot_prove_that_it_is_the_one(
    serving: Any, tiny: Path, small: Path
) -> None:
    with serving.serving(tiny, verify=True) as server:
        with pytest.raises(UserError, match="has no token"):
            written(small, method(server), Sampler())
        plain = written(tiny, "one-by-one", Sampler())
        assert written(small, method(server, token=""), Sampler()).tokens == plain.tokens


def test_a_draft_with_another_tokenizer(verifying: Any, tmp_path: Path, models: Any) -> None:
    other = models.write_folder(tmp_path / "other", models.CONFIG, seed=2)
    (other / "tokenizer.json").write_text(models.tokenizer_json("<|another|>"))
    with pytest.raises(UserError, match="another tokenizer"):
        written(other, method(verifying), Sampler())


def test_a_pair_of_two_families_is_refused_by_hash(
    verifying: Any, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from haversack.share._family import Family

    monkeypatch.setattr(verifying.app.verifier, "family", Family("code-1", "ab" * 32))
    with pytest.raises(UserError, match=r"no family and the server's model of code-1 \(abababababab\)"):
        written(small, method(verifying), Sampler())


def test_rejection_needs_the_very_draft(verifying: Any, serving: Any, tiny: Path) -> None:
    sampler = Sampler(temperature=1.0)
    with pytest.raises(UserError, match="not the server's copy"):
        written(tiny, method(verifying, "sampling=rejection"), sampler)
    with (
        serving.serving(tiny, verify=True) as plain,
        pytest.raises(UserError, match="needs the draft model on the server"),
    ):
        written(tiny, method(plain, "sampling=rejection", token=""), sampler)


def test_a_server_that_does_not_verify(server: Any, small: Path) -> None:
    with pytest.raises(UserError, match="verifies no drafts"):
        written(small, method(server.url, token=""), Sampler())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--decode", "remote"], "needs a server"),
        (["--server", "ftp://somewhere"], "is no address"),
        (["--server", "ws://localhost:99999"], "is no address"),
        (["--server", "ws://127.0.0.1:9", "--when-offline", "hope"], "offline=hope is not supported"),
        (["--server", "ws://127.0.0.1:9", "--decode", "tree"], "is for --decode remote"),
        (["--when-offline", "wait"], "is for --decode remote"),
        (["--server", "ws://127.0.0.1:9", "--decode", "remote:timeout_s=0"], "timeout_s=0 is not"),
        (["--server", "ws://127.0.0.1:9", "--decode", "remote:patience_s=0.2"], "no link to"),
        (["--server", "ws://127.0.0.1:9", "--schema", "SCHEMA"], "keeps no JSON schema"),
    ],
)
def test_mistakes_end_with_one_sentence(
    words: list[str], said: str, serving: Any, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "schema").write_text('{"type": "boolean"}')
    words = [str(tmp_path / "schema") if word == "SCHEMA" else word for word in words]
    line = [*serving.COMMAND, "run", str(small), "--prompt", "on", *words, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert said in json.loads(done.stdout)["error"]


def test_the_command_says_what_it_did(verifying: Any, serving: Any, tiny: Path, small: Path) -> None:
    line = [*serving.COMMAND, "run", str(small), "--prompt", PROMPT, "--max-tokens", "24", "--ignore-end"]
    line += ["--server", verifying.verify_url, "--token", TOKEN]
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, timeout=60)
    record = json.loads(done.stdout)
    plain = written(tiny, "one-by-one", Sampler(), count=24)
    assert record["text"] == plain.text and record["remote"]["mode"] == "greedy"
    assert TOKEN not in done.stdout
    assert record["ram_mib"]["measured"] <= record["ram_mib"]["planned"] + 1
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert "of drafts accepted" in done.stderr and TOKEN not in done.stderr


def test_a_missing_extra_is_told_with_its_install_line(small: Path) -> None:
    program = "import sys; sys.modules['websockets'] = None; from haversack.cli import main; sys.exit(main())"
    line = [
        sys.executable,
        "-c",
        program,
        "run",
        str(small),
        "--prompt",
        "on",
        "--server",
        "ws://127.0.0.1:9",
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "pip install 'haversack[remote]'" in done.stderr
    assert done.stderr.count("\n") == 1
