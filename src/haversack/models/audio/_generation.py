"""How a speech model is asked to write: the fields of generation_config.json, and the tokens a text begins
with.

A Whisper text begins with the token that starts a transcript, then, in models of several languages, the
language and the task, then one that says that no times follow. Where the language is not said the model is
asked: the likeliest of the language tokens after the first token is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from haversack.core.errors import UserError, unknown_name
from haversack.models._config import Config
from haversack.models.audio._languages import LANGUAGES
from haversack.models.audio._record import SpeechArchitecture

TASKS = ("transcribe", "translate")
# Fields that would change what is written in ways that are not computed, and the values that do not.
PLAIN: dict[str, Any] = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "guidance_scale": 1.0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "condition_on_prev_tokens": False,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}
IDS = 1 << 16


@dataclass(frozen=True)
class Rules:
    """How text is written. Tokens are numbers.

    `start` begins a text, `ends` end it; `suppressed` are never written, `first_suppressed` not as the first.
    `forced`: tokens after `start`, where None stands for the language to be found. `languages` (`<|en|>`) and
    `tasks` name tokens. `no_times` is the token of a text without times; the next ones are the times, 20 ms
    apart. `latest_first_time`: the largest time that may be the first, in such steps. `longest`: tokens of a
    text, with those it begins with (`counts_prompt`) or without; None: as many as there are positions.
    """

    start: int
    ends: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    first_suppressed: tuple[int, ...] = ()
    forced: tuple[int | None, ...] = ()
    languages: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    one_language: bool = False
    no_times: int | None = None
    latest_first_time: int | None = None
    longest: int | None = None
    counts_prompt: bool = True
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    times: bool = False
    language: str | None = None
    task: str | None = None

    @property
    def first_time(self) -> int | None:
        """The token of the time 0."""
        return None if self.no_times is None else self.no_times + 1

    def language_token(self, language: str) -> int:
        """The token of a language, given as `en`, `english` or `<|en|>`; UserError names the nearest."""
        asked = language.strip().lower()
        code = asked.removeprefix("<|").removesuffix("|>")
        found = self.languages.get(f"<|{LANGUAGES.get(code, code)}|>")
        if found is not None:
            return found
        if not self.languages or self.one_language:
            raise UserError(
                "this model knows one language; leave --language out.", field="language", given=language
            )
        codes = [name.removeprefix("<|").removesuffix("|>") for name in self.languages]
        known = [*codes, *(name for name, code in LANGUAGES.items() if code in codes)]
        raise unknown_name("the language", language[:40], known, field="language")

    def prompt(self, times: bool, language: int | None = None, task: str | None = None) -> list[int | None]:
        """The tokens a text begins with, `start` first; None stands where the language is to be found.

        `language` is its token. Raises UserError for a task the model has no token for, and for `times` from
        a model without any.
        """
        if times and self.no_times is None:
            raise UserError(
                "this model has no tokens for times; leave --timestamps out.", field="timestamps", given=True
            )
        tokens: list[int | None] = [self.start]
        task = task or self.task
        if self.language is not None and language is None:
            language = self.language_token(self.language)
        if task is None and language is None:
            tokens += self.forced
        if language is not None:
            tokens[1:2] = [language]
        elif self.languages and (len(tokens) < 2 or tokens[1] is None):
            tokens[1:2] = [None]
        elif not self.languages:
            tokens = [token for token in tokens if token is not None]
        tokens += self._task(task, language, tokens)
        if not times and self.no_times is not None and tokens[-1] != self.no_times:
            tokens.append(self.no_times)
        elif times and tokens[-1] == self.no_times:
            tokens.pop()
        return tokens

    def room(self, prompt: int, context: int) -> int:
        """How many tokens may follow a text's first `prompt` in a decoder of `context` positions."""
        longest = context if self.longest is None else self.longest
        if not self.counts_prompt:
            longest += min(context // 2 - 1, prompt)
        return max(min(longest, context) - prompt, 1)

    def _task(self, task: str | None, language: int | None, tokens: list[int | None]) -> list[int]:
        if task is not None:
            if task not in TASKS:
                raise unknown_name("the task", task[:40], TASKS, field="task")
            if task not in self.tasks or self.one_language:
                raise UserError("this model has one task; leave --task out.", field="task", given=task)
            return [self.tasks[task]]
        said = any(token in tokens for token in self.tasks.values())
        return [self.tasks["transcribe"]] if language is not None and not said and self.tasks else []


def read_rules(
    config: Mapping[str, Any], generation: Mapping[str, Any], architecture: SpeechArchitecture
) -> Rules:
    """The rules of a folder's generation_config.json; what it leaves out is taken from its config.json.

    Raises UserError for a field that cannot be, and for one that asks for what is not computed.
    """
    names = (
        "decoder_start_token_id",
        "eos_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
        "forced_decoder_ids",
    )
    held = {name: config[name] for name in names if config.get(name) is not None}
    known = {name: value for name, value in generation.items() if value is not None}
    both = Config({**held, **known}, "generation_config.json")
    for name, plain in PLAIN.items():
        both.only(name, plain)
    vocabulary = architecture.vocabulary
    no_times = (
        both.whole("no_timestamps_token_id", least=0, most=vocabulary - 1)
        if both.has("no_timestamps_token_id")
        else None
    )
    first = "max_initial_timestamp_index"
    tasks = _tokens_by_name(both, "task_to_id", vocabulary)
    if tasks and "transcribe" not in tasks:
        raise both.wrong("task_to_id", "has no transcribe")
    return Rules(
        start=both.whole("decoder_start_token_id", least=0, most=vocabulary - 1),
        ends=both.tokens("eos_token_id", vocabulary),
        suppressed=both.tokens("suppress_tokens", vocabulary),
        first_suppressed=both.tokens("begin_suppress_tokens", vocabulary),
        forced=_forced(both, vocabulary),
        languages=_tokens_by_name(both, "lang_to_id", vocabulary),
        tasks=tasks,
        one_language=not both.flag("is_multilingual", True),
        no_times=no_times,
        latest_first_time=both.whole(first, least=0) if both.has(first) else None,
        longest=both.whole("max_length") if both.has("max_length") else None,
        counts_prompt=architecture.encoder.bands is None,
        beams=both.whole("num_beams", 1, most=64),
        length_penalty=_penalty(both),
        early_stopping=both.flag("early_stopping", False),
        times=both.flag("return_timestamps", False),
        language=_text(both, "language"),
        task=_text(both, "task"),
    )


def _penalty(config: Config) -> float:
    value = config.values.get("length_penalty", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -16 <= value <= 16:
        raise config.wrong("length_penalty", "is no number from -16 to 16", 1.0)
    return float(value)


def _text(config: Config, name: str) -> str | None:
    value = config.values.get(name)
    if value is not None and not isinstance(value, str):
        raise config.wrong(name, "is not a text")
    return value


def _forced(config: Config, vocabulary: int) -> tuple[int | None, ...]:
    """forced_decoder_ids: pairs of a place, from 1 on, and a token or null."""
    value = config.values.get("forced_decoder_ids") or []
    if not isinstance(value, list) or len(value) > 64:
        raise config.wrong("forced_decoder_ids", "is not a list of places and tokens")
    found: list[int | None] = []
    for place, pair in enumerate(value, 1):
        token = pair[1] if isinstance(pair, list) and len(pair) == 2 else -1
        whole = token is None or (isinstance(token, int) and not isinstance(token, bool))
        if not whole or pair[0] != place or not 0 <= (token or 0) < vocabulary:
            raise config.wrong(
                "forced_decoder_ids", f"does not name a token or null at place {place}, as all from 1 on must"
            )
        found.append(token)
    if None in found[1:]:
        raise config.wrong("forced_decoder_ids", "leaves a place open that is not the language's, the first")
    return tuple(found)


def _tokens_by_name(config: Config, name: str, vocabulary: int) -> dict[str, int]:
    table = config.table(name)
    if table is None:
        return {}
    if len(table.values) > IDS:
        raise config.wrong(name, "names too many tokens")
    return {str(key): table.whole(str(key), least=0, most=vocabulary - 1) for key in table.values}
