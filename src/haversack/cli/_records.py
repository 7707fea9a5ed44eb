"""What every command prints under `--json`, as records.

`tools/docs.py` makes docs/schemas/ of them, and tests hold what the commands really print against them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from haversack.cli._drafting_record import DraftingRecord, RemoteRecord
from haversack.cli._residency_records import ExpertsRecord, HeadRecord, RestorationRecord
from haversack.cli._room_records import ROOM_OUTPUTS
from haversack.cli._sparsity_records import AttentionRecord, PrefillRecord, SparsityRecord

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0)]


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class BudgetFailure(_Record):
    """A budget field that no plan meets; `needed` is the nearest value that would do."""

    field: str
    limit: float | str
    needed: float | str
    unit: str


class ErrorRecord(_Record):
    """Any command that ends with exit code 1, 2 or 130. `failures`: of a budget that no plan meets."""

    error: str
    field: str | None
    given: Any
    nearest: Any
    failures: list[BudgetFailure] | msgspec.UnsetType = msgspec.UNSET


class Memory(_Record):
    """Peak memory in MiB: planned before, measured at the end."""

    planned: float
    measured: float


class Rates(_Record):
    """Tokens a second: measured on this machine (null when only predicted) and predicted for the device."""

    here: float | None
    device_predicted: float


class CandidateQuality(_Record):
    """Bits per byte of the evaluation text (null when not measured) and its increase over the f32 plan."""

    bits_per_byte: float | None
    loss: float


class CandidateRecord(_Record):
    """One plan that `pack` looked at."""

    plan: dict[str, str]
    source: Literal["predicted", "measured"]
    bits: float
    quality: CandidateQuality
    storage_mib: float
    ram_mib: float
    latency_ms: float
    energy_mj: float
    tokens_per_s: Rates
    fits: bool


class LayerRecord(_Record):
    """What a structure method made of a matrix. `rank`: null where it stayed dense, which `kept` explains;
    `error`: ||W - BA|| / ||W|| as stored; `output_error`: the same of outputs on calibration text."""

    name: str
    shape: tuple[Count, Count]
    rank: Count | None
    nbytes: dict[str, Count]
    error: float | None
    output_error: float | None
    kept: str | None


class LayerBitsRecord(_Record):
    """A layer, the matrices of a block that share an input: its bits in the plan `mixed`, and what the loss
    rises by when it alone has fewer (bits -> bits per byte)."""

    block: Count
    matrices: list[str]
    bits: Count
    nbytes: Count
    sensitivity: dict[str, float]


class PackOutput(_Record):
    """`haversack pack`. `layers`: of a pack with a structure, else none. `sensitivity`: of each layer, where
    it was measured. `advice`: a better plan
    without it, where one is predicted."""

    pack: str
    plan: dict[str, str]
    candidates: list[CandidateRecord]
    layers: list[LayerRecord]
    sensitivity: list[LayerBitsRecord]
    advice: str | None
    seconds: float
    ram_mib: Memory


class BitOperations(_Record):
    """Multiplications times the bits of both factors, floats at 16: in the blocks' matrices, and in all."""

    matrices: float
    all: float


class PackingMemory(_Record):
    """Peak, MiB: by the plan, and seen from outside."""

    planned: float | None
    measured: float | None


class Packing(_Record):
    """What compressing took, in a process of its own."""

    seconds: float | None
    ram_mib: PackingMemory


class MethodRecord(_Record):
    """A method under a setting (w4a16: 4-bit weights, float activations). `measured` is null where `reason`
    says why."""

    setting: str
    plan: dict[str, str]
    measured: CandidateRecord | None
    bit_operations: BitOperations | None
    packing: Packing
    reason: str | None


class ComparedMemory(_Record):
    """Peak of the command itself, MiB."""

    measured: float


class PackCompareOutput(_Record):
    """`haversack pack --compare`. `quality`: what is measured; `pack` and `chosen`: with -o."""

    quality: str
    rows: list[MethodRecord]
    pack: str | None
    chosen: dict[str, str] | None
    interrupted: bool
    ram_mib: ComparedMemory


class LogProbability(_Record):
    """A token of the answer and the natural logarithm of its probability."""

    token: Count
    log_probability: float


class ToolCall(_Record):
    """A function that the model asks to call."""

    name: str
    arguments: dict[str, Any]


