import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from haversack.core._metrics import Metrics
from haversack.core._service import Limits, RateLimit, Response, Service, new_token
from haversack.core.errors import UserError

TOKEN = "a-token-for-tests-only"


@contextlib.contextmanager
def serving(routes=None, **options):
    service = Service(routes or {}, **options)
    service.start()
    try:
        yield service
    finally:
        service.stop(grace_s=5)


def ask(service, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(*service._server.server_address[:2], timeout=10)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response, answer


def raw(service, data, wait=5.0):
    with socket.create_connection(service._server.server_address[:2], timeout=wait) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_routes_json_and_errors():
    routes = {
        ("POST", "/double"): lambda request: Response.of({"twice": request.json()["n"] * 2}),
        ("GET", "/files/*"): lambda request: Response(request.path.encode(), content_type="text/plain"),
        ("GET", "/query"): lambda request: Response.of(dict(request.query)),
        ("GET", "/bug"): lambda request: Response.of(1 / 0),
    }
    with serving(routes) as service:
        response, body = ask(service, "POST", "/double", b'{"n": 21}')
        assert response.status == 200 and json.loads(body) == {"twice": 42}
        assert ask(service, "GET", "/files/a/b")[1] == b"/files/a/b"
        assert json.loads(ask(service, "GET", "/query?a=1&b=%20")[1]) == {"a": "1", "b": " "}
        response, body = ask(service, "POST", "/double", b"{")
        assert response.status == 400 and json.loads(body)["field"] == "body"
        assert ask(service, "POST", "/double", b"[" * 100_000)[0].status == 400
        response, body = ask(service, "GET", "/bug")
        assert response.status == 500 and b"Zero" not in body
        assert ask(service, "GET", "/double")[0].status == 405
        assert ask(service, "GET", "/absent")[0].status == 404
        response, body = ask(service, "HEAD", "/query")
        assert response.status == 200 and body == b"" and int(response.headers["Content-Length"]) == 2
        metrics = ask(service, "GET", "/metrics")[1].decode()
        assert 'haversack_requests_total{status="404"} 1' in metrics
        assert 'haversack_failures_total{kind="ZeroDivisionError"} 1' in metrics
        assert 'haversack_request_seconds_count{route="/files/*"} 1' in metrics


def test_a_token_opens_everything_but_health():
    with serving({("GET", "/a"): lambda request: Response.of(1)}, token=TOKEN) as service:
        assert ask(service, "GET", "/healthz")[0].status == 200
        for path in ("/a", "/metrics", "/absent"):
            assert ask(service, "GET", path)[0].status == 401
            assert ask(service, "GET", path, Authorization=f"Bearer {TOKEN}x")[0].status == 401
            assert ask(service, "GET", path, Authorization=TOKEN)[0].status == 401
        assert ask(service, "GET", "/a", Authorization=f"Bearer {TOKEN}")[0].status == 200


def test_others_are_let_in_only_with_a_good_token():
    with pytest.raises(UserError, match="needs a token"):
        Service({}, host="0.0.0.0")
    with pytest.raises(UserError, match="at least 16"):
        Service({}, host="0.0.0.0", token="short")
    assert len(new_token()) >= 32 and new_token() != new_token()


def test_a_taken_port_is_told():
    with serving() as service, pytest.raises(UserError, match="cannot be listened on"):
        Service({}, port=service._server.server_address[1])


def test_a_body_too_long_is_refused_before_it_is_read():
    with serving({("POST", "/a"): lambda request: Response.of(1)}, limits=Limits(body_bytes=100)) as service:
        assert ask(service, "POST", "/a", b"x" * 100)[0].status == 200
        head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\n"
        assert raw(service, head).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: -1", b"400"),
        (b"Content-Length: 1\r\nContent-Length: 2", b"400"),
        (b"Content-Length: 1_0", b"400"),
        (b"Transfer-Encoding: chunked", b"411"),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"411"),
    ],
)
def test_lengths_that_could_smuggle_a_request_end_the_connection(head, status):
    with serving({("POST", "/a"): lambda request: Response.of(1)}) as service:
        answer = raw(
            service, b"POST /a HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 " + status) and answer.count(b"HTTP/1.1") == 1


def test_a_client_that_sends_nothing_is_let_go():
    with serving({("POST", "/a"): lambda request: Response.of(1)}, limits=Limits(wait_s=0.3)) as service:
        started = time.monotonic()
        assert raw(service, b"POST /a HTTP/1.1\r\nContent-Length: 10\r\n\r\nx") == b""
        assert raw(service, b"GET") == b""
        assert time.monotonic() - started < 4
        assert ask(service, "GET", "/healthz")[0].status == 200


