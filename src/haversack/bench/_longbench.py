"""LongBench: its files, its tasks, its prompts cut to a model's context, and its scores.

Paper: Bai et al., "LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding" (arXiv
2308.14508, 2023).
What is here: a file of a task has a JSON object a line with the fields `input`, `context`, `answers`,
`length`, `dataset`, `language`, `all_classes` and `_id`; a prompt that is too long loses its middle; a reply
of at most so many tokens is held against every answer and keeps the best score (_longbench_scores.py); the
16 English and code tasks.
What we changed: the prompts are of our own wording. A file dataset2prompt.json beside the tasks' files, as
the benchmark's own code has it, takes their place, for scores to be set beside published ones. Chinese tasks
are refused, for their answers are counted in words that only a dictionary can tell apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from haversack.bench._longbench_scores import Score, classified, code_like, counted, found_paragraph, rouge_l
from haversack.bench._longbench_scores import word_f1 as f1
from haversack.core.errors import DamagedFileError, UserError, unknown_name

PROMPTS_FILE = "dataset2prompt.json"
LONGEST_LINE = 64 << 20
"""Bytes of one line."""
PLACES = re.compile(r"(\{(?:context|input)\})")
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
BRIEF = "Answer it from the {what} alone and as briefly as you can, without an explanation."
QUESTION = "\n\nQuestion: {input}\nAnswer:"


class Example(msgspec.Struct, frozen=True):
    """A line: what is asked (`input`, empty for some tasks) of a long `context`, the right `answers`, and for
    tasks with classes all of them; `length` in words as the benchmark counts them."""

    input: str
    context: str
    answers: tuple[str, ...]
    length: int
    dataset: str
    language: str
    all_classes: tuple[str, ...] | None
    id: str = msgspec.field(name="_id")


@dataclass(frozen=True)
class Task:
    """How a task is asked and scored: its prompt with {context} and {input}, the tokens of a reply, whether
    only the reply's first line counts, and whether a chat model is asked as in a chat (examples and code are
    completed)."""

    prompt: str
    tokens: int
    score: Score
    first_line: bool = False
    chat: bool = True


def _about(what: str, tokens: int) -> Task:
    ask = BRIEF.replace("{what}", what)
    return Task(
        f"A question follows the {what} below. {ask}\n\n{{context}}\n\nThe question is this. {ask}{QUESTION}",
        tokens,
        f1,
    )


def _summary(what: str, asked: str, tokens: int) -> Task:
    return Task(f"Read the {what} below.\n\n{{context}}\n\n{asked}", tokens, rouge_l)


_PAGE = "Sum it up on one page.\n\nSummary:"
_SHOWN = "Go on as the examples show.\n\n{context}\n"
TASKS: Mapping[str, Task] = {
    "narrativeqa": _about("story", 128),
    "qasper": Task(
        "A question follows the article below. Answer in a phrase or a sentence; with yes or no where that is"
        " asked; with unanswerable where the article does not say.\n\n{context}" + QUESTION,
        128,
        f1,
    ),
    "multifieldqa_en": _about("text", 64),
    "hotpotqa": _about("passages", 32),
    "2wikimqa": _about("passages", 32),
    "musique": _about("passages", 32),
    "gov_report": _summary("report of a public office", _PAGE, 512),
    "qmsum": _summary("record of a meeting", "Answer in a few sentences.\n\nQuestion: {input}\nAnswer:", 512),
    "multi_news": _summary("news", _PAGE, 512),
    "trec": Task(f"Name the kind of the last question. {_SHOWN}{{input}}", 64, classified, True, False),
    "triviaqa": Task(f"Answer the last question in a word or two. {_SHOWN}\n{{input}}", 32, f1, True, False),
    "samsum": Task(f"Sum up the last talk. {_SHOWN}\n{{input}}", 128, rouge_l, True, False),
    "passage_count": Task(
        "Some of the paragraphs below may stand there more than once. Count those that differ.\n\n{context}"
        "\n\nGive the number of paragraphs that differ, as a number alone.\n\nNumber: ",
        32,
        counted,
    ),
    "passage_retrieval_en": Task(
        "One of the numbered paragraphs below is what a summary was made of.\n\n{context}\n\nThe summary:\n\n"
        "{input}\n\nName its paragraph, such as Paragraph 1 or Paragraph 2.\n\nAnswer: ",
        32,
        found_paragraph,
    ),
    "lcc": Task("Write the next line of this code.\n{context}Next line:\n", 64, code_like, False, False),
    "repobench-p": Task(
        "Write the next line of this code.\n{context}{input}Next line:\n", 64, code_like, False, False
    ),
}


def task_of(dataset: str) -> Task:
    """The task of an example's `dataset`; those of LongBench-E (`_e`) are the same. Raises UserError for a
    Chinese or an unknown one."""
    name = dataset.removesuffix("_e")
    if name in CHINESE:
        raise UserError(
            f"LongBench's {name} is a Chinese task, which is not scored here (allowed: {', '.join(TASKS)}).",
            field="dataset",
            given=dataset,
        )
    if name not in TASKS:
        raise unknown_name("the LongBench task", dataset, TASKS, field="dataset")
    return TASKS[name]


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of a task's file, one by one; empty lines are passed over.

    Raises DamagedFileError, with the line's number, for a line that is no such object, for one without an
    answer or (where a task needs them) classes, and for one of another task than the first; UserError for a
    file that cannot be read.
    """
    decoder, first = msgspec.json.Decoder(Example), ""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
                if not line.strip():
                    continue
                example = _checked(path, number, line, decoder)
                first = first or example.dataset
                if example.dataset != first:
                    what = f"line {number} is of the task {example.dataset}, those before it of {first}"
                    raise DamagedFileError(path, what)
                yield example
    except OSError as error:
        raise UserError(
            f"the LongBench file {path} cannot be read: {error.strerror}.", field="path", given=str(path)
        ) from error


