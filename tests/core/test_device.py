import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.device import PRECISIONS, Device, device, device_names
from haversack.core.errors import DamagedFileError, UserError

BUNDLED = (
    "raspberry-pi-zero-2w",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "pixel-6",
    "oneplus-12",
    "iphone-15-pro",
    "jetson-orin-nano",
    "cortex-m4f",
    "cortex-m7",
    "laptop",
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "haversack" / "devices"


def test_exactly_the_bundled_profiles_are_known():
    assert set(device_names()) == set(BUNDLED)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_profile_is_plausible(name):
    profile = device(name)
    assert profile.name == name and profile.title
    assert profile.read_gb_s >= profile.read_gb_s_one_thread
    assert profile.watts_busy > profile.watts_idle
    assert profile.gops["int8"] > profile.gops["f32"]
    assert profile.base_ram_mib < profile.ram_mib
    assert profile.storage_mb_s / 1000 <= profile.read_gb_s
    assert all(
        entry.partition(".")[0] in {f.name for f in dataclasses.fields(Device)} for entry in profile.estimated
    )
    assert (profile.runtime == "c") == name.startswith("cortex")


def test_the_boards_are_ordered_as_everyone_knows():
    zero, four, five = (device(f"raspberry-pi-{board}") for board in ("zero-2w", "4", "5"))
    for figure in ("read_gb_s", "storage_mb_s", "ram_mib"):
        assert getattr(zero, figure) < getattr(four, figure) < getattr(five, figure)
    assert zero.call_us > four.call_us > five.call_us
    assert zero.rate("int8") < four.rate("int8") < five.rate("int8")


def test_a_saved_profile_reads_back_the_same_and_wins(own_folder):
    changed = dataclasses.replace(device("laptop"), title='my "own"\\box\n', cores=2)
    path = changed.save()
    assert path == own_folder / "laptop.toml"
    assert device("laptop") == changed
    assert device(path) == changed
    assert dataclasses.replace(changed, name="box").save("box") and "box" in device_names()


@settings(max_examples=60, deadline=None)
@given(
    title=st.text(st.characters(codec="utf-8"), max_size=20),
    rate=st.floats(1e-9, 1e12),
    gops=st.dictionaries(st.sampled_from(PRECISIONS), st.floats(1e-6, 1e9)).map(
        lambda rates: {"f32": 1.0} | rates
    ),
)
def test_toml_round_trip(title, rate, gops, tmp_path_factory):
    profile = dataclasses.replace(device("laptop"), title=title, read_gb_s=rate, gops=gops, name="box")
    path = tmp_path_factory.mktemp("toml") / "box.toml"
    path.write_text(profile.toml(), encoding="utf-8")
    assert device(path) == profile


def test_a_precision_without_its_own_rate_runs_at_the_f32_rate():
    assert device("cortex-m7").rate("bf16") == device("cortex-m7").rate("f32") == 0.17e9
    with pytest.raises(UserError):
        device("laptop").rate("int3")


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UserError) as caught:
        device("raspbery-pi-zero2w")
    assert caught.value.nearest == "raspberry-pi-zero-2w"
    with pytest.raises(UserError):
        device("../core/devices/laptop")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda text: text.replace("cores = 4", "cores = 0"), "cores"),
        (lambda text: text.replace("cores = 4", 'cores = "4"'), "cores"),
        (lambda text: text.replace("cores = 4\n", ""), "cores"),
        (lambda text: text.replace("read_gb_s = 40.0", "read_gb_s = nan"), "read_gb_s"),
        (lambda text: text.replace("read_gb_s = 40.0", "read_gb_s = -1"), "read_gb_s"),
        (lambda text: text.replace('runtime = "python"', 'runtime = "perl"'), "runtime"),
        (lambda text: text.replace("f32 = 330.0", "f31 = 330.0"), "gops"),
        (lambda text: text.replace("f32 = 330.0\n", ""), "gops"),
        (lambda text: text.replace("call_us", "call_ms"), "call_ms"),
        (lambda text: text + "\x00", "device"),
        (lambda text: "a = [" + "[" * 5000, "device"),
        (lambda text: "#" * 70000, "device"),
    ],
)
def test_a_damaged_profile_is_refused_by_field(tmp_path, change, field):
    path = tmp_path / "bad.toml"
    path.write_text(change(device("laptop").toml()))
    with pytest.raises(DamagedFileError) as caught:
        device(path)
    assert caught.value.field == field


def test_a_profile_name_that_could_leave_the_folder_is_refused():
    with pytest.raises(UserError) as caught:
        device("laptop").save("../Evil")
    assert caught.value.nearest == "evil"
