"""GGUF beside llama.cpp: exports open there and are the same model, tokenizers from metadata cut as it cuts,
the same file runs faster here.

Models are the parity cases of every family that GGUF has a name for, with drawn weights; logits are compared
after a prompt. Vocabularies are trained on the held-out text of `code`, one for each way of cutting words;
strings are lines of it and runs of drawn characters of many scripts. Speed is that of one Q4_0 file of
TinyLlama's shape on both sides: ours puts its blocks in order at load, the peer repacks them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row
from haversack.bench._workers import Worker
from haversack.bench.engine._bench import SHRINK_FILES
from haversack.bench.engine._models import code_pack
from haversack.bench.formats._bench import FORMATS_FILES, bench, drawn
from haversack.bench.peers import llama_cpp
from haversack.bench.peers._equal_weights import Shape, token_ids
from haversack.core.memory import MemoryWatch

FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "smollm3"),
    *("gemma", "gemma2", "gemma3_text", "phi", "phi3", "stablelm", "gpt2"),
)
PRES = ("gpt-2", "llama-bpe", "qwen2", "smollm", "default", "tekken", "gpt-4o")
STRINGS = 1000
VOCABULARY = 2000
WATCHED = (*FORMATS_FILES, "bench/peers/*llama_cpp*.py", "bench/peers/_equal_weights.py", "models/*.py")
PROMPT, DECODED, CONTEXT = 128, 32, 256
TOKENS = token_ids(PROMPT + DECODED, Shape())
METRICS = ("decode", "prefill", "first", "memory")
QUICK_SPEED = ("decode", "memory")
Values = dict[str, dict[str, list[float]]]


def _row(name: str, claim: str, bar: Bar, *, unit: str = "correlation", quick: bool = False) -> Row:
    return Row(f"gguf-{name}", claim, unit, "quality", bar, judged="ours", quick=quick)


def _compared(interpreter: Path, gguf: Path, prompt: Any, ours: Any) -> tuple[float, bool]:
    """Correlation of llama.cpp's last logits with `ours`, and whether the likeliest token is the same."""
    with llama_cpp.worker(interpreter) as worker:
        worker.ask("open", model=str(gguf), load="mapped", flash=False, threads=1, context=CONTEXT)
        worker.ask("prefill", tokens=[int(token) for token in prompt])
        theirs = np.asarray(worker.ask("logits")["logits"])[: len(ours)]
    return float(np.corrcoef(theirs, ours)[0, 1]), bool(theirs.argmax() == ours.argmax())


def _last_logits(model: Path, prompt: Any, activations: str = "f32") -> Any:
    from haversack.run import Engine

    with Engine.open(model, activations=activations) as engine:
        found, _ = engine.step(prompt, cache=engine.cache(len(prompt)))
        assert found is not None
        return found[-1]


def _exported(folder: Path, goal: Path) -> Path:
    from haversack.models._gguf_write import write_gguf
    from haversack.run._source import open_model

    write_gguf(open_model(folder), goal, name="drawn")  # llama.cpp knows some models by their names
    return goal


@bench.measure(
    *[
        _row(
            family,
            f"{family} exported as GGUF opens in llama.cpp and is the same model: correlation of the logits "
            "after a prompt",
            Bar(">=", 0.999),
            quick=family == "llama",
        )
        for family in FAMILIES
    ],
    seconds=60,
    quick_seconds=15,
    watches=WATCHED,
)
def families(run: Run) -> Outcomes:
    interpreter = llama_cpp.python(run.say, build=not run.quick)
    found = {}
    for family in FAMILIES if not run.quick else FAMILIES[:1]:
        with TemporaryDirectory() as scratch:
            worst, names, told = 1.0, [], []
            for name, folder, prompt in _expressible(family, Path(scratch)):
                gguf = _exported(folder, Path(scratch) / f"{name}.gguf")
                correlation, same = _compared(interpreter, gguf, prompt, _last_logits(folder, prompt))
                worst = min(worst, correlation)
                names.append(name)
                told += [] if same else [f"arg-max differs in {name}"]
        note = "; ".join([f"{len(names)} cases ({', '.join(names)})", *told])
        found[f"gguf-{family}"] = Outcome.single(worst, note=note)
    return found


