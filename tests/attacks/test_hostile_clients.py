"""Clients that lie, flood, dawdle and vanish: each is refused or let go, and the next is served."""

from __future__ import annotations

import importlib.util
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")


def load(name: str, file: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


S = load("hostile_serving", "share/serving.py")
MODELS = load("hostile_models", "run/conftest.py")
TOKEN = "a-token-for-tests-only"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return MODELS.write_folder(tmp_path_factory.mktemp("served") / "tiny", MODELS.CONFIG)


@pytest.fixture(scope="module")
def server(tiny: Any) -> Any:
    with S.serving(
        tiny, header_s=0.5, body_s=0.6, write_s=0.5, body_bytes=50_000, connections=12, contexts=2, queue=3
    ) as server:
        yield server


@pytest.fixture
def port(server: Any) -> Any:
    """The server's port; afterwards it still answers, and holds no slot."""
    number = S.port_of(server)
    yield number
    S.until(lambda: state(number)["running"] == 0 and state(number)["waiting"] == 0)
    assert good(number) == 200


def state(port: int) -> Any:
    return S.answered(S.raw(port, b"GET /state HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))[1]


def good(port: int, **fields: Any) -> int:
    body = {"model": "tiny", "prompt": "on", "max_tokens": 2, **fields}
    return S.answered(S.raw(port, S.post("/v1/completions", body)))[0]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[" * 40_000, None),
        (b'{"model":' * 4_000, None),
        (b'{"model": "tiny", "prompt": "a", "max_tokens": 1e999}', None),
        (b'{"model": "tiny", "prompt": "a", "max_tokens": 99999999999999999999999}', None),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', "invalid_json"),
        (b'{"model": "tiny", "prompt": {"a": 1}}', "invalid_type"),
        (b'{"model": "tiny", "prompt": [1.5]}', "invalid_type"),
        (b'{"model": "tiny", "prompt": []}', "invalid_type"),
        (b'{"model": "tiny", "prompt": [[]]}', "invalid_value"),
        (b'{"model": "tiny", "prompt": [-1]}', "invalid_type"),
        (b'{"model": "tiny", "prompt": "a", "stream": "yes"}', "invalid_type"),
        (b'{"model": "tiny", "prompt": "a", "n": true}', "invalid_type"),
        (b'{"model": "tiny", "prompt": "a", "seed": 1.5}', "invalid_type"),
        (b'{"model": "tiny", "prompt": "a", "unheard_of": 1}', "unknown_parameter"),
        (b'{"model": null, "prompt": "a"}', "invalid_type"),
        (b'{"prompt": "a"}', "missing_required_parameter"),
        (b'"just a text"', "invalid_type"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', None),
        (b'{"model": "tiny", "prompt": "a", "stop": "' + b"x" * 2000 + b'"}', "invalid_type"),
    ],
    ids=range(22),
)
def test_bodies_that_are_no_request(port: int, body: bytes, code: str | None) -> None:
    status, said = S.answered(S.raw(port, S.post("/v1/completions", body)))
    assert status == 400 and set(said) == {"error"}
    assert set(said["error"]) == {"message", "type", "param", "code"}
    assert said["error"]["type"] == "invalid_request_error" and said["error"]["message"]
    assert code is None or said["error"]["code"] == code
    assert "Traceback" not in said["error"]["message"]


def test_a_body_too_large(port: int) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    for length in (50_001, 10**15):  # refused before it arrives
        status, said = S.answered(S.raw(port, head % length, 5))
        assert status == 413 and said["error"]["code"] == "body_too_large"
    chunked = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    status, said = S.answered(S.raw(port, chunked + piece * 6, 5))
    assert status == 413


def test_what_is_no_http(port: int) -> None:
    for data in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"\x00" * 100):
        assert S.raw(port, data, 5).startswith((b"HTTP/1.1 400", b"HTTP/1.1 505")) or data[:1] == b"\x16"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    assert S.raw(port, head + b"Content-Length: 6\r\n\r\nhello", 5).count(b"HTTP/1.1") == 1
    smuggled = b"0\r\n\r\nGET /state HTTP/1.1\r\n\r\n"
    assert b"contexts" not in S.raw(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + smuggled, 5)


def test_a_head_without_end(port: int) -> None:
    flood = b"GET /healthz HTTP/1.1\r\n" + b"X-Long: " + b"y" * 70_000
    assert S.raw(port, flood, 5).startswith(b"HTTP/1.1 431")
    started = time.monotonic()
    assert S.raw(port, b"GET /healthz HTTP/1.1\r\nHost: loc", 10).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as drip:
        answer = b""
        for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"z" * 100:
            try:
                drip.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
        while piece := drip.recv(1000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - started < 8


def test_a_body_that_never_comes(port: int) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    status, said = S.answered(S.raw(port, head, 10))
    assert status == 408 and said["error"]["type"] == "timeout"


def test_a_connection_that_is_kept_is_timed_again(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as kept:
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept.recv(1000).startswith(b"HTTP/1.1 200")
        kept.sendall(b"GET /hea")
        said = b""
        while b"HTTP/1.1 408" not in said:  # the first answer's body may come behind its head
            piece = kept.recv(1000)
            assert piece, said
            said += piece


def test_connections_are_bounded(port: int) -> None:
    opened = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(12)]
    try:
        answer = S.raw(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 5)
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after" in answer.lower()
    finally:
        for one in opened:
            one.close()
    S.until(lambda: good(port) == 200)


def test_the_queue_is_bounded(port: int) -> None:
    slow = S.post(
        "/v1/completions",
        {
            "model": "tiny",
            "prompt": "on",
            "max_tokens": 480,
            "ignore_eos": True,
            "n": 1,
            "stream": True,
        },
    )
    opened = []
    for _ in range(5):
        one = socket.create_connection(("127.0.0.1", port), timeout=10)
        one.sendall(slow)
        opened.append(one)
    answers = [S.raw(port, S.post("/v1/completions", {"model": "tiny", "prompt": "on", "n": 6}), 10)]
    status, said = S.answered(answers[0])
    assert status == 429 and said["error"]["code"] == "queue_full"
    assert b"retry-after: 1" in answers[0].lower()
    for one in opened:
        one.close()


def test_clients_that_vanish(port: int) -> None:
    """In mid-stream, before the first byte, and while their prompt is read: the slot is free at once."""
    for stream in (True, False):
        for wait in (0.0, 0.02):
            for _ in range(4):
                body = {"model": "tiny", "prompt": "the " * 100, "max_tokens": 380, "stream": stream}
                with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
                    one.sendall(S.post("/v1/completions", body))
                    time.sleep(wait)
                    if wait and stream:
                        one.recv(10)
            S.until(lambda: state(port)["running"] == 0, 10)


def test_a_client_that_does_not_read(server: Any, port: int) -> None:
    """What it does not take is bounded by its socket's buffers; then it is cut and its answer ends."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.settimeout(20)
        one.connect(("127.0.0.1", port))
        body = {
            "model": "tiny",
            "prompt": "on",
            "max_tokens": 480,
            "n": 3,
            "logprobs": 5,
            "stream": True,
            "ignore_eos": True,
        }
        one.sendall(S.post("/v1/completions", body))
        S.until(lambda: state(port)["running"] > 0 or state(port)["tokens"] > 480)
        S.until(lambda: state(port)["running"] == 0)
        time.sleep(1.2)
        seen = b""
        try:
            while piece := one.recv(65536):
                seen += piece
        except ConnectionResetError:
            pass
        assert b"[DONE]" not in seen


def test_pages_of_other_sites_are_refused(port: int) -> None:
    body = {"model": "tiny", "prompt": "on", "max_tokens": 1}
    for headers in ("Origin: http://evil.example\r\n", "Origin: null\r\n"):
        status, _ = S.answered(S.raw(port, S.post("/v1/completions", body, headers=headers)))
        assert status == 403
    rebound = S.post("/v1/completions", body).replace(b"Host: 127.0.0.1", b"Host: evil.example")
    assert S.answered(S.raw(port, rebound))[0] == 403
    own = S.post("/v1/completions", body, headers="Origin: http://127.0.0.1\r\n")
    assert S.answered(S.raw(port, own))[0] == 200


def test_paths_that_are_none(port: int) -> None:
    for path in ("/v1/../etc/passwd", "/page.html", "//", "/v1/models/%00", "/v1/models/a/b"):
        data = S.raw(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert S.answered(data)[0] == 404, path
    assert S.answered(S.raw(port, S.post("/v1/models", {})))[0] == 405


def test_a_token_opens_everything_but_health_and_the_page(tiny: Any) -> None:
    with S.serving(tiny, token=TOKEN) as server:
        port = S.port_of(server)

        def ask(path: str, said: str) -> int:
            head = f"GET {path} HTTP/1.1\r\nHost: anywhere\r\nConnection: close\r\n{said}\r\n".encode()
            return int(S.raw(port, head).split()[1])

        right = f"Authorization: Bearer {TOKEN}\r\n"
        wrong = ("", f"Authorization: Bearer {TOKEN}x\r\n", f"Authorization: {TOKEN}\r\n",
                 f"Authorization: Basic {TOKEN}\r\n", "Authorization: Bearer \r\n",
                 f"Authorization: Bearer {TOKEN[:-1]}\xe9\r\n")  # fmt: skip
        for path in ("/v1/models", "/metrics", "/state", "/openapi.json", "/nothing"):
            assert all(ask(path, said) == 401 for said in wrong), path
        assert ask("/v1/models", right) == ask("/metrics", right) == ask("/state", right) == 200
        assert ask("/healthz", "") == ask("/", "") == 200
        data = S.raw(port, b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert S.answered(data)[1]["error"]["code"] == "invalid_api_key"
        assert b"www-authenticate: bearer" in data.lower()


def test_metrics_do_not_grow_with_paths(port: int) -> None:
    for number in range(50):
        S.raw(port, f"GET /{number} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    text = S.raw(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").decode()
    assert len([line for line in text.splitlines() if line.startswith("haversack_requests_total")]) < 40
    assert 'haversack_requests_total{route="other",status="404"}' in text
    assert json.dumps(text)