class RunOutput(_Record):
    """`haversack run`. `stop`: max-tokens, end-of-text, stop-text, context or offline. `tool_calls`: with
    --tools; `valid`: with --schema, that the answer is complete and satisfies it. `sparsity`: of packs that
    have any. `experts`: with experts that are streamed. `head`: rows of the output matrix, and those
    computed, with --decode sparse-head. `drafting`: with --draft. `remote`: with --server. `attention`: with
    --attention dhsa. `prefill`: with --prefill chunked:shadow."""

    text: str
    tokens: Count
    prompt_tokens: Count
    stop: str
    first_token_ms: float
    tokens_per_s: float
    ram_mib: Memory
    plan: dict[str, Any]
    seed: int
    machine: dict[str, Any]
    log_probabilities: list[LogProbability] | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET
    sparsity: SparsityRecord | msgspec.UnsetType = msgspec.UNSET
    experts: ExpertsRecord | msgspec.UnsetType = msgspec.UNSET
    restoration: RestorationRecord | msgspec.UnsetType = msgspec.UNSET
    head: HeadRecord | msgspec.UnsetType = msgspec.UNSET
    drafting: DraftingRecord | msgspec.UnsetType = msgspec.UNSET
    remote: RemoteRecord | msgspec.UnsetType = msgspec.UNSET
    attention: AttentionRecord | msgspec.UnsetType = msgspec.UNSET
    prefill: PrefillRecord | msgspec.UnsetType = msgspec.UNSET
    valid: bool | msgspec.UnsetType = msgspec.UNSET


class ExportOutput(_Record):
    """`haversack export`. `files`: name -> bytes. `notes`: what is not as it was."""

    output: str
    to: str
    weights: str
    files: dict[str, Count]
    nbytes: Count
    seconds: float
    notes: list[str]
    ram_mib: Memory


class ServeOutput(_Record):
    """`haversack serve`, when it answers. `contexts` answers run at once, `queue` more may wait. `verify`:
    the URL for devices that draft, with --verify."""

    url: str
    model: str
    contexts: Count
    context_length: Count
    prefix_mib: float
    queue: Count
    verify: str | None
    planned_mib: float
    plan: dict[str, Any]


class Score(_Record):
    """A class of a sequence and its score: a probability, or a regression's number."""

    label: str
    score: float


class Fill(_Record):
    """A token that may stand for a mask, as text, and its probability."""

    text: str
    token: Count
    score: float


class TokenLabel(_Record):
    """A token, as the vocabulary writes it, its likeliest label and that label's probability."""

    token: str
    label: str
    score: float


class EncoderResult(_Record):
    """Of one text, what the task gives: `embedding`, the choices for each of its `masks`, its `classes` (best
    first), or the `labels` of its tokens."""

    embedding: list[float] | msgspec.UnsetType = msgspec.UNSET
    masks: list[list[Fill]] | msgspec.UnsetType = msgspec.UNSET
    classes: list[Score] | msgspec.UnsetType = msgspec.UNSET
    labels: list[TokenLabel] | msgspec.UnsetType = msgspec.UNSET


class RunEncoderOutput(_Record):
    """`haversack run` of an encoder"""

    task: Literal["embed", "fill", "classify", "label"]
    results: list[EncoderResult]
    tokens: Count
    ms: Share
    tokens_per_s: Share
    ram_mib: Memory
    plan: dict[str, Any]
    machine: dict[str, Any]


