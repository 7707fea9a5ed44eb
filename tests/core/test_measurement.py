import os

import pytest

from haversack.core.errors import UserError
from haversack.core.measurement import Measurement, Quality, Spread, commit, machine


def test_quality_loss_follows_its_direction():
    assert Quality("loss", 1.1, "lower").loss_against(Quality("loss", 1.0, "lower")) == pytest.approx(0.1)
    assert Quality("accuracy", 0.8, "higher").loss_against(
        Quality("accuracy", 1.0, "higher")
    ) == pytest.approx(0.2)
    assert Quality("loss", 0.0, "lower").loss_against(Quality("loss", 0.0, "lower")) == 0
    with pytest.raises(UserError):
        Quality("loss", 1, "lower").loss_against(Quality("accuracy", 1, "higher"))
    with pytest.raises(UserError):
        Quality("loss", 1, "up")


def test_the_machine_is_what_the_system_says():
    said = machine()
    assert said["cores"] == len(os.sched_getaffinity(0))
    assert said["isa"] in ("avx512", "avx2", "neon", "dotprod", "portable")
    assert said["ram_mib"] > 100 and said["cpu"] and said["python"].startswith("3.")


def test_a_record_leaves_out_what_was_not_measured():
    record = Measurement(memory_mib=12.5, seed=3).record()
    assert record["memory_mib"] == 12.5 and record["seed"] == 3
    assert "energy_mj" not in record and "quality" not in record
    assert record["machine"] == machine() and record.get("commit") == commit()


def test_energy_says_where_it_comes_from():
    with pytest.raises(UserError):
        Measurement(energy_mj=3.0)
    assert Measurement(energy_mj=3.0, energy_source="modelled").record()["energy_source"] == "modelled"


def test_spread_is_the_median_with_its_extremes():
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)
    with pytest.raises(UserError):
        Spread.of([])
