"""LongBench: files in exactly its format, what is refused, prompts that fit, and scores of known replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.bench._longbench import (
    CHINESE,
    TASKS,
    cut_middle,
    fitted,
    prompt_of,
    read_examples,
    read_prompts,
    score_of,
    task_of,
)
from haversack.bench._longbench_scores import (
    classified,
    code_like,
    counted,
    found_paragraph,
    longest_common,
    rouge_l,
    word_f1,
)
from haversack.core.errors import DamagedFileError, UserError

LINE: dict[str, Any] = {
    "input": "Who built the mill?",
    "context": "The mill was built by Ada Moss in 1802. It burnt down twice.",
    "answers": ["Ada Moss", "Moss"],
    "length": 13,
    "dataset": "multifieldqa_en",
    "language": "en",
    "all_classes": None,
    "_id": "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978",
}
CLASSES = ["Number of something", "Date", "Individual", "Description of a person"]


def line(**changes: Any) -> str:
    return json.dumps({**LINE, **changes}, ensure_ascii=False)


def write(folder: Path, *lines: str, name: str = "multifieldqa_en.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_file_of_a_task_is_read_line_by_line(tmp_path: Path) -> None:
    path = write(tmp_path, line(), "", line(answers=["Ünal"], length=7, _id="2"))
    first, second = read_examples(path)
    assert first.answers == ("Ada Moss", "Moss") and first.all_classes is None and first.length == 13
    assert (first.input, first.context, first.id) == (LINE["input"], LINE["context"], LINE["_id"])
    assert second.answers == ("Ünal",) and second.id == "2"


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        ("{", "is no LongBench example"),
        ('["input"]', "is no LongBench example"),
        (json.dumps({key: value for key, value in LINE.items() if key != "answers"}), "`answers`"),
        (json.dumps({key: value for key, value in LINE.items() if key != "_id"}), "`_id`"),
        (line(context=7), "context"),
        (line(answers="Ada Moss"), "answers"),
        (line(length="13"), "length"),
        (line(answers=[]), "has no answer"),
        (line(answers=[" "]), "has no answer"),
        (line(dataset="qasper"), "is of the task qasper, those before it of multifieldqa_en"),
        ("[" * 100_000, "is no LongBench example"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str, said: str) -> None:
    path = write(tmp_path, line(), line(), damaged)
    with pytest.raises(DamagedFileError, match="line 3") as refused:
        list(read_examples(path))
    assert said in str(refused.value) and str(path) in str(refused.value)


def test_bytes_that_are_no_text_and_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, line())
    path.write_bytes(path.read_bytes() + b'{"input": "\xff\xfe"}\n')
    with pytest.raises(DamagedFileError, match="line 2"):
        list(read_examples(path))
    with pytest.raises(UserError, match="cannot be read"):
        list(read_examples(tmp_path / "absent.jsonl"))
    trec = write(tmp_path, line(dataset="trec"), name="trec.jsonl")
    with pytest.raises(DamagedFileError, match="no all_classes"):
        list(read_examples(trec))


def test_tasks_are_the_sixteen_that_are_not_chinese() -> None:
    assert len(TASKS) == 16 and len(CHINESE) == 5
    assert task_of("qasper_e") is TASKS["qasper"]
    with pytest.raises(UserError, match="did you mean hotpotqa"):
        task_of("hotpot")
    with pytest.raises(UserError, match="Chinese"):
        task_of("vcsum")
    for name, task in TASKS.items():
        assert task.prompt.count("{context}") == 1, name
        summary = name in ("gov_report", "multi_news", "passage_count", "lcc")
        assert ("{input}" in task.prompt) is not summary, name


def test_prompts_are_filled_once_and_may_be_the_benchmarks_own(tmp_path: Path) -> None:
    (example,) = read_examples(write(tmp_path, line(context="A {input} in braces {context}.")))
    made = prompt_of(example, {})
    assert made.count("A {input} in braces {context}.") == 1 and made.count("Who built the mill?") == 1
    assert read_prompts(tmp_path) == {}
    (tmp_path / "dataset2prompt.json").write_text(json.dumps({"multifieldqa_en": "{input}|{context}"}))
    prompts = read_prompts(tmp_path)
    assert prompt_of(example, prompts) == "Who built the mill?|A {input} in braces {context}."
    (tmp_path / "dataset2prompt.json").write_text('{"multifieldqa_en": 3}')
    with pytest.raises(DamagedFileError, match="a prompt for each task"):
        read_prompts(tmp_path)


def characters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def text_of(tokens: Any) -> str:
    return "".join(map(chr, tokens))


def test_the_middle_of_a_long_prompt_goes() -> None:
    assert cut_middle("abcdefghij", 10, characters, text_of) == "abcdefghij"
    assert cut_middle("abcdefghij", 6, characters, text_of) == "abchij"
    assert cut_middle("abcdefghij", 7, characters, text_of) == "abchij"


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="abc", max_size=60), st.integers(12, 50))
def test_a_fitted_prompt_keeps_its_ends_and_its_length(text: str, room: int) -> None:
    def chat(said: str) -> list[int]:
        return characters(f"<user>{said}<")

    made = text_of(fitted(text, room, characters, text_of, chat))
    assert len(made) <= room
    inner = made.removeprefix("<user>").removesuffix("<")
    half = len(inner) // 2
    assert inner == text or (inner[:half] == text[:half] and text.endswith(inner[half:]))
    assert len(inner) == len(text) or len(inner) >= room - 7 - 3
    with pytest.raises(UserError, match="no room"):
        fitted(text, 6, characters, text_of, chat)


@pytest.mark.parametrize(
    ("dataset", "answers", "reply", "score"),
    [
        ("qasper", ["Ada Moss", "Moss"], "It was the Moss", 0.5),
        ("triviaqa", ["Ada Moss"], "\n\nAda Moss\nQuestion: Who else", 1.0),
        ("samsum", ["Ada is late"], "Ada is very late\nDialogue: a b c d e f", 6 / 7),
        ("gov_report", ["the dam is safe", "safe"], "the dam is not safe", 8 / 9),
        ("trec", ["Description of a person"], "Description of a person", 1.0),
        ("trec", ["Date"], "Date or Individual", 0.5),
        ("passage_count", ["7"], "There are 7 of 12", 0.5),
        ("passage_retrieval_en", ["Paragraph 3"], "Paragraph 3", 1.0),
        ("lcc", ["x = 1"], "# a note\nx = 2\nreturn", 0.8),
    ],
)
def test_an_example_keeps_the_best_score_of_its_answers(
    tmp_path: Path, dataset: str, answers: list[str], reply: str, score: float
) -> None:
    (example,) = read_examples(write(tmp_path, line(dataset=dataset, answers=answers, all_classes=CLASSES)))
    assert score_of(example, reply) == pytest.approx(score)
    assert score_of(example, "") == 0


def test_known_scores() -> None:
    assert word_f1("The cat, a cat!", "cat") == pytest.approx(2 / 3)
    assert word_f1("The", "the") == 0, "nothing is left of an article"
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert classified("Number of something, say", "Number", ["Number", "Number of something"]) == 0.5
    assert classified("Description of a person", "Description of a person", [*CLASSES, "person"]) == 1
    assert classified("person", "Description of a person", [*CLASSES, "person"]) == 0
    assert counted("about 5", "5") == 1 and counted("many", "5") == 0 and counted("15", "5") == 0
    assert found_paragraph("Paragraph 12, not 3", "Paragraph 12") == 0.5
    assert code_like("\n\n`python`\nreturn left", "return right") == pytest.approx(0.7)
    assert code_like("# nothing but notes", "x") == 0


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="abc", max_size=70), st.text(alphabet="abc", max_size=70))
def test_the_longest_common_subsequence_is_the_tables(first: str, second: str) -> None:
    row = [0] * (len(second) + 1)
    for letter in first:
        last, row = row, [0]
        for at, other in enumerate(second, 1):
            row.append(last[at - 1] + 1 if letter == other else max(last[at], row[-1]))
    assert longest_common(first, second) == longest_common(second, first) == row[-1]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab =(", min_size=1, max_size=40), st.text(alphabet="ab =(", min_size=1, max_size=40))
def test_code_is_as_alike_as_the_benchmarks_package_says(reply: str, answer: str) -> None:
    fuzz = pytest.importorskip("rapidfuzz.fuzz", reason="comes with jiwer")
    assert code_like(reply, answer) == pytest.approx(round(fuzz.ratio(reply, answer)) / 100)
