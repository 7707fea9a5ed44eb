"""`haversack share`: the command line, its files, its records."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
from tests.share import clouds

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.core.ledger import Ledger
from haversack.share._router_files import load_router

COMMAND = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())"]


def fits(name: str, capsys: pytest.CaptureFixture[str]) -> Any:
    said = capsys.readouterr()
    assert said.err == ""
    return msgspec.json.decode(said.out, type=OUTPUTS[name])


def refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*line, "--json"]) == 2
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert record["error"].count("\n") == 0 and record["field"]
    return record


@pytest.fixture
def outcomes(tmp_path: Path) -> Path:
    path = tmp_path / "outcomes.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "small", "large", "subject"])
        for at in range(120):
            hard = at % 3 == 0
            text = f"prove lemma {at}" if hard else f"name colour {at}"
            rows.writerow([text, str(not hard or at % 30 == 0), str(at % 20 != 1), "math" if hard else "art"])
    return path


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Path]:
    with (
        clouds.server(lambda body: "weak", logs=-1.0) as device,
        clouds.server(lambda body: "strong") as cloud,
    ):
        path = tmp_path / "network.toml"
        path.write_text(
            f'[[node]]\nname = "device"\nurl = "{device.url}"\nconfidence = true\n'
            f'[[node]]\nname = "cloud"\nurl = "{cloud.url}"\ntier = "cloud"\nprice = [1.0, 2.0]\n'
            '[[link]]\nfrom = "device"\nto = "cloud"\nkind = "ethernet"\n'
        )
        yield path


def test_learn_writes_a_router_and_reports_what_it_has_not_seen(
    outcomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = tmp_path / "a.router"
    line = ["share", "learn", str(outcomes), "-o", str(goal), "--form", "classifier"]
    assert main([*line, "--json"]) == 0
    record = fits("share-learn", capsys)
    assert record.weak == "small" and record.file.nbytes == goal.stat().st_size
    assert {one.form for one in record.held_out} == {"classifier", "length"}
    router, threshold, kept = load_router(goal)
    assert router.kind == "query" and threshold == record.threshold and kept["strong"] == "large"
    assert main([*line, "--by", "subject"]) == 0
    assert "gap recovered" in capsys.readouterr().out
    assert (
        main(
            [
                "share",
                "learn",
                str(outcomes),
                "--recalibrate",
                str(goal),
                "--share",
                "0.1",
                "-o",
                str(goal),
                "--json",
            ]
        )
        == 0
    )
    assert fits("share-learn", capsys).threshold == load_router(goal)[1] > threshold


def test_learn_refuses(outcomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["share", "learn"], capsys)["field"] == "outcomes"
    assert refused(["share", "learn", str(tmp_path / "no.csv")], capsys)["field"] == "outcomes"
    assert (
        refused(["share", "learn", str(outcomes), "--form", "clasifier"], capsys)["nearest"] == "classifier"
    )
    assert refused(["share", "learn", str(outcomes), "--share", "2"], capsys)["field"] == "share"
    assert refused(["share", "learn", str(outcomes), "--by", "moon"], capsys)["field"] == "by"
    assert refused(["share", "learn", str(outcomes), "--weak", "smal"], capsys)["nearest"] == "small"
    assert refused(["share", "learn", "--router", "zeus"], capsys)["field"] == "router"


def test_collaborate_answers_lists_and_sweeps(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, tasks = tmp_path / "ledger", tmp_path / "tasks.jsonl"
    line = ["share", "collaborate", str(network)]
    assert main([*line, "who?", "--algorithm", "cascade(tau=0.9)", "--ledger", str(ledger), "--json"]) == 0
    record = fits("share-collaborate", capsys)
    assert record.answer.answer == "strong" and record.runs[0].calls == {"device": 1, "cloud": 1}
    assert Ledger(ledger).total("cost_usd") == pytest.approx(record.answer.cost_usd)
    tasks.write_text('{"prompt": "a", "answer": "weak"}\n\n{"prompt": "b", "answer": "strong"}\n')
    assert main([*line, "--tasks", str(tasks), "--sweep", "tau=0.1,0.9", "--json"]) == 0
    runs = fits("share-collaborate", capsys).runs
    assert [(run.swept, run.calls.get("cloud", 0), run.right) for run in runs] == [
        ("0.1", 0, 0.5),
        ("0.9", 2, 0.5),
    ]
    assert main([*line, "who?", "--cost-usd", "0"]) == 0
    assert "weak" in capsys.readouterr().out
    assert main(["share", "collaborate", "--list", "--json"]) == 0
    assert len(fits("share-collaborate", capsys).algorithms) >= 26
    assert main(["share", "collaborate", "--list"]) == 0


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[[node]]\n", "network"),
        ("node = 3", "network"),
        ("[[", "network"),
        ('[[node]]\nname = "a"\nurl = "x"\n', "url"),
        ('[[node]]\nname = "a"\nurl = "http://h"\nprise = [1.0, 2.0]\n', "network"),
        ('[[node]]\nname = "a"\nurl = "http://h"\nprice = [-1.0, 2.0]\n', "network"),
        ('[[node]]\nname = "a"\nurl = "http://h"\n[[link]]\nfrom = "a"\nto = "b"\nkind = "lte"\n', "node"),
        ('[[node]]\nname = "a"\nurl = "http://h"\n[[link]]\nfrom = "a"\nto = "a"\nkind = "string"\n', "link"),
    ],
)
def test_networks_that_do_not_hold(
    text: str, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "n.toml"
    path.write_text(text)
    assert refused(["share", "collaborate", str(path), "q"], capsys)["field"] == field


def test_collaborate_refuses(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["share", "collaborate", str(network)]
    assert refused(line, capsys)["field"] == "network"
    assert refused([*line, "q", "--algorithm", "cascad"], capsys)["nearest"] == "cascade"
    assert refused([*line, "q", "--algorithm", "vote(nodes=devise)"], capsys)["nearest"] == "device"
    assert refused([*line, "q", "--sweep", "tau"], capsys)["field"] == "sweep"
    assert (
        refused([*line, "q", "--privacy", "local-only", "--algorithm", "cascade(tau=1)"], capsys)["field"]
        == "privacy"
    )
    tasks = tmp_path / "t.jsonl"
    for text in ("", "[]", '{"x": 1}', '{"prompt": 1}', '{"prompt": "a", "colour": 1}', "{"):
        tasks.write_text(text)
        assert refused([*line, "--tasks", str(tasks)], capsys)["field"] == "tasks"


def test_route_serves_until_it_is_told_to_stop_and_leaves_a_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, terms = tmp_path / "ledger", tmp_path / "terms"
    terms.write_text("falcon\n\nFalcon\n")
    with clouds.server(lambda body: "weak") as device, clouds.server(lambda body: clouds.said(body)) as cloud:
        line = [*COMMAND, "share", "route", "--device", device.url, "--cloud", cloud.url, "--price", "1,2"]
        line += [
            "--policy",
            "cloud",
            "--ledger",
            str(ledger),
            "--private",
            str(terms),
            "--port",
            "0",
            "--json",
        ]
        with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = b""
            while not said.rstrip().endswith(b"\n}"):
                said += process.stdout.readline()
            record = msgspec.json.decode(said, type=OUTPUTS["share-route"])
            body = {"messages": [{"role": "user", "content": "is falcon safe?"}]}
            answer = httpx.post(f"{record.url}/v1/chat/completions", json=body, timeout=30).json()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        assert answer["choices"][0]["message"]["content"] == "is falcon safe?"
        assert "falcon" not in json.dumps(cloud.bodies)
    assert main(["share", "ledger", str(ledger), "--json"]) == 0
    read = fits("share-ledger", capsys)
    assert read.answered[0].where == "cloud" and read.answered[0].requests == 1
    assert read.totals.uplink_bytes == read.last[0].uplink_bytes > 0 and "policy cloud" in read.last[0].what
    assert main(["share", "ledger", str(ledger)]) == 0
    assert "all whole" in capsys.readouterr().out
    data = ledger.read_bytes()
    ledger.write_bytes(data.replace(b"uplink_bytes", b"uplink_bytez", 1))
    assert "altered" in refused(["share", "ledger", str(ledger)], capsys)["error"]
    assert refused(["share", "ledger", str(tmp_path / "none")], capsys)["field"] == "ledger"


def test_route_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["share", "route", "--device", "http://127.0.0.1:9"]
    assert refused([*line, "--policy", "rooter"], capsys)["nearest"] == "router"
    assert refused([*line, "--price", "cheap"], capsys)["field"] == "price"
    assert refused([*line, "--cloud", "http://h", "--cost-usd", "1"], capsys)["field"] == "price"
    assert refused([*line, "--privacy", "open"], capsys)["field"] == "privacy"
    assert refused([*line, "--host", "0.0.0.0"], capsys)["field"] == "token"
    assert refused([*line, "--cloud", "h:1"], capsys)["field"] == "url"
    assert refused([*line, "--cloud", "http://h", "--cloud-key-env", "NO_SUCH"], capsys)["field"] == "key_env"
    assert refused([*line, "--router", "/no/such"], capsys)["field"]


def test_a_network_is_served_as_one_model(network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*COMMAND, "share", "collaborate", str(network), "--algorithm", "cascade(tau=0.9)", "--serve", "0"]
    with subprocess.Popen([*line, "--json"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = b""
        while not said.rstrip().endswith(b"\n}"):
            said += process.stdout.readline()
        url = msgspec.json.decode(said, type=OUTPUTS["share-collaborate"]).url + "/v1"
        client = openai.OpenAI(base_url=url, api_key="none")
        assert [model.id for model in client.models.list()] == ["cascade"]
        asked = {"model": "cascade", "messages": [{"role": "user", "content": "who?"}]}
        answer = client.chat.completions.with_raw_response.create(**asked)
        assert answer.headers["x-haversack-calls"] == "device=1, cloud=1"
        assert answer.parse().choices[0].message.content == "strong"
        chunks = client.chat.completions.create(**asked, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "strong"
        for body in ({}, {"messages": []}, {**asked, "tools": [{}]}, {**asked, "max_tokens": 0}, []):
            assert httpx.post(f"{url}/chat/completions", json=body).status_code == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
