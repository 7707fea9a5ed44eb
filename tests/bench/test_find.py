"""From a number, a slug or a name to a bench, or to a sentence."""

import pytest

from haversack.bench import bench_names, find_bench
from haversack.bench._find import systems
from haversack.core.errors import UserError


def test_the_named_bench_is_found():
    assert "engine" in bench_names()
    bench = find_bench("engine")
    assert bench.slug == "engine" and bench.number is None


@pytest.mark.parametrize("given", ["59", "0", "edgemoee", "engin"])
def test_unknown_systems_are_a_sentence_with_the_nearest(given):
    with pytest.raises(UserError) as caught:
        find_bench(given)
    assert caught.value.given == given and caught.value.nearest is not None


def test_a_system_without_a_bench_says_its_state():
    absent = [entry for entry in systems().values() if entry["slug"] not in bench_names()]
    for entry in absent[:3]:
        for given in (str(entry["number"]), entry["slug"]):
            with pytest.raises(UserError, match="state is absent"):
                find_bench(given)


def test_every_bench_has_a_quick_row_of_each_kind_it_claims():
    for name in bench_names():
        rows = find_bench(name).rows
        assert {row.kind for row in rows} == {row.kind for row in rows if row.quick}, name
