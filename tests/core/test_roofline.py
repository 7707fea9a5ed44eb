import dataclasses

import pytest

from haversack.core.device import device
from haversack.core.errors import UserError
from haversack.core.roofline import Cost, bandwidth, bounds, energy_mj, seconds

BOX = dataclasses.replace(
    device("laptop"),
    cores=4,
    read_gb_s=10.0,
    read_gb_s_one_thread=4.0,
    storage_mb_s=100.0,
    gops={"f32": 100.0, "int8": 400.0},
    call_us=2.0,
    watts_busy=10.0,
    watts_idle=1.0,
)


def test_a_call_takes_the_longer_of_bytes_and_operations_plus_itself():
    assert seconds([Cost("m", 10e9, 1e9)], BOX) == pytest.approx(1 + 2e-6)
    assert seconds([Cost("m", 1e9, 200e9)], BOX) == pytest.approx(2 + 2e-6)
    assert seconds([Cost("m", 1e9, 200e9, "int8")], BOX) == pytest.approx(0.5 + 2e-6)
    assert seconds([Cost("m", 0, 0, calls=1000)], BOX) == pytest.approx(2e-3)
    assert seconds([], BOX) == 0


def test_storage_is_added():
    assert seconds([Cost("m", 10e9, 0, storage_bytes=50e6)], BOX) == pytest.approx(1.5 + 2e-6)


def test_one_thread_has_its_own_bandwidth_and_a_core_s_arithmetic():
    assert [bandwidth(BOX, n) / 1e9 for n in (1, 2, 3, 4, None)] == [4, 8, 10, 10, 10]
    assert seconds([Cost("m", 4e9, 0)], BOX, threads=1) == pytest.approx(1 + 2e-6)
    assert seconds([Cost("m", 0, 100e9)], BOX, threads=1) == pytest.approx(4 + 2e-6)
    assert seconds([Cost("m", 0, 100e9)], BOX, threads=64) == pytest.approx(1 + 2e-6)


def test_huge_pages_have_their_own_bandwidth():
    measured = dataclasses.replace(BOX, read_gb_s_huge=15.0)
    assert [bandwidth(measured, n, huge=True) / 1e9 for n in (1, None)] == pytest.approx([6, 15])
    assert seconds([Cost("m", 15e9, 0, huge=True)], measured) == pytest.approx(1 + 2e-6)
    assert seconds([Cost("m", 15e9, 0)], measured) == pytest.approx(1.5 + 2e-6)
    assert bandwidth(BOX, huge=True) == pytest.approx(1.17 * bandwidth(BOX))


def test_bounds_say_what_to_improve():
    found = bounds(
        [
            Cost("a", 10e9, 0),
            Cost("b", 0, 300e9),
            Cost("c", 1, 1),
            Cost("d", 0, 0, storage_bytes=1e9),
            Cost("c", 1, 1),
        ],
        BOX,
    )
    assert [(bound.kernel, bound.by) for bound in found] == [
        ("d", "storage"),
        ("b", "arithmetic"),
        ("a", "memory"),
        ("c", "calls"),
    ]


def test_impossible_costs_are_refused():
    with pytest.raises(UserError):
        Cost("m", -1, 0)
    with pytest.raises(UserError):
        Cost("m", 1, 0, "int5")


def test_energy_is_busy_and_idle_power():
    assert energy_mj(2, BOX, idle_seconds=3) == 23_000


def test_a_zero_2w_decodes_as_its_memory_allows():
    zero = device("raspberry-pi-zero-2w")
    model = 5e6  # bytes of a 10 M parameter model at 4 bits
    token = [Cost("matmul", model, 4 * model, "int8", calls=1)]
    assert 300 < 1 / seconds(token, zero) < 500
