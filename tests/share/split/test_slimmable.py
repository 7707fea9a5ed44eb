"""The choice of a mode: the public controller to the number, ours by its properties, and both over links."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.core.link import Segment
from haversack.models.vision.slimmable import payload_bytes
from haversack.share._split_links import Oracle, play, square, walk
from haversack.share.slimmable import (
    Adaptive,
    Fixed,
    Published,
    Slimmable,
    Times,
    deadline_of,
    published,
    published_cost,
)

PI = {
    **{(1, b): value for b, value in enumerate((14.5, 27.7, 32.0, 34.3), 1)},
    **{(2, b): value for b, value in enumerate((16.5, 29.4, 34.1, 36.1), 1)},
    **{(3, b): value for b, value in enumerate((16.4, 29.4, 34.2, 36.4), 1)},
    **{(4, b): value for b, value in enumerate((16.6, 29.7, 34.6, 36.8), 1)},
}
"""mAP of the modes as published."""
BYTES = {mode: payload_bytes(mode[1]) for mode in PI}
PI_MS = {1: 66.0, 2: 134.0, 3: 203.0, 4: 266.0}


def test_the_published_example() -> None:
    """200 kB/s and 300 ms: 24 and 23 do not fit into 240 ms, 14 and 22 do, 14 is chosen."""
    costs = {mode: published_cost(mode, BYTES[mode], 200.0) for mode in PI}
    assert costs[2, 4] == pytest.approx(144 + 138.24)
    assert costs[2, 3] == pytest.approx(138 + 103.68)
    assert costs[1, 4] == pytest.approx(84 + 138.24)
    assert costs[2, 2] == pytest.approx(132 + 69.12)
    assert costs[2, 4] > 240 and costs[2, 3] > 240 > costs[1, 4] > costs[2, 2]
    assert published(200.0, 300.0, PI, BYTES) == (1, 4)
    assert Published(PI, BYTES).choose(300.0) == (1, 4)


def test_the_published_mean_has_four_tenths_of_the_new() -> None:
    controller = Published(PI, BYTES)
    controller.observe(Times((1, 4), 27648, 66.0, 40.0, 66.0 + 40.0 + 276.48))
    assert controller.rate == pytest.approx(0.6 * 200 + 0.4 * 100)
    assert published(1.0, 300.0, PI, BYTES) == (1, 1), "nothing fits"


@given(st.floats(1, 5000), st.floats(5, 3000))
def test_what_is_published_fits_or_is_the_smallest(rate: float, deadline: float) -> None:
    mode = published(rate, deadline, PI, BYTES)
    fits = published_cost(mode, BYTES[mode], rate) < 0.8 * deadline
    assert fits or mode == (1, 1)
    for other in PI:
        if published_cost(other, BYTES[other], rate) < 0.8 * deadline:
            assert PI[other] <= PI[mode]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(5, 3000), st.floats(0, 50)), min_size=1, max_size=12),
    st.floats(60, 1000),
)
def test_ours_takes_the_best_that_it_reckons_in_time(
    seen: list[tuple[float, float]], deadline: float
) -> None:
    controller = Adaptive(PI, BYTES, PI_MS)
    for rate, decode in seen:
        mode = controller.choose(deadline)
        total = PI_MS[mode[0]] + decode + BYTES[mode] / rate
        controller.observe(Times(mode, BYTES[mode], PI_MS[mode[0]], decode, total))
    mode = controller.choose(deadline)
    limit = controller.margin * deadline
    if controller.cost(mode) >= limit:
        assert controller.cost(mode) == min(controller.cost(other) for other in PI)
    else:
        rising = controller.rise / controller.safety + 1
        sure = [other for other in PI if rising * controller.cost(other) < limit]
        assert PI[mode] >= max((PI[other] for other in sure), default=0)


def test_ours_measures_the_encoder_and_charges_decoding() -> None:
    controller = Adaptive(PI, BYTES)
    for _ in range(20):
        controller.observe(Times((2, 1), 6912, 300.0, 80.0, 300.0 + 80.0 + 6.9))
    assert controller.encoding(2) == pytest.approx(300.0)
    assert controller.encoding(4) == pytest.approx(600.0), "in proportion to what was measured"
    assert controller.cost((2, 1)) >= 380
    assert controller.choose(300.0)[0] == 1


def test_one_bad_measurement_does_not_shut_a_width_out() -> None:
    """The first frame of one member took as long as four do: two members say that it cannot last."""
    controller = Adaptive(PI, BYTES)
    controller.observe(Times((1, 1), 6912, 260.0, 2.0, 262.0 + 6.9))
    for _ in range(6):
        controller.observe(Times((2, 1), 6912, 134.0, 2.0, 136.0 + 6.9))
    spread = 2 * controller.spread_ms[2]
    assert controller.encoding(1) == pytest.approx(134.0 + spread)
    assert controller.encoding(4) == pytest.approx(268.0), "in proportion, as long as nothing says otherwise"
    assert controller.choose(100.0) == (1, 1), "nothing fits: the fewest members, and they are measured anew"
    controller.observe(Times((4, 4), 27648, 900.0, 2.0, 902.0 + 27.6))
    assert controller.encoding(4) == pytest.approx(1.1 * (134.0 + spread) * 2)


def test_small_payloads_do_not_raise_the_reckoned_rate() -> None:
    """Rates of payloads under 1 KiB count only while there are no others, but for worse ones."""
    nbytes = {mode: 432 * mode[1] for mode in PI}
    controller = Adaptive(PI, nbytes)
    for _ in range(5):
        controller.observe(Times((1, 4), 1728, 1.0, 0.0, 1.0 + 1728 / 100))
    reckoned = controller.forecast()
    controller.observe(Times((1, 1), 432, 1.0, 0.0, 1.0 + 432 / 5000))
    assert controller.forecast() <= reckoned * 1.01
    controller.observe(Times((1, 1), 432, 1.0, 0.0, 1.0 + 432 / 10))
    assert controller.forecast() < 0.5 * reckoned


def test_a_device_at_the_smallest_mode_finds_back_when_the_link_does() -> None:
    """Payloads under 1 KiB say the rate where there are no others among the last five."""
    nbytes = {mode: 432 * mode[1] for mode in PI}
    controller = Adaptive(PI, nbytes, PI_MS)

    def frames(count: int, rate: float) -> list[tuple[int, int]]:
        taken = []
        for _ in range(count):
            mode = controller.choose(100.0)
            taken.append(mode)
            total = PI_MS[mode[0]] + nbytes[mode] / rate + 2.0
            controller.observe(Times(mode, nbytes[mode], PI_MS[mode[0]], 0.0, total))
        return taken

    assert frames(10, 20.0)[-1] == (1, 1)
    risen = frames(10, 2000.0)
    assert risen[:2] == [(1, 1)] * 2 and risen[-1] == (1, 4), "not at once, but soon"
    assert frames(3, 20.0)[1:] == [(1, 1)] * 2, "one late frame, no more"


def test_sending_is_reckoned_longer_where_rates_differ() -> None:
    even, uneven = Adaptive(PI, BYTES, PI_MS), Adaptive(PI, BYTES, PI_MS)
    for at in range(5):
        for controller, rate in ((even, 100.0), (uneven, 100.0 * 2**at)):
            controller.observe(Times((1, 4), 27648, 66.0, 0.0, 66.0 + 27648 / rate))
    assert even.longer() == pytest.approx(1.05) and uneven.longer() == uneven.safety


def test_a_link_that_dies_leaves_the_quickest_mode() -> None:
    controller = Adaptive(PI, BYTES, PI_MS)
    for _ in range(6):
        controller.observe(Times(controller.choose(300.0), 6912, 66.0, 0.0, 100_000.0))
    assert controller.choose(300.0) == (1, 1)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_deadline_is_a_time(value: float) -> None:
    with pytest.raises(UserError, match="deadline_ms"):
        deadline_of(value)


def test_an_oracle_is_not_beaten_and_a_fixed_link_is_learned() -> None:
    quality = {mode: value / 100 for mode, value in PI.items()}
    nbytes = {mode: 432 * mode[1] for mode in PI}
    encode = PI_MS.__getitem__
    for trace in (square(8.0), walk(60, 3)):
        best = play(Oracle(trace, quality, nbytes, encode), trace, quality, nbytes, encode, 200.0, seconds=40)
        ours = play(Adaptive(quality, nbytes, PI_MS), trace, quality, nbytes, encode, 200.0, seconds=40)
        assert ours.quality <= best.quality + 1e-9
        assert ours.hits > 0.9
    steady = [Segment(1.0, 8.0, 1.0)]
    found = play(Adaptive(quality, nbytes), steady, quality, nbytes, encode, 400.0, seconds=30)
    always = play(Fixed((4, 4)), steady, quality, nbytes, encode, 400.0, seconds=30)
    assert always.hits == 1.0 and max(found.modes, key=found.modes.__getitem__) == (4, 4)


def test_a_walk_stays_within_its_rates_and_repeats_for_its_seed() -> None:
    one, same, other = walk(60, 1), walk(60, 1), walk(60, 2)
    assert one == same and one != other
    assert all(20 - 1e-6 <= each.mbit_s / 8e-3 <= 2000 + 1e-6 for each in one)


def test_its_parameters_are_declared() -> None:
    assert str(Slimmable()) == "slimmable"
    with pytest.raises(UserError, match="members=5"):
        Slimmable(members=5)