def _checked(path: Path, number: int, line: bytes, decoder: msgspec.json.Decoder[Example]) -> Example:
    if len(line) > LONGEST_LINE:
        raise DamagedFileError(path, f"line {number} is longer than {LONGEST_LINE >> 20} MiB")
    try:
        example = decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedFileError(path, f"line {number} is no LongBench example ({error})") from error
    if not any(answer.strip() for answer in example.answers):
        raise DamagedFileError(path, f"line {number} has no answer")
    if example.dataset.removesuffix("_e") == "trec" and not example.all_classes:
        raise DamagedFileError(path, f"line {number} has no all_classes, which its task is scored by")
    return example


def read_prompts(folder: Path) -> dict[str, str]:
    """Task -> prompt of dataset2prompt.json in `folder`, empty without it. Raises DamagedFileError for a file
    that is something else."""
    path = folder / PROMPTS_FILE
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedFileError(path, f"it does not name a prompt for each task ({error})") from error


def prompt_of(example: Example, prompts: Mapping[str, str]) -> str:
    """The whole prompt of `example`, in the wording of `prompts` where that has its task."""
    name = example.dataset.removesuffix("_e")
    asked = prompts.get(name, task_of(name).prompt)
    filled = {"{context}": example.context, "{input}": example.input}
    return "".join(filled.get(part, part) for part in PLACES.split(asked))


def cut_middle(
    text: str,
    room: int,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> str:
    """`text`, or, when it has more than `room` tokens, its first and last `room` // 2 of them as text: both
    ends of a prompt say what is asked."""
    tokens = encode(text)
    if len(tokens) <= room:
        return text
    half = room // 2
    return decode(tokens[:half]) + decode(tokens[len(tokens) - half :])


def fitted(
    text: str,
    room: int,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    whole: Callable[[str], Sequence[int]],
) -> Sequence[int]:
    """The tokens that `whole` makes of a prompt (with a chat's marks), at most `room`; its middle goes.

    Raises UserError where the marks alone leave no room.
    """
    allowed = room
    while allowed > 1:
        tokens = whole(cut_middle(text, allowed, encode, decode))
        if len(tokens) <= room:
            return tokens
        allowed -= max(len(tokens) - room, 2)
    raise UserError(
        f"a prompt of {room} tokens has no room for a question; use a model with a longer context.",
        field="context",
        given=room,
    )


def score_of(example: Example, reply: str) -> float:
    """0 to 1: the best that `reply` scores against an answer of `example`."""
    task = task_of(example.dataset)
    if task.first_line:
        reply = reply.lstrip("\n").partition("\n")[0]
    classes = example.all_classes or ()
    return max(task.score(reply, answer, classes) for answer in example.answers)
