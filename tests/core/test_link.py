import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.link import LINKS, PACKET, Link, Segment, link

STEADY = Segment(1, 8.0, 100.0)  # a million bytes a second


def test_a_message_takes_its_bytes_and_half_a_round_trip():
    steady = Link([STEADY])
    assert steady.transfer(500_000, at=2.0) == steady_delivery(2.0, 2.55)
    assert Link([STEADY]).transfer(0, at=1.0).arrived_at == pytest.approx(1.05)


def steady_delivery(left, arrived):
    from haversack.core.link import Delivery

    return Delivery(left, pytest.approx(arrived), 500_000, 0)


def test_messages_queue_behind_one_another():
    shared = Link([STEADY])
    first, second = shared.transfer(1_000_000, at=0.0), shared.transfer(1_000_000, at=0.5)
    assert (first.arrived_at, second.left_at, second.arrived_at) == pytest.approx((1.05, 1.0, 2.05))


def test_an_outage_is_waited_out_and_the_trace_repeats():
    trace = [Segment(1, 8.0, 0.0), Segment(2, 0.0, 0.0)]
    assert Link(trace).transfer(1_500_000, at=0.0).arrived_at == pytest.approx(3.5)
    assert Link(trace).transfer(10_000_000, at=0.0).arrived_at == pytest.approx(28.0)
    assert Link(trace).transfer(1_000, at=1.5).arrived_at == pytest.approx(3.001)


@settings(max_examples=100, deadline=None)
@given(
    trace=st.lists(
        st.builds(
            Segment,
            st.floats(0.1, 5),
            st.sampled_from([0.0, 0.5, 8.0, 100.0]),
            st.floats(0, 500),
            st.floats(0, 0.3),
        ),
        min_size=1,
        max_size=4,
    ).filter(lambda trace: any(s.mbit_s for s in trace)),
    sizes=st.lists(st.integers(0, 3_000_000), min_size=1, max_size=6),
    seed=st.integers(0, 5),
)
def test_deterministic_in_order_and_never_faster_than_the_link(trace, sizes, seed):
    one, two = Link(trace, seed), Link(trace, seed)
    fastest = max(s.mbit_s for s in trace) * 1e6 / 8
    before = 0.0
    for i, size in enumerate(sizes):
        delivery = one.transfer(size, at=i * 0.1)
        assert delivery == two.transfer(size, at=i * 0.1)
        assert delivery.left_at >= before and delivery.wire_bytes >= size
        assert delivery.arrived_at >= delivery.left_at + size / fastest * (1 - 1e-9)
        assert (delivery.wire_bytes > size) == (delivery.lost_packets > 0 and size > 0)
        before = delivery.left_at
    assert one.wire_bytes >= sum(sizes)


def test_loss_has_its_rate_and_its_price():
    lossy = Link([Segment(1, 8.0, 100.0, 0.1)], seed=1)
    delivery = lossy.transfer(20_000 * PACKET, at=0.0)
    assert 20_000 * 0.1 < delivery.lost_packets < 20_000 * 0.125  # those sent again are lost again
    assert delivery.wire_bytes == pytest.approx(20_000 * PACKET / 0.9, rel=0.02)
    assert delivery.arrived_at > Link([STEADY]).transfer(20_000 * PACKET, at=0.0).arrived_at + 0.3
    assert Link([Segment(1, 8.0, 100.0, 0.1)], seed=2).transfer(20_000 * PACKET, 0.0) != delivery


def test_real_code_waits_in_scaled_time():
    async def both():
        shared = Link([STEADY], scale=0.1)
        started = time.monotonic()
        await asyncio.gather(shared.send(500_000), shared.send(500_000))
        return time.monotonic() - started

    assert 0.1 <= asyncio.run(both()) < 0.6


def test_links_by_name_and_by_file(tmp_path):
    times = {name: link(name).transfer(100_000, 0.0).arrived_at for name in LINKS}
    assert times["ethernet"] < times["wifi"] < times["lte"] < times["3g"] < times["edge"] < times["lora"]
    path = tmp_path / "trace.csv"
    path.write_text("seconds,mbit_s,rtt_ms\n1,8,100\n")
    assert link(path).trace == (STEADY,)
    with pytest.raises(UserError) as caught:
        link("lte4")
    assert caught.value.nearest == "lte"


@pytest.mark.parametrize(
    "text",
    [
        "seconds,mbit_s\n1,8\n",
        "seconds,mbit_s,rtt_ms\n1,fast,3\n",
        "seconds,mbit_s,rtt_ms\n0,8,3\n",
        "seconds,mbit_s,rtt_ms\n1,nan,3\n",
        "seconds,mbit_s,rtt_ms,loss\n1,8,3,0.95\n",
        "seconds,mbit_s,rtt_ms\n1,0,3\n",
        "",
    ],
)
def test_a_trace_that_does_not_hold_is_refused(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(DamagedFileError):
        link(path)


def test_a_link_that_passes_nothing_is_refused():
    with pytest.raises(UserError):
        Link([Segment(1, 0, 10)])
