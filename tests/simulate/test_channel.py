"""The channel emulator: real sockets, delays and rates as the trace says, outages, cuts; traces as files."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.link import Segment
from haversack.simulate._channel import Channel
from haversack.simulate._traces import KINDS, mixed, read_trace, synthetic, write_trace


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(one: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            while piece := one.recv(65536):
                one.sendall(piece)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = listening.accept()
                threading.Thread(target=answer, args=(one,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listening.getsockname()
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def asked(connection: socket.socket, count: int) -> float:
    """Seconds until `count` bytes have come back."""
    began = time.monotonic()
    threading.Thread(target=connection.sendall, args=(bytes(count),), daemon=True).start()
    left = count
    while left:
        piece = connection.recv(min(left, 65536))
        assert piece
        left -= len(piece)
    return time.monotonic() - began


def test_a_short_message_takes_a_round_trip(echo: tuple[str, int]) -> None:
    with Channel([Segment(1, 100, 60)], echo) as channel, socket.create_connection(channel.address) as one:
        times = [asked(one, 20) for _ in range(5)]
    assert min(times) >= 0.0595 and sorted(times)[2] < 0.5


def test_a_long_message_takes_as_long_as_its_bits(echo: tuple[str, int]) -> None:
    with Channel([Segment(1, 1.0, 10)], echo) as channel, socket.create_connection(channel.address) as one:
        took = asked(one, 50_000)
    assert 0.41 <= took < 5  # 400 kbit up, and down again meanwhile


def test_an_outage_keeps_what_is_sent(echo: tuple[str, int]) -> None:
    trace = [Segment(0.05, 10, 2), Segment(0.5, 0, 2), Segment(60, 10, 2)]
    with Channel(trace, echo) as channel, socket.create_connection(channel.address) as one:
        began = channel._began
        while time.monotonic() < began + 0.1:
            asked(one, 8)
        assert time.monotonic() - began >= 0.55
        assert asked(one, 8) < 2


def test_all_bytes_come_in_order_whatever_is_lost(echo: tuple[str, int]) -> None:
    trace = [Segment(0.02, 50, 8, 0.3), Segment(0.02, 5, 1, 0.0)]
    sent = bytes(range(256)) * 400
    with Channel(trace, echo, seed=3) as channel, socket.create_connection(channel.address) as one:
        threading.Thread(target=one.sendall, args=(sent,), daemon=True).start()
        found = b""
        while len(found) < len(sent):
            found += one.recv(65536)
        assert found == sent
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""  # the end comes through, too
        assert channel.up.lost_packets > 0


def test_a_cut_breaks_connections_and_new_ones_work(echo: tuple[str, int]) -> None:
    with Channel([Segment(1, 100, 1)], echo) as channel:
        with socket.create_connection(channel.address) as one:
            asked(one, 8)
            channel.cut()
            one.settimeout(5)
            with pytest.raises(OSError):
                while True:
                    if not one.recv(1):
                        raise ConnectionResetError
        with socket.create_connection(channel.address) as one:
            asked(one, 8)


def test_nobody_behind_it(echo: tuple[str, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    with Channel([Segment(1, 100, 1)], address) as channel, socket.create_connection(channel.address) as one:
        one.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""


@pytest.mark.parametrize("kind", [*KINDS, "fading"])
def test_synthetic_traces_are_those_of_their_seed(kind: str) -> None:
    one, two, other = (synthetic(kind, 60, seed) for seed in (1, 1, 2))
    assert one == two != other and sum(segment.seconds for segment in one) == 60
    if kind in KINDS:
        mean = sum(segment.mbit_s for segment in synthetic(kind, 4000, 5)) / 8000
        assert mean == pytest.approx(KINDS[kind].rate_bps / 1e6, rel=0.15)


def test_a_mixed_trace_has_all_its_parts() -> None:
    trace = mixed(5, 1, ("5g", "weak"))
    assert trace == synthetic("5g", 5, 1) + synthetic("weak", 5, 2)
    with pytest.raises(UserError, match="did you mean weak"):
        mixed(5, 1, ("week",))


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.integers(0, 10**8), st.integers(0, 3000), st.integers(0, 89)),
        min_size=1,
        max_size=20,
    )
)
def test_traces_come_back_from_their_files(rows: list[tuple[int, ...]]) -> None:
    import tempfile

    if not any(row[1] for row in rows):
        return
    trace = [Segment(float(row[0]), row[1] / 1e6, float(row[2]), row[3] / 100) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        write_trace(Path(folder) / "t.csv", trace)
        found = read_trace(Path(folder) / "t.csv")
    for one, two in zip(trace[:-1], found[:-1], strict=True):
        assert (one.seconds, one.rtt_ms, one.loss) == pytest.approx((two.seconds, two.rtt_ms, two.loss))
        assert one.mbit_s == pytest.approx(two.mbit_s, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("t_s,rate_bps,rtt_s,loss\n", "no rows"),
        ("t_s,rate_bps,rtt_s\n0,0,0.1\n1,0,0.1\n", "nothing ever passes"),
        ("t_s,rate_bps,rtt_s\n0,1000,0.1\n0,1000,0.1\n", "line 2 is no segment"),
        ("t_s,rate_bps,rtt_s\n5,1000,0.1\n1,1000,0.1\n", "line 2 is no segment"),
        ("t_s,rate_bps,rtt_s\n0,-5,0.1\n", "line 2 is no segment"),
        ("t_s,rate_bps,rtt_s,loss\n0,1000,0.1,1.5\n", "line 2 is no segment"),
        ("t_s,rate_bps\n0,1000\n", "line 2 has no"),
        ("t_s,rate_bps,rtt_s\n0,fast,0.1\n", "line 2 has no"),
        ("t_s,rate_bps,rtt_s\n0,nan,0.1\n", "line 2 is no segment"),
    ],
)
def test_what_is_no_trace(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DamagedFileError, match=said):
        read_trace(tmp_path / "t.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