def _expressible(family: str, scratch: Path) -> Iterator[tuple[str, Path, Any]]:
    """The family's cases that GGUF can say, with a tokenizer of as many tokens as the model has; prompts that
    both sides see whole."""
    from haversack.core.errors import UserError

    for name, folder, prompt in drawn(family, scratch):
        config = json.loads((folder / "config.json").read_text())
        tokenizer = trained("gpt-2", config["vocab_size"])
        (folder / "tokenizer.json").write_text(tokenizer.to_str())
        if "query_pre_attn_scalar" in config:  # which GGUF does not say: as in the models published
            config["query_pre_attn_scalar"] = config["head_dim"]
            if "sliding_window_pattern" in config:
                config["sliding_window_pattern"] = 6
            (folder / "config.json").write_text(json.dumps(config))
        if "longrope" in json.dumps(config):
            continue  # the peer picks its factors by the size of its context, not of the text
        if config.get("sliding_window") and not family.startswith("gemma"):
            prompt = prompt[: config["sliding_window"]]  # the peer knows no window of these
        try:
            _exported(folder, scratch / "probe.gguf").unlink()
        except UserError:
            continue
        yield name, folder, prompt


@bench.measure(
    *[
        _row(
            f"code-{kind}",
            f"`code` packed in {kind} and exported as GGUF is the same model in llama.cpp: correlation of "
            "the logits after a prompt, activations in int8 on both sides",
            Bar(">=", 0.999),
        )
        for kind in ("int4", "int8")
    ],
    seconds=30,
    watches=(*WATCHED, *SHRINK_FILES),
)
def packed(run: Run) -> Outcomes:
    interpreter = llama_cpp.python(run.say)
    prompt = np.random.default_rng(run.seed).integers(3, 4000, 96).astype(np.int32)
    found = {}
    for kind, precision in (
        ("int4", "round-to-nearest:bits=4,group=64"),
        ("int8", "round-to-nearest:bits=8"),
    ):
        pack = code_pack(precision)
        with TemporaryDirectory() as scratch:
            gguf = _exported(pack, Path(scratch) / "x.gguf")
            own = _last_logits(pack, prompt, "int8-dynamic")
            correlation, same = _compared(interpreter, gguf, prompt, own)
        note = f"arg-max {'agrees' if same else 'differs'}"
        found[f"gguf-code-{kind}"] = Outcome.single(correlation, note=note)
    return found


def _text() -> list[str]:
    from haversack.models._calibration import default_text

    return default_text("evaluation")[:400_000].splitlines(keepends=True)


