"""`haversack bench`: the table a person sees, the JSON a program reads, errors in one sentence."""

import json
import subprocess
import sys

from haversack.cli.bench import show

HAVERSACK = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())", "bench"]


def run(*words, cache):
    import os

    return subprocess.run(
        [*HAVERSACK, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "HAVERSACK_CACHE": str(cache)},
    )


def row(**changes):
    side = {"name": "s", "median": 2.0, "min": 1.0, "max": 3.0, "n": 7}
    return {
        "id": "speed", "claim": "c", "published": None, "baseline": side, "ours": side, "ratio": 1.0,
        "unit": "s", "judged": "ratio", "bar": {"op": "<=", "value": 0.5}, "holds": False,
        "source": "measured", "note": "why it fails",
    } | changes  # fmt: skip


def test_a_missed_bar_is_shown_with_its_note_and_counted(capsys):
    rows = [row(), row(id="other", holds=True, bar={"op": "in", "value": [0.5, 2.0]}, note="fine")]
    rows.append(row(id="absent", holds=None, ours=None, baseline=None, ratio=None, note="no peer here"))
    machine = {"cpu": "a processor", "cores": 2, "isa": "avx2"}
    show(
        {
            "system": "x",
            "number": 4,
            "mode": "full",
            "machine": machine,
            "commit": None,
            "seconds": 3,
            "rows": rows,
        }
    )
    said = capsys.readouterr().out
    assert "NO" in said and "ratio <= 0.5" in said and "ratio in 0.5 to 2" in said
    assert "speed: why it fails" in said and "absent: no peer here" in said and "fine" not in said
    assert "1 bars hold, 1 do not, 1 could not be judged" in said


def test_unknown_systems_and_rows_exit_with_two_and_name_the_nearest(tmp_path):
    for words, nearest in ((("engin",), "engine"), (("engine", "--rows", "helpp"), "help")):
        done = run(*words, "--json", cache=tmp_path)
        assert done.returncode == 2, done.stderr
        assert json.loads(done.stdout)["nearest"] == nearest
    done = run("edgemoee", cache=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
