"""What `haversack sense` and `haversack train cura` print under `--json`, as records."""

from __future__ import annotations

from typing import Annotated

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class BacktestRecord(_Record):
    """A forecaster on the test part: mean errors over windows, steps and channels, these scaled by their
    training part; `parameters` counts a complex number once."""

    name: str
    parameters: int
    mse: float
    mae: float
    windows: int
    seconds: float


class StepRecord(_Record):
    """One forecast step: its time and the value of each channel, in the table's units."""

    time: str
    values: list[float]


class WrittenRecord(_Record):
    """A file that was written."""

    path: str
    nbytes: int


class ForecastFiles(_Record):
    """What was written; null where it was not asked for."""

    pack: WrittenRecord | None
    forecast: WrittenRecord | None
    c: WrittenRecord | None
    plot: WrittenRecord | None


class MeasuredMemory(_Record):
    """Peak memory in MiB."""

    measured: float


class SenseForecastOutput(_Record):
    """`haversack sense forecast`. `split`: rows where training, validation and test end (null with --pack);
    `step` in seconds where the first column holds times; `ridge`: chosen on the validation part."""

    table: str
    rows: int
    channels: list[str]
    step: float
    filled: int
    model: str
    horizon: int
    seq: int
    period: int | None
    parameters: int
    ridge: float | None
    split: list[int] | None
    backtest: list[BacktestRecord]
    forecast: list[StepRecord]
    warnings: list[str]
    files: ForecastFiles
    ram_mib: MeasuredMemory


class PlannedMemory(_Record):
    """Peak memory in MiB: planned before, measured at the end."""

    planned: float
    measured: float


class RunSignalOutput(_Record):
    """`haversack run` of a pack of one file. A forecaster gives `forecast`, the steps behind the table's end,
    one value a column; cura gives `predictions` of its target, one a row (of a forecast, one a step)."""

    pack: str
    model: str
    input: str
    task: str
    rows: int
    columns: list[str]
    filled: int
    forecast: list[StepRecord] | None
    predictions: list[float | str] | None
    parameters: int
    warnings: list[str]
    ram_mib: PlannedMemory


class FigureRecord(_Record):
    """One figure; null with its reason where it cannot be computed."""

    value: float | None
    unit: str
    computable: bool
    reason: str


class AlarmRecord(_Record):
    """A flag: raised where the score is above the cut, null where there is no score."""

    name: str
    raised: bool | None
    score_ms: float | None
    cut_ms: float
    operating_point: str


class BeatRecord(_Record):
    """One beat: its R peak in samples of the recording, its own times; null where it could not be
    measured."""

    sample: int
    rr_ms: float | None
    pr_ms: float | None
    qrs_ms: float | None
    qt_ms: float | None
    qtc_ms: float | None
    quality: float | None


class AverageBeat(_Record):
    """Fiducial points of the average beat in samples of the recording's rate; bounds that were not found and
    stand at a fixed distance."""

    fiducials: dict[str, int | None]
    fallbacks: list[str]


class AxisRecord(_Record):
    """The electrical axis of the heart, from the leads I and III."""

    degrees: float
    word: str


class EcgUpdate(_Record):
    """What a stream said after so many seconds."""

    seconds: float
    pr_ms: float | None
    qrs_ms: float | None
    qt_ms: float | None
    qtc_ms: float | None
    rate_bpm: float | None


class SenseEcgOutput(_Record):
    """`haversack sense ecg`. `variability` has null where the recording is too short, `reasons` says so."""

    file: str
    lead: str
    rate: float
    seconds: float
    qtc_formula: str
    profile: str
    figures: dict[str, FigureRecord]
    forms: dict[str, float | str | None]
    average_beat: AverageBeat
    beats: list[BeatRecord]
    variability: dict[str, float | None]
    reasons: dict[str, str]
    alarms: list[AlarmRecord]
    quality: Share
    amplitude_unit: str
    warnings: list[str]
    notice: str
    axis: AxisRecord | None
    updates: list[EcgUpdate] | None
    plot: WrittenRecord | None
    ram_mib: MeasuredMemory


class CuraCounts(_Record):
    """Every stored number: learned, fixed (means, scales, rarities of words), and bytes as float32."""

    learned: int
    fixed: int
    bytes: int


class CuraRows(_Record):
    """Rows that were learned from and rows of the test part."""

    train: int
    test: int


class CuraFiles(_Record):
    """What was written; null where it was not asked for."""

    pack: WrittenRecord | None
    c: WrittenRecord | None


class TrainCuraOutput(_Record):
    """`haversack train cura`. `test`: the metric on the test part; `naive`: that of no model at all."""

    table: str
    task: str
    target: str
    width: int
    blocks: int
    counts: CuraCounts
    rows: CuraRows
    metric: str
    test: float
    naive: float
    seconds: float
    files: CuraFiles
    ram_mib: MeasuredMemory


class CuraPredictions(_Record):
    """`haversack train cura --predict PACK`: one prediction a row, of a forecast one a step."""

    table: str
    pack: str
    predictions: list[float | str]


# Name of the schema -> what it describes.
SENSE_OUTPUTS: dict[str, type[msgspec.Struct]] = {
    "run-signal": RunSignalOutput,
    "sense-ecg": SenseEcgOutput,
    "sense-forecast": SenseForecastOutput,
    "train-cura": TrainCuraOutput,
    "train-cura-predict": CuraPredictions,
}