class SpeechSegment(_Record):
    """What is said from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


class RunSpeechOutput(_Record):
    """`haversack run` of a speech model. `seconds` of sound in `windows`; `notes`: what was done to the file;
    `segments`: with --timestamps. `ms` of all the work, `realtime`: seconds of sound a second of it."""

    text: str
    language: str | None
    tokens: Count
    seconds: Share
    windows: Count
    notes: list[str]
    ms: Share
    realtime: Share
    ram_mib: Memory
    plan: dict[str, Any]
    machine: dict[str, Any]
    segments: list[SpeechSegment] | msgspec.UnsetType = msgspec.UNSET


class ParityRecord(_Record):
    """A backend beside the reference: largest difference of the last hidden states, mean cosine; `exact`: it
    computes in f32 and was held to the bar."""

    difference: float
    cosine: float
    exact: bool


class ComparedCell(_Record):
    """One backend at one length and batch; times in ms. `fastest_ms`: mean of all but the slowest tenth."""

    backend: str
    characters: Count
    batch: Count
    padded_tokens: Count
    mean_tokens: float
    first_ms: float
    median_ms: float
    p90_ms: float
    fastest_ms: float
    copy_ms: float
    iterations: Count


class ComparedModel(_Record):
    """A checkpoint in several backends. `skipped`: backend -> why it was not measured; `slopes`: the exponent
    of time over tokens at the largest batch."""

    model: str
    architecture: str
    parameters: Count
    threads: Count
    machine: dict[str, Any]
    parity: dict[str, ParityRecord]
    skipped: dict[str, str]
    cells: list[ComparedCell]
    slopes: dict[str, float]


class CompareOutput(_Record):
    """`haversack compare`"""

    models: list[ComparedModel]


class CheckOutput(_Record):
    """`haversack check`. `authentic`: of a sealed pack, that it is what was sealed (null without the key)."""

    pack: str
    whole: bool
    findings: list[Any]
    authentic: bool | msgspec.UnsetType | None = msgspec.UNSET


class DeviceRecord(_Record):
    """A device profile; `yours`: from your own data folder. Fields: see `haversack devices list --help`."""

    name: str
    title: str
    cores: Count
    isa: str
    ram_mib: float
    storage_mib: float
    read_gb_s: float
    read_gb_s_one_thread: float
    read_gb_s_huge: float
    storage_mb_s: float
    gops: dict[str, float]
    call_us: float
    base_ram_mib: float
    watts_idle: float
    watts_busy: float
    runtime: str
    estimated: list[str]
    source: str
    yours: bool


class DevicesListOutput(_Record):
    """`haversack devices list`"""

    devices: list[DeviceRecord]


class DevicesMeasureOutput(_Record):
    """`haversack devices measure`. `checks`: what the new profile predicts beside what was measured."""

    device: dict[str, Any]
    memory_gb_s: dict[str, Any]
    storage: dict[str, Any]
    checks: list[dict[str, Any]]
    saved: str | None


class Headline(_Record):
    """The paper's own figure, and our stored ratio of ours to the baseline (null without one)."""

    published: str
    ratio: float | None


class SystemRecord(_Record):
    """One of the published systems."""

    number: Annotated[int, msgspec.Meta(ge=1, le=58)]
    slug: str
    title: str
    room: str
    command: str
    state: Literal["absent", "partial", "works"]
    headline: Headline


class SystemsOutput(_Record):
    """`haversack systems`"""

    systems: list[SystemRecord]


class SideRecord(_Record):
    """One side of a row: the median of its measurements, their extremes and their count."""

    name: str
    median: float
    min: float
    max: float
    n: Count


class BarRecord(_Record):
    """What the judged number is held against; for `in` a pair."""

    op: Literal["<=", ">=", "==", "in"]
    value: float | tuple[float, float]


class RowRecord(_Record):
    """One claim of a bench. `ratio` is ours divided by the baseline."""

    id: str
    claim: str
    published: str | float | None
    baseline: SideRecord | None
    ours: SideRecord | None
    ratio: float | None
    unit: str
    judged: Literal["ratio", "ours"]
    bar: BarRecord | None
    holds: bool | None
    source: Literal["measured", "stored", "stale"]
    note: str


class BenchOutput(_Record):
    """`haversack bench`"""

    system: str
    number: int | None
    mode: Literal["quick", "full"]
    machine: dict[str, Any]
    commit: str | None
    seconds: Share
    rows: list[RowRecord]


# Name of the schema -> what it describes.
OUTPUTS: dict[str, type[msgspec.Struct]] = {
    "error": ErrorRecord,
    "pack": PackOutput,
    "pack-compare": PackCompareOutput,
    "run": RunOutput,
    "serve": ServeOutput,
    "run-encoder": RunEncoderOutput,
    "run-speech": RunSpeechOutput,
    "check": CheckOutput,
    "export": ExportOutput,
    "compare": CompareOutput,
    "devices-list": DevicesListOutput,
    "devices-measure": DevicesMeasureOutput,
    **ROOM_OUTPUTS,
    "systems": SystemsOutput,
    "bench": BenchOutput,
}
