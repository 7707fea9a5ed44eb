"""The server half behind HTTP, with a page that shows each device's mode, bytes and deadline hits.

POST /v1/frames takes a frame (share/_split_frame.py) and answers JSON; GET /v1/model says what is served; GET
/v1/state is what the page at / shows. With a token the page asks for it; all else needs it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from importlib.resources import files
from typing import Any

from haversack.core._metrics import Metrics
from haversack.core._service import Limits, Request, Response, Service
from haversack.share._split_frame import HEAD_BYTES, VERSION, Frame
from haversack.share._split_halves import SplitServer

LIMITS = Limits(body_bytes=4 * 2**20, at_once=64, per_second=2000.0, burst=4000, wait_s=120.0)
RECENT = 120
DEVICES = 100


class Board:
    """What was seen of each device: its last frames, bytes, hits. Threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._devices: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def saw(self, client: str, frame: Frame, decode_ms: float, nbytes: int) -> None:
        """A frame that was answered."""
        with self._lock:
            one = self._devices.pop(client, None) or {
                "bytes": 0,
                "answered": 0,
                "recent": deque(maxlen=RECENT),
            }
            one["bytes"] += nbytes
            one["answered"] += 1
            one |= {
                "k": frame.k,
                "b": frame.b,
                "decode_ms": decode_ms,
                "deadline_ms": round(frame.fares.deadline_ms, 1),
                "last_ms": round(frame.fares.last_ms, 1),
                "frames": frame.fares.frames,
                "hits": frame.fares.hits,
                "seen": time.time(),
            }
            one["recent"].append([frame.k, frame.b, len(frame.payload), round(frame.fares.last_ms, 1)])
            self._devices[client] = one
            if len(self._devices) > DEVICES:
                self._devices.popitem(last=False)

    def state(self) -> list[dict[str, Any]]:
        """As /v1/state has it, the latest first."""
        with self._lock:
            found = [
                {"device": name, **one, "recent": list(one["recent"])} for name, one in self._devices.items()
            ]
        return found[::-1]


def split_service(
    server: SplitServer, host: str = "127.0.0.1", port: int = 0, token: str | None = None
) -> tuple[Service, Board]:
    """The service, not started. Raises UserError as `Service` does."""
    metrics, board = Metrics(), Board()
    record = server.record
    page = files("haversack.share").joinpath("split.html").read_bytes()
    lock = threading.Lock()

    def frames(request: Request) -> Response:
        began = time.perf_counter()
        with lock:  # one network, one frame at a time
            frame, answer = server.decode(request.body)
        # with what it waited for others: a busy server is no slow link
        answer["decoder_time_ms"] = round(1000 * (time.perf_counter() - began), 3)
        nbytes = len(request.body)
        metrics.count("split_frames_total", "Frames answered", k=str(frame.k), b=str(frame.b))
        metrics.time(
            "split_decode_seconds", "Decoder and the rest of the network", answer["decoder_time_ms"] / 1e3
        )
        board.saw(request.client, frame, answer["decoder_time_ms"], nbytes)
        return Response.of(answer)

    def model(request: Request) -> Response:
        return Response.of(
            {
                "version": VERSION,
                "head_bytes": HEAD_BYTES,
                "model": record.model,
                "task": record.task,
                "classes": record.classes,
                "side": record.side,
                "members": record.members,
                "metric": record.metric,
                "quality": record.quality,
            }
        )

    routes = {
        ("POST", "/v1/frames"): frames,
        ("GET", "/v1/model"): model,
        ("GET", "/v1/state"): lambda request: Response.of(
            {"metric": record.metric, "devices": board.state()}
        ),
        ("GET", "/"): lambda request: Response(page, content_type="text/html; charset=utf-8"),
    }
    service = Service(
        routes, host=host, port=port, token=token, limits=LIMITS, metrics=metrics, open_pages=("/",)
    )
    return service, board
