"""How a server ends: what runs is finished or told so, what comes is refused, the exit code says why."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from haversack.share._answers import event

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
LONG = {"model": "tiny", "prompt": "on", "max_tokens": 480, "stream": True, "ignore_eos": True}


@contextlib.contextmanager
def stream(serving: Any, port: int, body: Any = LONG) -> Any:
    """A stream under way, and a function that reads it to its end."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        one.sendall(serving.post("/v1/completions", body))
        begun = one.recv(4096)

        def rest() -> list[Any]:
            data = begun
            with contextlib.suppress(OSError):
                while piece := one.recv(65536):
                    data += piece
            lines = [line for line in data.decode().split("\n") if line.startswith("data: ")]
            return [line if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]

        yield rest


def refused(serving: Any, port: int) -> bool:
    with contextlib.suppress(OSError):
        answer = serving.raw(port, serving.post("/v1/completions", {"model": "tiny", "prompt": "a"}), 5)
        return answer.startswith(b"HTTP/1.1 503") and b"stopping" in answer
    return False


def test_sigterm_lets_answers_finish(serving: Any, tiny: Any) -> None:
    with serving.Command(tiny, "--port", "0", "--grace", "30") as command:
        with stream(serving, command.port) as rest:
            command.signal()
            serving.until(lambda: refused(serving, command.port) or command.process.poll() is not None)
            said = rest()
        assert said[-1] == "data: [DONE]" and said[-2]["choices"][0]["finish_reason"] == "length"
        assert command.ended() == 0


def test_who_reads_late_gets_everything(serving: Any, tiny: Any) -> None:
    """All answers end while the server waits to write; none of what they said is lost."""
    with serving.Command(tiny, "--port", "0", "--contexts", "4") as command:
        with stream(serving, command.port, {**LONG, "n": 12}) as rest:
            with openai.OpenAI(base_url=f"{command.record['url']}/v1", api_key="none") as client:
                client.completions.create(model="tiny", prompt="on", max_tokens=2)  # comes behind all of them
            said = rest()
        assert said[-1] == "data: [DONE]"
        ends = [one["choices"][0] for one in said[:-1] if one["choices"][0]["finish_reason"]]
        assert sorted(one["index"] for one in ends) == list(range(12))
        command.signal()
        assert command.ended() == 0


def test_a_stop_in_mid_stream_says_so(serving: Any, tiny: Any) -> None:
    with serving.Command(tiny, "--port", "0", "--grace", "0") as command:
        with stream(serving, command.port) as rest:
            command.signal()
            said = rest()
        assert said[-1] == "data: [DONE]"
        assert said[-2]["error"]["code"] == "stopping" and "before the answer" in said[-2]["error"]["message"]
        assert command.ended() == 0
        assert command.process.stderr.read() == b""


def test_the_official_client_sees_a_stop_as_an_error(serving: Any, tiny: Any) -> None:
    with serving.Command(tiny, "--port", "0", "--grace", "0") as command:
        with openai.OpenAI(base_url=f"{command.record['url']}/v1", api_key="none", max_retries=0) as client:
            chunks = client.completions.create(
                **{key: value for key, value in LONG.items() if key != "ignore_eos"},
                extra_body={"ignore_eos": True},
            )
            next(iter(chunks))
            command.signal()
            with pytest.raises(openai.APIError, match="before the answer was complete"):
                for _ in chunks:
                    pass
        assert command.ended() == 0


def test_ctrl_c_ends_properly_with_130(serving: Any, tiny: Any) -> None:
    with serving.Command(tiny, "--port", "0") as command:
        with stream(serving, command.port) as rest:
            command.signal(signal.SIGINT)
            assert rest()[-2]["choices"][0]["finish_reason"] == "length"
        assert command.ended() == 130
        record = json.loads(command.process.stdout.read())
        assert record["error"].startswith("interrupted")


def test_a_second_signal_does_not_wait(serving: Any, tiny: Any) -> None:
    """So many answers, one after the other, would take longer than the second signal needs, even where a
    probe was let in before the first."""
    with serving.Command(tiny, "--port", "0", "--contexts", "1", "--grace", "1000") as command:
        with stream(serving, command.port, {**LONG, "prompt": ["on"] * 4, "n": 15}) as rest:
            command.signal()
            serving.until(lambda: refused(serving, command.port))
            command.signal(signal.SIGINT)
            said = rest()
        assert said[-1] == "data: [DONE]" and said[-2]["error"]["code"] == "stopping"
        assert command.ended() == 130


def test_two_servers_on_a_port(serving: Any, tiny: Any) -> None:
    with serving.Command(tiny, "--port", "0") as command:
        line = [*serving.COMMAND, "serve", str(tiny), "--port", str(command.port)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "cannot be listened on" in done.stderr and "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1
        command.signal()
        assert command.ended() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["--token", "short"], "at least 16"),
        (["--ram-mib", "50"], "does not fit the budget"),
        (["--context-length", "9999"], "outside 1 to"),
        (["--queue", "0"], "queue"),
        (["--attention", "none"], "attention"),
        (["--host", "no.such.host.invalid", "--token", "x" * 16], "cannot be listened on"),
    ],
)
def test_mistakes_end_with_one_sentence(serving: Any, tiny: Any, words: list[str], said: str) -> None:
    line = [*serving.COMMAND, "serve", str(tiny), "--port", "0", *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_budget_says_how_many_answers_run_at_once(serving: Any, tiny: Any) -> None:
    line = [*serving.COMMAND, "serve", str(tiny), "--port", "0", "--prefix-mib", "0.5", "--json"]
    done = subprocess.run([*line, "--ram-mib", "10"], capture_output=True, text=True, timeout=60)
    least = json.loads(done.stdout)["nearest"]
    found = []
    for ram_mib in (least, least + 1.2, 400):
        words = ("--ram-mib", str(ram_mib), "--cache-type", "f32", "--prefix-mib", "0.5")
        with serving.Command(tiny, "--port", "0", *words) as command:
            found.append(command.record["contexts"])
            assert command.record["planned_mib"] <= ram_mib
            client = openai.OpenAI(base_url=f"{command.record['url']}/v1", api_key="none")
            with client:
                made = client.completions.create(model="tiny", prompt=["the " * 90] * 12, max_tokens=64)
            assert len(made.choices) == 12
            assert command.status("VmHWM") / 1024 <= command.record["planned_mib"] + 1
            command.signal()
            assert command.ended() == 0
    assert 1 <= found[0] < found[1] < found[2] == 8


def test_a_missing_extra_is_told_with_its_install_line(tiny: Any) -> None:
    program = "import sys; sys.modules['uvicorn'] = None; from haversack.cli import main; sys.exit(main())"
    line = [sys.executable, "-c", program, "serve", str(tiny)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "pip install 'haversack[serve]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_event_is_one_line_for_every_reader() -> None:
    """Some clients end lines at U+0085, U+2028 and U+2029 too; sampled text may hold any of them."""
    text = "a\x85b\u2028c\u2029d\r\ne\u00e9"
    data = event({"text": text})
    assert data.endswith(b"\n\n") and len(data.decode().splitlines()) == 2
    assert json.loads(data[6:]) == {"text": text}
