"""Both halves over real sockets: answers, refusals, late answers, a link at zero, a server that goes away."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.core.ledger import Ledger
from haversack.core.link import Segment
from haversack.share import _split_device
from haversack.share._split_device import SplitDevice, Wire
from haversack.share._split_frame import HEAD_BYTES
from haversack.share._split_halves import SlimEncoder, SplitServer
from haversack.share._split_proxy import ThrottledProxy
from haversack.share._split_serve import split_service
from haversack.share.slimmable import Adaptive, Fixed


def device(made: Any, server: str, mode: tuple[int, int] = (2, 3), **how: Any) -> SplitDevice:
    return SplitDevice(SlimEncoder(made.path), Fixed(mode), server, **how)


def post(service: Any, body: bytes, path: str = "/v1/frames") -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*service._server.server_address[:2], timeout=10)
    connection.request("POST", path, body)
    response = connection.getresponse()
    said = json.loads(response.read())
    connection.close()
    return response.status, said


def test_answers_are_those_of_the_halves_together(detector, served) -> None:
    one = device(detector, served.url, deadline_ms=5000, ledger=(ledger := Ledger()))
    shot = next(one.run([detector.picture]))
    encoder, server = SlimEncoder(detector.path), SplitServer(detector.path)
    encoder.set_mode(2, 3)
    _, wanted = server.decode(encoder.encode(detector.picture))
    assert shot.answer is not None and shot.hit
    assert shot.answer["detections"] == wanted["detections"] and shot.answer["seq"] == 1
    assert shot.nbytes == HEAD_BYTES + 6 * 12 * 12 * 3 // 8 == ledger.total("uplink_bytes")
    assert shot.times.total >= shot.times.encode + shot.times.decode
    state = served.board.state()
    assert (state[0]["k"], state[0]["b"], state[0]["answered"]) == (2, 3, 1)
    one.close()


def test_the_page_and_the_counts(detector, served) -> None:
    one = device(detector, served.url, deadline_ms=5000)
    list(one.run([detector.picture] * 3))
    status, page = one.wire.ask("GET", "/")
    assert status == 200 and b"deadline hits" in page
    _, state = one.wire.ask("GET", "/v1/state")
    told = json.loads(state)["devices"][0]
    assert told["frames"] == 2 and told["hits"] == 2, "a frame tells of those before it"
    _, counts = one.wire.ask("GET", "/metrics")
    assert b'split_frames_total{b="3",k="2"} 3' in counts or b'split_frames_total{k="2",b="3"} 3' in counts
    one.close()


def test_another_model_is_refused_by_both_sides(classifier, detector, served) -> None:
    with pytest.raises(UserError, match="another model"):
        device(classifier, served.url).greet()
    encoder = SlimEncoder(classifier.path)
    status, said = post(served, encoder.encode(classifier.picture))
    assert status == 400 and said["field"] == "model"


def test_another_version_is_refused_by_both_sides(detector, served) -> None:
    data = SlimEncoder(detector.path).encode(detector.picture)
    status, said = post(served, data[:4] + b"\x09" + data[5:])
    assert status == 400 and said["field"] == "version" and said["nearest"] == 1


@pytest.mark.parametrize("body", [b"", b"GET / HTTP", b"\0" * 56, bytes(range(256)) * 8])
def test_hostile_bytes_leave_the_server_standing(detector, served, body: bytes) -> None:
    status, said = post(served, body)
    assert status == 400 and said["error"]
    one = device(detector, served.url, deadline_ms=5000)
    assert next(one.run([detector.picture])).answer is not None
    one.close()


def test_a_body_that_is_too_long(served) -> None:
    with pytest.raises((http.client.HTTPException, OSError, AssertionError)):
        status, _ = post(served, bytes(5 << 20))
        assert status == 200


def test_nobody_answers(detector) -> None:
    with pytest.raises(UserError, match="does not answer"):
        device(detector, "http://127.0.0.1:9", patience_ms=500).greet()
    with pytest.raises(UserError, match="no address"):
        Wire("ftp://x", None, 100)


def test_a_token(detector) -> None:
    service, _ = split_service(SplitServer(detector.path), token="a-token-for-tests-only")
    service.start()
    try:
        with pytest.raises(UserError, match="refuses"):
            device(detector, service.url).greet()
        one = device(detector, service.url, token="a-token-for-tests-only", deadline_ms=5000)
        assert next(one.run([detector.picture])).hit
        one.close()
    finally:
        service.stop(1.0)


def test_the_page_asks_for_the_token_and_holds_nothing(detector) -> None:
    service, _ = split_service(SplitServer(detector.path), token="a-token-for-tests-only")
    service.start()
    try:
        wire = Wire(service.url, None, 5000)
        status, page = wire.ask("GET", "/")
        assert status == 200 and b'id="token"' in page and detector.record.model.encode() not in page
        for method, path in (("GET", "/v1/state"), ("GET", "/v1/model"), ("GET", "/metrics"), ("POST", "/")):
            assert wire.ask(method, path)[0] == 401
        assert wire.ask("GET", "/./v1/state")[0] == 401 and wire.ask("GET", "/?x=/v1/state")[1] == page
        wire.close()
    finally:
        service.stop(1.0)


class Strange:
    """A server that is asked once a connection and answers with the bytes that it is given, slowly if asked
    to."""

    def __init__(self, answer: bytes, every_s: float = 0.0) -> None:
        self.answer, self.every_s = answer, every_s
        self.listens = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listens.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listens.accept()
                with peer, contextlib.suppress(OSError):
                    peer.recv(1 << 16)
                    if self.every_s == 0:
                        peer.sendall(self.answer)
                        continue
                    for at in range(len(self.answer)):
                        peer.sendall(self.answer[at : at + 1])
                        time.sleep(self.every_s)


def said(text: str | bytes, head: str = "") -> bytes:
    body = text.encode() if isinstance(text, str) else text
    return f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        said(bytes(2 << 20)),
        said("[" * 100_000),
        said("{}"),
        said('{"seq": 99, "detections": []}'),
        said("null"),
        said("\xff"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\nx",
        b"SSH-2.0-OpenSSH_9.0\r\n",
        b"",
        b"HTTP/1.1 503 busy\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_an_answer_that_is_none_is_a_lost_frame(detector, answer: bytes) -> None:
    other = Strange(answer)
    one = device(detector, other.url, deadline_ms=100, patience_ms=1000)
    assert one.shoot(detector.picture).answer is None and one.lost == 1
    with pytest.raises(UserError):
        one.greet()
    one.close()
    other.listens.close()


@pytest.mark.parametrize("told", ["1e400", "-5", '"soon"', "null", "[1]", "1e12", "true"])
def test_a_server_whose_clock_disagrees(detector, told: str) -> None:
    """What it says of its own time is believed within what the frame took here."""
    other = Strange(said(f'{{"seq": 1, "detections": [], "decoder_time_ms": {told}}}'))
    one = device(detector, other.url, deadline_ms=5000)
    shot = one.shoot(detector.picture)
    one.close()
    other.listens.close()
    assert shot.hit and 0 <= shot.times.decode <= shot.times.total - shot.times.encode
    assert shot.times.transfer > 0 and np.isfinite(shot.record()["kbs"])


def test_an_answer_that_trickles_is_given_up_in_time(detector) -> None:
    other = Strange(said('{"seq": 1, "detections": []}'), every_s=0.1)
    one = device(detector, other.url, deadline_ms=100, patience_ms=400)
    began = time.monotonic()
    assert one.shoot(detector.picture).answer is None
    assert time.monotonic() - began < 3
    one.close()
    other.listens.close()


def test_a_busy_server_is_no_slow_link(detector, served) -> None:
    """What a frame waits for others is the server's time, not the link's."""
    wait, decode = 0.3, SplitServer.decode

    def slow(self: Any, data: bytes) -> Any:
        time.sleep(wait)
        return decode(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitServer, "decode", slow)
        devices = [device(detector, served.url, deadline_ms=9000) for _ in range(3)]
        shots: list[Any] = []
        threads = [
            threading.Thread(target=lambda one=one: shots.append(one.shoot(detector.picture)))
            for one in devices
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in devices:
            one.close()
    assert max(shot.times.decode for shot in shots) > 2 * 1000 * wait
    assert all(shot.times.transfer < 1000 * wait for shot in shots)


def test_a_late_answer_is_a_miss(detector, served) -> None:
    """At 4 kB/s a frame and its HTTP head take more than the 40 ms that are allowed."""
    host, port = served._server.server_address[:2]
    with ThrottledProxy([Segment(1.0, 0.032, 1.0)], host, port) as link:
        one = device(detector, f"http://127.0.0.1:{link.port}", (1, 4), deadline_ms=40, patience_ms=8000)
        shot = one.shoot(detector.picture)
        one.close()
    assert shot.answer is not None and not shot.hit and one.hits == 0 and one.lost == 0
    assert shot.times.total > 40


def test_the_link_takes_the_time_it_says(detector, served) -> None:
    host, port = served._server.server_address[:2]
    fast, slow = [Segment(1.0, 80.0, 1.0)], [Segment(1.0, 0.08, 1.0)]
    took = []
    for trace in (fast, slow):
        with ThrottledProxy(trace, host, port) as link:
            one = device(detector, f"http://127.0.0.1:{link.port}", (1, 4), deadline_ms=2000)
            one.shoot(detector.picture)
            shot = one.shoot(detector.picture)
            took.append(shot.times.transfer)
            one.close()
            assert link.uplink_bytes >= 2 * shot.nbytes
    wire_ms = (shot.nbytes + 100) / 10  # the frame and an HTTP head of at least 100 bytes at 10 kB/s
    assert took[1] - took[0] > 0.8 * wire_ms


def test_a_link_at_zero_loses_frames_and_the_next_one_goes_on(detector, served) -> None:
    host, port = served._server.server_address[:2]
    trace = [Segment(0.4, 80.0, 1.0), Segment(1.0, 0.0, 1.0), Segment(60.0, 80.0, 1.0)]
    with ThrottledProxy(trace, host, port) as link:
        one = device(detector, f"http://127.0.0.1:{link.port}", deadline_ms=100, patience_ms=300)
        shots = []
        until = time.monotonic() + 8
        while time.monotonic() < until and not (one.lost and shots[-1].hit):
            shots.append(one.shoot(detector.picture))
        one.close()
    assert one.lost >= 1 and shots[-1].hit, "frames are answered again behind the outage"
    lost = [shot for shot in shots if shot.answer is None]
    assert all(not shot.hit and shot.times.total < 1500 for shot in lost)


def test_a_server_that_goes_away_and_comes_back(detector) -> None:
    service, _ = split_service(SplitServer(detector.path))
    service.start()
    port = service._server.server_address[1]
    one = device(detector, service.url, deadline_ms=3000, patience_ms=2000)
    assert one.shoot(detector.picture).hit
    service.stop(1.0)
    one.wire.close()
    assert one.shoot(detector.picture).answer is None and one.lost == 1
    again, _ = split_service(SplitServer(detector.path), port=port)
    again.start()
    try:
        assert one.shoot(detector.picture).hit
    finally:
        one.close()
        again.stop(1.0)


def test_a_controller_at_work(detector, served) -> None:
    table = detector.record.table
    nbytes = {mode: 216 * mode[1] // 2 + HEAD_BYTES for mode in table}
    encoder = SlimEncoder(detector.path)
    one = SplitDevice(encoder, Adaptive(table, nbytes), served.url, deadline_ms=2000)
    shots = list(one.run(itertools.repeat(detector.picture, 12)))
    one.close()
    assert shots[-1].mode == (4, 4), "with two seconds and a wire at hand everything fits"
    record = shots[-1].record()
    assert record["mode"] == 44 and np.isfinite(record["kbs"])


def test_a_device_played_slower_multiplies_no_noise(detector, served, monkeypatch) -> None:
    """Frames take 4 ms to encode here, the sixth 40: the played device takes 15 times 4 for each, since the
    hiccup is this machine's; and 15 times 8 once 8 is what is usual."""
    now = [0.0]
    took = [4.0] * 5 + [40.0] + [8.0] * 12

    class Timed(SlimEncoder):
        def encode(self, *given: Any) -> bytes:
            now[0] += took.pop(0) / 1000
            return super().encode(*given)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(_split_device, "time", SimpleNamespace(sleep=sleep))
    one = SplitDevice(
        Timed(detector.path), Fixed((2, 3)), served.url, deadline_ms=5000, slower=15, clock=lambda: now[0]
    )
    spent = [shot.times.encode for shot in one.run([detector.picture] * 18)]
    one.close()
    assert spent[:6] == pytest.approx([60.0] * 6)
    assert spent[-1] == pytest.approx(120.0)
