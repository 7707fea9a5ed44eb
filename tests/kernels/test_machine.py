import os

import pytest

from haversack.core.errors import HaversackError, UserError
from haversack.core.measurement import machine
from haversack.kernels import _machine, set_threads, threads
from haversack.kernels._native import native

MIB = 2**20


@pytest.fixture(autouse=True)
def needs_native():
    if native() is None:
        pytest.skip("bandwidth is measured by native loops")


@pytest.mark.parametrize("huge", [False, True])
def test_copying_is_never_faster_than_reading_allows(huge):
    read = _machine.bandwidth_gb_s("read", huge, 64 * MIB)
    copied = _machine.bandwidth_gb_s("copy", huge, 64 * MIB)
    assert 0.2 < copied < 1.5 * read < 3000


def test_memory_is_given_back(monkeypatch):
    from haversack.core.memory import _high_water, reset_peak

    reset_peak()
    before = _high_water(os.getpid())
    for _ in range(4):
        _machine.bandwidth_gb_s("copy", False, 32 * MIB, rounds=1)
    assert _high_water(os.getpid()) - before < 70 * MIB


def test_arithmetic_rates_are_those_of_a_processor():
    few, many = _machine.rate_gops("f32"), _machine.rate_gops("int8")
    assert 0.1 < few < 5000 and 0.1 < many < 20000


def test_a_call_costs_less_than_a_millisecond():
    assert 0.05 < _machine.call_us() < 1000


def test_base_memory_is_that_of_an_interpreter_with_its_imports():
    assert 15 < _machine.base_ram_mib() < 150


def test_storage_is_measured_and_the_file_removed(tmp_path):
    found = _machine.measure_storage(tmp_path, size_mib=16)
    assert found["mb_s"] > 1 and found["latency_us"] > 0.1
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="needs a folder"):
        _machine.measure_storage(tmp_path / "absent")
    with pytest.raises(UserError, match="MiB free"):
        _machine.measure_storage(tmp_path, size_mib=10**9)


def test_a_whole_measurement_makes_a_profile_that_reads_back(tmp_path, monkeypatch):
    from haversack.core.device import device

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(_machine, "_fastest", lambda work, budget_s, least=3: (work(), 1e-3)[1])
    before = threads()
    set_threads(1)
    try:
        measured = _machine.measure_machine("this-box", folder=tmp_path, buffer_mib=8)
        assert threads() == 1
    finally:
        set_threads(before)
    measured.device.save()
    assert device("this-box") == measured.device
    assert measured.device.cores == machine()["cores"]
    assert {check.what.partition(" ")[0] for check in measured.checks} == {"f32", "int8", "int4", "int3"}
    assert set(measured.record()) == {"device", "memory_gb_s", "storage", "checks"}


def test_without_native_kernels_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(_machine, "native", lambda: None)
    with pytest.raises(HaversackError, match="native"):
        _machine.measure_machine()