def test_a_client_that_asks_too_often_waits():
    limit = RateLimit(per_second=2, burst=3)
    assert [limit.wait_for("a", 0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert limit.wait_for("b", 0.0) == 0
    assert limit.wait_for("a", 0.5) == 0
    for i in range(20_000):
        limit.wait_for(f"client {i}", 1.0)
    assert len(limit._clients) == 10_000
    with serving(
        {("GET", "/a"): lambda r: Response.of(1)}, limits=Limits(per_second=0.001, burst=2)
    ) as service:
        assert [ask(service, "GET", "/a")[0].status for _ in range(3)] == [200, 200, 429]
        assert ask(service, "GET", "/healthz")[0].status == 200


def test_more_at_once_than_there_are_places_get_503():
    inside, go_on = threading.Semaphore(0), threading.Event()

    def slow(request):
        inside.release()
        go_on.wait(10)
        return Response.of("done")

    with serving({("GET", "/slow"): slow}, limits=Limits(at_once=2)) as service:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(ask(service, "GET", "/slow"))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
            inside.acquire(timeout=10)
        assert ask(service, "GET", "/slow")[0].status == 503
        go_on.set()
        for thread in threads:
            thread.join()
        assert [response.status for response, _ in answers] == [200, 200]
        assert ask(service, "GET", "/slow")[0].status == 200


def test_a_stream_goes_out_piece_by_piece_and_is_closed_when_the_client_leaves():
    closed = threading.Event()
    sent = threading.Event()

    def pieces():
        try:
            yield b"one"
            sent.wait(10)
            while True:
                yield b"x" * 65536
        finally:
            closed.set()

    with serving(
        {("GET", "/stream"): lambda request: Response(pieces(), content_type="text/plain")}
    ) as service:
        connection = http.client.HTTPConnection(*service._server.server_address[:2], timeout=10)
        connection.request("GET", "/stream")
        assert connection.getresponse().read(3) == b"one", "the first piece is here before the second is made"
        connection.close()
        sent.set()
        assert closed.wait(10)


SERVE = """
import sys, threading, time
from haversack.core._service import Response, Service
def slow(request):
    print("inside", flush=True)
    time.sleep(0.5)
    return Response.of("finished")
service = Service({("GET", "/slow"): slow})
print(service.url, flush=True)
service.run(grace_s=5)
print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_progress(number):
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True)
    host, port = process.stdout.readline().strip().removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", "/slow")
    assert process.stdout.readline() == "inside\n"
    process.send_signal(number)
    assert json.loads(connection.getresponse().read()) == "finished"
    assert process.stdout.read() == "stopped\n" and process.wait(10) == 0
    process.stdout.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


def test_metrics_are_text_that_can_be_scraped():
    metrics = Metrics("test")
    metrics.count("bytes_total", "Bytes", 3, path='a"b\n')
    metrics.gauge("depth", "Depth", 2.5)
    metrics.time("seconds", "Time", 0.2)
    text = metrics.text()
    assert 'test_bytes_total{path="a\\"b\\n"} 3\n' in text
    assert "# TYPE test_depth gauge\ntest_depth 2.5\n" in text
    assert 'test_seconds_bucket{le="0.1"} 0\n' in text and 'test_seconds_bucket{le="0.25"} 1\n' in text
    assert (
        'test_seconds_bucket{le="+Inf"} 1\ntest_seconds_sum 0.20000000000000001\ntest_seconds_count 1\n'
        in text
    )
    with pytest.raises(UserError):
        metrics.count("bytes_total", "Bytes", -1)
    with pytest.raises(UserError):
        metrics.gauge("bytes_total", "Bytes", 1)


def test_label_values_of_strangers_do_not_grow_without_end():
    metrics = Metrics()
    for i in range(3000):
        metrics.count("asked_total", "Asked", path=str(i))
    assert metrics.text().count("\n") < 1010 and metrics.value("asked_total", path="other") == 2000


def held():
    return sum(1 for _ in Path("/proc/self/fd").iterdir()), threading.active_count()


def test_no_thread_or_descriptor_is_left_behind():
    before = held()
    for _ in range(3):
        with serving() as service:
            ask(service, "GET", "/healthz")
    Service({}).stop()  # one that never served ends too
    deadline = time.monotonic() + 5
    while held() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held() <= before