def trained(pre: str, size: int) -> Any:
    """A byte-level tokenizer of `size` tokens whose words are cut as `pre` says (a tokenizers library's)."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from haversack.models._gguf_pre import PRES as KNOWN

    made = tokenizers.Tokenizer(models.BPE(ignore_merges=KNOWN[pre].whole))
    cuts = [
        pre_tokenizers.Split(tokenizers.Regex(one), "isolated", invert=False) for one in KNOWN[pre].patterns
    ]
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_text()[:4000], trainer)
    return made


def strings(seed: int, count: int = STRINGS) -> list[str]:
    """Half lines of text, half runs of drawn characters: letters of many scripts, signs, digits, spaces."""
    draw = np.random.default_rng(seed)
    lines = _text()
    alphabet = [
        *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789",
        *"  \n\t\r.,;:'\"!?()[]{}<>/\\|@#$%^&*-_=+~`",
        *"éüßñçøåÉÜ",
        *"абвгдЖЗИ",
        *"αβγΔΩ",
        *"你好世界漢字",
        *"ひらカナ",
        *"한국어",
        *"مرحبا",
        *"हिन्दी",
        *"ไทย",
        *"½²①Ⅷ٣",
        *"«»—…€→★",
        *"😀🎉👍🏽",
        *"\u00a0\u3000\u200b",
    ]
    found = []
    for index in range(count):
        if index % 2:
            length = int(draw.integers(1, 60))
            text = "".join(alphabet[i] for i in draw.integers(0, len(alphabet), length))
        else:
            start = int(draw.integers(0, len(lines) - 3))
            text = "".join(lines[start : start + int(draw.integers(1, 4))])
        if index % 10 == 3:
            text = f"<|user|>{text}<|end|> it's I'LL {text}"
        found.append(text)
    return found


def vocabulary_file(path: Path, tokenizer: Any, pre: str) -> Path:
    """A GGUF file that holds a byte-level vocabulary and nothing else."""
    from haversack.formats.gguf import write_gguf_file

    record = json.loads(tokenizer.to_str())
    table = sorted(record["model"]["vocab"].items(), key=lambda pair: int(pair[1]))
    special = {token["content"] for token in record["added_tokens"]}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in record["model"]["merges"]]
    metadata = {
        "general.architecture": ("string", "llama"),
        "tokenizer.ggml.model": ("string", "gpt2"),
        "tokenizer.ggml.pre": ("string", pre),
        "tokenizer.ggml.tokens": ("[string]", [text for text, _ in table]),
        "tokenizer.ggml.token_type": ("[i32]", [3 if text in special else 1 for text, _ in table]),
        "tokenizer.ggml.merges": ("[string]", merges),
        "tokenizer.ggml.bos_token_id": ("u32", 0),
        "tokenizer.ggml.eos_token_id": ("u32", 0),
    }
    write_gguf_file(path, metadata, [])
    return path


def pieces_file(path: Path, scratch: Path, prefix: bool) -> Path:
    """A GGUF file of a SentencePiece vocabulary with scores, trained by its own library."""
    import sentencepiece

    from haversack.formats.gguf import write_gguf_file

    text = scratch / "text.txt"
    text.write_text("".join(_text()[:6000]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(scratch / "pieces"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=["<|user|>", "<|end|>"],
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(scratch / "pieces.model"))
    count = model.get_piece_size()

    def kind(index: int) -> int:
        if model.is_unknown(index):
            return 2
        if model.is_control(index):
            return 3
        if model.is_byte(index):
            return 6
        return 4 if model.id_to_piece(index).startswith("<|") else 1

    metadata = {
        "general.architecture": ("string", "llama"),
        "tokenizer.ggml.model": ("string", "llama"),
        "tokenizer.ggml.tokens": ("[string]", [model.id_to_piece(i) for i in range(count)]),
        "tokenizer.ggml.scores": ("[f32]", [model.get_score(i) for i in range(count)]),
        "tokenizer.ggml.token_type": ("[i32]", [kind(i) for i in range(count)]),
        "tokenizer.ggml.bos_token_id": ("u32", model.bos_id()),
        "tokenizer.ggml.eos_token_id": ("u32", model.eos_id()),
        "tokenizer.ggml.unknown_token_id": ("u32", model.unk_id()),
        "tokenizer.ggml.add_space_prefix": ("bool", prefix),
    }
    write_gguf_file(path, metadata, [])
    return path


def _same_cuts(interpreter: Path, gguf: Path, texts: list[str]) -> Outcome:
    from haversack.formats.gguf import GgufFile
    from haversack.models._gguf_tokenizer import tokenizer

    own = tokenizer(GgufFile.open(gguf))
    with llama_cpp.worker(interpreter) as worker:
        opening = {"load": "mapped", "flash": False, "threads": 1, "context": 64, "vocab_only": True}
        worker.ask("open", model=str(gguf), **opening)
        theirs = worker.ask("tokenize", texts=texts)["tokens"]
    differing = [one for one, tokens in zip(texts, theirs, strict=True) if own.encode(one) != tokens]
    note = f"{len(texts)} strings" + (f"; differs on {differing[0]!r:.80}" if differing else "")
    return Outcome.single(1 - len(differing) / len(texts), note=note)


@bench.measure(
    *[
        _row(
            f"tokenizer-{pre}",
            f"the byte-level tokenizer of metadata with pre={pre} cuts {STRINGS} strings as llama.cpp does",
            Bar(">=", 0.999),
            unit="share",
            quick=pre == "llama-bpe",
        )
        for pre in PRES
    ],
    *[
        _row(
            f"tokenizer-{kind}",
            f"the tokenizer of pieces with scores ({words}) cuts {STRINGS} strings as llama.cpp does",
            Bar(">=", 0.999),
            unit="share",
        )
        for kind, words in (("pieces", "a space before a text"), ("pieces-bare", "no space before a text"))
    ],
    seconds=90,
    quick_seconds=15,
    watches=WATCHED,
)
def tokenizers(run: Run) -> Outcomes:
    from haversack.bench.formats._bench import needs

    interpreter = llama_cpp.python(run.say, build=not run.quick)
    texts = strings(run.seed)
    found = {}
    with TemporaryDirectory() as scratch:
        for pre in PRES if not run.quick else ("llama-bpe",):
            gguf = vocabulary_file(Path(scratch) / f"{pre}.gguf", trained(pre, VOCABULARY), pre)
            found[f"gguf-tokenizer-{pre}"] = _same_cuts(interpreter, gguf, texts)
        if not run.quick:
            needs("sentencepiece")
            for kind, prefix in (("pieces", True), ("pieces-bare", False)):
                gguf = pieces_file(Path(scratch) / f"{kind}.gguf", Path(scratch), prefix)
                found[f"gguf-tokenizer-{kind}"] = _same_cuts(interpreter, gguf, texts)
    return found


@bench.measure(
    *[
        Row(
            f"gguf-{name}",
            f"from one Q4_0 file, two threads: {claim} than llama.cpp",
            unit,
            kind,
            bar,
            quick=name in QUICK_SPEED,
        )
        for name, claim, unit, kind, bar in (
            ("decode", "decodes faster", "tokens/s", "time", Bar(">=", 1.0)),
            ("prefill", "reads a prompt faster", "tokens/s", "time", Bar(">=", 1.0)),
            ("first", "comes sooner from process start to its first token", "s", "time", Bar("<=", 1.0)),
            ("memory", "holds less memory at its peak", "MiB", "memory", Bar("<=", 0.8)),
        )
    ],
    seconds=150,
    quick_seconds=25,
    watches=WATCHED,
)
def speed(run: Run) -> Outcomes:
    """A fresh process a side and round; quickly: one process a side, decoding in turns."""
    interpreter = llama_cpp.python(run.say, build=not run.quick)
    gguf = llama_cpp.model(interpreter, "Q8_0")
    files = {"llama.cpp": gguf, "haversack": _copy(gguf)}
    values: Values = {name: {metric: [] for metric in METRICS} for name in ("llama.cpp", "haversack")}
    for turn in range(1 if run.quick else MIN_PAIRS):
        run.say(f"a Q4_0 file beside llama.cpp: round {turn + 1}")
        names = ("llama.cpp", "haversack")[:: 1 if turn % 2 == 0 else -1]
        started: dict[str, Worker] = {}
        try:
            for name in names:
                started[name] = _started(name, interpreter, files[name])
                values[name]["first"].append(started[name].since_start())
            for pair in range(MIN_PAIRS if run.quick else 1):
                for name in names[:: 1 if pair % 2 == 0 else -1]:
                    _decode(started[name], values[name], 12 if run.quick else DECODED)
            for name in names:
                seconds = started[name].ask("prefill", tokens=TOKENS[:PROMPT])["seconds"]
                values[name]["prefill"].append(PROMPT / float(seconds))
                values[name]["memory"].append(MemoryWatch(started[name].process.pid, [files[name]]).peak_mib)
        finally:
            for worker in started.values():
                worker.close()
    return {
        f"gguf-{metric}": Outcome.of(
            {name: taken[metric] for name, taken in values.items()}, ours="haversack", baseline="llama.cpp"
        )
        for metric in (QUICK_SPEED if run.quick else METRICS)
    }


def _copy(gguf: Path) -> Path:
    """A file of its own for our side, so that neither sees the other's cached pages."""

    def make(folder: Path) -> None:
        shutil.copyfile(gguf, folder / gguf.name)

    return cached("gguf-own-copy", {"of": str(gguf), "size": gguf.stat().st_size}, make) / gguf.name


def _started(name: str, interpreter: Path, gguf: Path) -> Worker:
    """A worker of one side that has read the prompt."""
    own = name == "haversack"
    argv = [sys.executable, "-m", "haversack.bench._engine_worker"]
    worker = Worker(argv) if own else llama_cpp.worker(interpreter)
    opening = {"residency": None, "cache_type": "f16"} if own else {"load": "mapped", "flash": True}
    worker.ask("open", model=str(gguf), threads=2, context=CONTEXT, **opening)
    worker.ask("prefill", tokens=TOKENS[:PROMPT])
    return worker


def _decode(worker: Worker, taken: dict[str, list[float]], count: int) -> None:
    seconds = worker.ask("decode", tokens=TOKENS[PROMPT : PROMPT + count])["seconds"]
    taken["decode"].append(count / float(seconds))
