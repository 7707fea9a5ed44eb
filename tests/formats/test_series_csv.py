"""Tables of series: what is read as written, what is filled when asked, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.series_csv import read_series, write_series

ETTH2 = (
    "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n"
    "2016-07-01 00:00:00,41.130001068115234,12.481000900268555,36.535999298095703,9.3549995422363281,"
    "4.4239997863769531,1.3109999895095825,38.6619987487793\n"
    "2016-07-01 01:00:00,37.528999328613281,10.135999679565430,33.936000823974609,7.5320000648498535,"
    "4.4349999427795410,1.2150000333786010,37.12400054931641\n"
    "2016-07-01 02:00:00,37.946998596191406,11.309000015258789,35.330001831054688,9.0070009231567383,"
    "2.1000001430511475,0.0,36.4640007019043\n"
)


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(text)
    return path


def test_the_transformer_tables_format(tmp_path: Path) -> None:
    """ETTh2 has the format of ETTh1: one hour a row, seven channels."""
    found = read_series(table(tmp_path, ETTH2))
    assert found.channels == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert found.values.shape == (3, 7) and found.step == 3600 and found.dated
    assert found.values[1, 6] == pytest.approx(37.12400054931641, abs=0)
    assert found.time_of(3) == "2016-07-01 03:00:00"
    assert read_series(table(tmp_path, ETTH2), channels=["OT"]).values[2, 0] == 36.4640007019043


def test_no_header_and_other_marks(tmp_path: Path) -> None:
    found = read_series(table(tmp_path, "0;1;2\n1;3;4\n2;5;6\n"))
    assert found.channels == ("1", "2") and not found.dated and found.time_of(3) == "3"
    assert (found.values == [[1, 2], [3, 4], [5, 6]]).all()


@given(st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 3), min_size=3, max_size=30), st.integers(1, 90_000))
def test_every_number_comes_back(rows: list[tuple[float, ...]], step: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        lines = ["t,a,b,c", *(f"{at * step}," + ",".join(map(repr, row)) for at, row in enumerate(rows))]
        found = read_series(table(Path(folder), "\n".join(lines)))
    assert found.step == step and (found.values == np.array(rows)).all()


GAPS = "t,a,b\n0,1,5\n1,,5\n3,4,5\n4,nan,5\n5,6,5\n"


def test_gaps_are_filled_only_when_asked(tmp_path: Path) -> None:
    path = table(tmp_path, GAPS)
    with pytest.raises(UserError, match=r"4 numbers, the first in channel a at row 2 .*--impute linear"):
        read_series(path)
    found = read_series(path, impute="linear")
    assert found.values[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert found.filled == 4 and found.warnings == ("the channel b never changes",)
    assert read_series(path, impute="previous").values[:, 0].tolist() == [1, 1, 1, 4, 4, 6]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("t,a\n0,1\n2,2\n1,3\n", "line 4: it is earlier"),
        ("t,a\n0,1\n1,2\n1,3\n", "line 4: it has the time of the row before"),
        ("t,a\n0,1\n1,2\n2.4,3\n3.4,4\n", "line 4: it comes 1.4 after"),
        ("t,a\nmonday,1\ntuesday,2\n", "line 2: 'monday' is no time"),
        ("t,a\n0,1\n1,two\n2,3\n", "line 3: 'two' in the column a is no number"),
        ("t\n0\n1\n", "one column"),
        ("t,a\n0,1\n", "1 rows"),
        ("", "is empty"),
        ("t,a,a\n0,1,2\n1,2,3\n", "names the column a twice"),
        ("t,a\n0,1\n1,2\n2,3\n5000,4\n", "4997 rows are missing"),
        ("t,a,b\n0,1,\n1,2,\n2,3,7\n", "gaps"),
    ],
)
def test_what_is_no_series_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_series(table(tmp_path, text))


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="row 3 has 3 cells"):
        read_series(table(tmp_path, "t,a\n0,1\n1,2,3\n"))
    (tmp_path / "b.csv").write_bytes(b"t,a\n0,\xff\n")
    with pytest.raises(DamagedFileError, match="UTF-8"):
        read_series(tmp_path / "b.csv")
    with pytest.raises(UserError, match="column b holds 1 numbers"):
        read_series(table(tmp_path, "t,a,b\n0,1,\n1,2,\n2,3,7\n"), impute="linear")
    with pytest.raises(UserError, match="cannot be read"):
        read_series(tmp_path / "none.csv")


def test_a_forecast_continues_the_table(tmp_path: Path) -> None:
    series = read_series(table(tmp_path, ETTH2))
    (tmp_path / "f.csv").write_bytes(write_series(tmp_path / "f.csv", series, series.values + 1))
    again = read_series(tmp_path / "f.csv")
    assert again.time_of(0) == "2016-07-01 03:00:00" and again.channels == series.channels
    assert np.allclose(again.values, series.values + 1, rtol=1e-5)


def test_a_decimal_comma_beside_semicolons(tmp_path: Path) -> None:
    found = read_series(table(tmp_path, "time;load MW\n0;5000,25\n1;-3,5\n2;7\n"))
    assert found.channels == ("load MW",) and found.values[:, 0].tolist() == [5000.25, -3.5, 7.0]
    assert read_series(table(tmp_path, "0;1,5\n1;2,5\n2;3,5\n")).values[:, 0].tolist() == [1.5, 2.5, 3.5]
    with pytest.raises(UserError, match="'1,2,3' in the column a is no number"):
        read_series(table(tmp_path, "t;a\n0;1,2,3\n1;2\n"))
    assert read_series(table(tmp_path, "t,a\n0,1\n1,2\n"), text="t,b\n5,7\n6,8\n").channels == ("b",)
