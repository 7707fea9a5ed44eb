"""What a command says under --json: its record, or the record of a refusal."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from haversack.cli import main
from haversack.cli._records import OUTPUTS


def said(
    capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0, schema: str | None = None
) -> Any:
    """The record that the command printed; `schema`: the name of its record in OUTPUTS."""
    capsys.readouterr()
    found = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert found == code and "Traceback" not in out + err, (out, err)
    if schema is not None:
        msgspec.json.decode(out, type=OUTPUTS[schema])
    return json.loads(out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The record of a refusal: exit code 2, one sentence."""
    record = said(capsys, *arguments, code=2)
    assert "\n" not in record["error"]
    return record
