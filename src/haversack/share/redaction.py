"""V10, the privacy guard: personal data becomes placeholders before it leaves, and itself again on return.

Paper: Large Language Models over Networks (arXiv 2605.08626, 2026; an article without code: its idea is
[abstract], the details here are [inferred]); placeholders that are restored are common practice.
What is here: `redact` walks a whole chat request, so that nothing is overlooked for its place: texts and
parts of texts, names of speakers and of tools, their descriptions, schemas, keys of records, arguments (JSON
inside JSON), results, stop words, code. A value found once is hidden wherever it stands, in every turn, a
person's single names and the `jane_doe` of an identifier too. The same conversation gives the same
placeholders each turn, so a cloud's cached prefix stays valid. `Restorer` puts values back into an answer,
also when a placeholder arrives in pieces; inside the JSON text of a tool's arguments they are escaped.
Pictures, sound and files have no text to look at: `Redacted.attachments` names them, and who sends decides
(the server keeps them on the device unless privacy is `any`).
What we changed: a placeholder inside an address (`https://...`) of a host that the request did not name is
not restored, so that an answer cannot carry what was hidden to somebody else's server.
Cost: one pass of some thirty expressions over the text, linear in its length.
Limits: what is personal by meaning alone is not found, unless it is in the list of terms that the owner
gives. Log probabilities of an answer's tokens are about placeholders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from haversack.core.errors import UserError
from haversack.share._personal import Span, find, kind_of_key, plain_copy, without_overlaps

SYSTEM = 40

LEFT_OUT = ("user", "metadata", "safety_identifier", "prompt_cache_key", "store")
"""Fields of a request that are about who asks: they never leave."""
DEEPEST = 64
LEAST_KNOWN = 3
"""Shorter values are hidden where they were found, not wherever these letters stand."""
_FIXED = frozenset(("role", "type", "model"))
"""Fields whose words are the protocol's own."""
_NAME_FIELDS = frozenset(("name",))
_TAKEN = re.compile(r"PII\\?_[A-Z]+\\?_\d+", re.IGNORECASE)
_NUMBER = re.compile(r"PII\\?_([A-Z]+)\\?_(\d+)", re.IGNORECASE)
_BEGUN = re.compile(r"P(?:I(?:I(?:\\?(?:_(?:[A-Z]+(?:\\?(?:_\d*)?)?)?)?)?)?)?\Z", re.IGNORECASE)
_HOST = re.compile(r"[a-z][a-z0-9+.-]*://([^/\s?#\"'<>)\]]*)", re.IGNORECASE)


@dataclass
class Vault:
    """What stands for what, in one conversation; stays on this machine."""

    values: dict[str, str] = field(default_factory=dict)
    """Placeholder -> value."""
    hosts: set[str] = field(default_factory=set)
    """Hosts that the request itself named."""
    taken: set[str] = field(default_factory=set)
    """Words of the request that look like placeholders and are none."""

    def __post_init__(self) -> None:
        self._placeholders = {value: placeholder for placeholder, value in self.values.items()}
        self._counts: dict[str, int] = {}

    def hide(self, kind: str, value: str) -> str:
        """The placeholder of a value, the same whenever it comes."""
        if value not in self._placeholders:
            while True:
                self._counts[kind] = self._counts.get(kind, 0) + 1
                made = f"PII_{kind}_{self._counts[kind]}"
                if made not in self.taken:
                    break
            self._placeholders[value] = made
            self.values[made] = value
        return self._placeholders[value]

    def restore(self, text: str, *, inside_json: bool = False) -> str:
        """`text` with every placeholder that may be restored replaced."""
        restorer = Restorer(self, inside_json=inside_json)
        return restorer.feed(text) + restorer.end()


@dataclass(frozen=True)
class Redacted:
    """What may leave: the request `body`, the `vault` that restores answers, the kinds found with how often,
    and the kinds of parts that are no text (`image_url`, `file`, ...)."""

    body: dict[str, Any]
    vault: Vault
    found: dict[str, int]
    attachments: tuple[str, ...]


class Restorer:
    """Puts values back into a text that arrives in pieces. What may be the beginning of a placeholder waits
    for the next piece, never longer than a placeholder is."""

    def __init__(self, vault: Vault, *, inside_json: bool = False) -> None:
        self._vault = vault
        self._inside_json = inside_json
        self._held = ""
        self._word = ""

    def feed(self, piece: str) -> str:
        """What is certain after this piece."""
        text = self._held + piece
        begun = _BEGUN.search(text)
        cut = len(text) if begun is None else begun.start()
        if begun is None and (ending := re.search(r"PII\\?_[A-Z]+\\?_\d+\Z", text, re.IGNORECASE)):
            cut = ending.start()  # another digit may follow
        self._held = text[cut:]
        return self._replaced(text[:cut])

    def end(self) -> str:
        """What was waiting, at the end of the text."""
        held, self._held = self._held, ""
        return self._replaced(held)

    def _replaced(self, text: str) -> str:
        made, at = [], 0
        for match in _NUMBER.finditer(text):
            self._read(text[at : match.start()])
            made += [text[at : match.start()], self._value(match)]
            self._read(match[0])
            at = match.end()
        self._read(text[at:])
        return "".join(made) + text[at:]

    def _value(self, match: re.Match[str]) -> str:
        value = self._vault.values.get(f"PII_{match[1].upper()}_{match[2]}")
        if value is None or self._abroad():
            return match[0]
        return json.dumps(value, ensure_ascii=False)[1:-1] if self._inside_json else value

    def _read(self, text: str) -> None:
        """Remember the word that the text ends with: an address, perhaps."""
        self._word = re.split(r"[\s\"'<>()\[\]]", self._word + text)[-1][-2048:]

    def _abroad(self) -> bool:
        """Whether we are inside an address of a host that the request did not name."""
        host = _HOST.search(self._word)
        return host is not None and host[1].lower() not in self._vault.hosts


def redact(body: dict[str, Any], private: Iterable[str] = ()) -> Redacted:
    """The request with personal data replaced; `private` are terms that are always hidden.

    Raises UserError for a request that is nested deeper than 64 levels.
    """
    kept = {key: value for key, value in body.items() if key not in LEFT_OUT}
    texts = [text for text, _ in _texts(kept)]
    vault = Vault(taken={taken.upper() for text in texts for taken in _TAKEN.findall(text)})
    vault.hosts = {host.lower() for text in texts for host in _HOST.findall(text)}
    known: dict[str, str] = {term: "TERM" for term in private if term.strip()}
    for text in [*texts, *_joined(kept)]:
        for span in find(text):
            known.setdefault(text[span.start : span.end], span.kind)
    walker = _Walker(vault, _Known(known))
    made = walker.value(_parts_joined(kept, walker), ())
    return Redacted(made, vault, walker.found, tuple(sorted(_attachments(kept))))


class _Known:
    """Finds values that are known already, in any case, between any letters that are none of theirs, as
    identifiers write them too."""

    def __init__(self, values: dict[str, str]) -> None:
        self._kinds: dict[str, str] = {}
        for value, kind in values.items():
            for form in _forms(value, kind):
                if len(form) >= LEAST_KNOWN:
                    self._kinds.setdefault(form.lower(), kind)
        forms = sorted(map(re.escape, self._kinds), key=len, reverse=True)
        # Letters and digits around it would make it a part of another word; underscores do not.
        joined = rf"(?<![^\W_])(?:{'|'.join(forms)})(?![^\W_])"
        self._pattern = re.compile(joined, re.IGNORECASE) if forms else None

    def find(self, text: str) -> list[Span]:
        if self._pattern is None:
            return []
        plain, starts, ends = plain_copy(text)
        return [
            Span(self._kinds.get(match[0].lower(), "TERM"), starts[match.start()], ends[match.end() - 1])
            for match in self._pattern.finditer(plain)
        ]


def _forms(value: str, kind: str) -> Iterator[str]:
    """How else a value is written: a person's single names, an identifier's underscores."""
    plain = plain_copy(value)[0]
    yield plain
    if kind == "PERSON":
        words = [word for word in re.split(r"[\s,]+", plain) if len(word) > 2]
        yield from words
        if len(words) > 1:
            yield from ("_".join(words), "-".join(words), "".join(words), ".".join(words))
    if kind in ("EMAIL", "PHONE", "CARD", "IBAN", "ID"):
        simple = re.sub(r"\W+", "_", plain).strip("_")
        yield from {simple, simple.replace("_", "-"), simple.replace("_", "")} - {""}


class _Walker:
    """Copies a request, its texts redacted."""

    def __init__(self, vault: Vault, known: _Known) -> None:
        self.vault, self.known = vault, known
        self.found: dict[str, int] = {}

    def text(self, text: str) -> str:
        spans = without_overlaps([*find(text), *self.known.find(text)])
        made, at = [], 0
        for span in spans:
            self.found[span.kind] = self.found.get(span.kind, 0) + 1
            made += [text[at : span.start], self.vault.hide(span.kind, text[span.start : span.end])]
            at = span.end
        return "".join(made) + text[at:]

    def value(self, value: Any, path: tuple[str, ...], record: bool = False) -> Any:
        """`record`: inside data of the person (arguments, results), where a field's name tells its kind."""
        if len(path) > DEEPEST:
            raise UserError(f"the request is nested deeper than {DEEPEST} levels.", field="messages")
        if isinstance(value, dict):
            return {
                self._key(key, path): self._field(key, each, (*path, key), record)
                for key, each in value.items()
            }
        if isinstance(value, list):
            return [self.value(each, (*path, ""), record) for each in value]
        if not isinstance(value, str):
            return self._number(value) if record else value
        return self._string(value, path)

    def _key(self, key: str, path: tuple[str, ...]) -> str:
        return self.text(key) if path else key

    def _field(self, key: str, value: Any, path: tuple[str, ...], record: bool) -> Any:
        kind = kind_of_key(key) if record else None
        if kind is not None and isinstance(value, str | int) and not isinstance(value, bool) and str(value):
            self.found[kind] = self.found.get(kind, 0) + 1
            return self.vault.hide(kind, str(value))
        if key in _FIXED and isinstance(value, str) and not record:
            return value
        if key in _NAME_FIELDS and isinstance(value, str) and not record:
            made = self.text(value)
            return made if len(made) <= 64 or len(value) > 64 else self.vault.hide("NAME", value)
        return self.value(value, path, record)

    def _number(self, value: Any) -> Any:
        """A number that is a card's or a phone's becomes a text."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        made = self.text(str(value))
        return value if made == str(value) else made

    def _string(self, value: str, path: tuple[str, ...]) -> str:
        head = value.lstrip()[:1]
        if head in ("{", "[") and len(value) < 1 << 20:  # JSON inside JSON: arguments, results
            try:
                inner = json.loads(value)
            except (ValueError, RecursionError):
                inner = None
            if isinstance(inner, dict | list):
                made = self.value(inner, path, True)
                return value if made == inner else json.dumps(made, ensure_ascii=False)
        return self.text(value)


def _texts(value: Any, depth: int = 0) -> Iterator[tuple[str, int]]:
    """Every text of a request, keys included, JSON inside texts read."""
    if depth > DEEPEST:
        return
    if isinstance(value, dict):
        for key, each in value.items():
            yield str(key), depth
            yield from _texts(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, depth + 1)
    elif isinstance(value, str):
        yield value, depth


def _joined(body: dict[str, Any]) -> Iterator[str]:
    """Texts that a reader sees as one though they come as several parts."""
    for message in _messages(body):
        parts = message.get("content")
        if isinstance(parts, list):
            yield "".join(part["text"] for part in parts if _is_text(part))


def _parts_joined(body: dict[str, Any], walker: _Walker) -> dict[str, Any]:
    """The request with text parts of a message joined where a value reaches over their border."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body
    made = []
    for message in messages:
        parts = message.get("content") if isinstance(message, dict) else None
        if isinstance(parts, list) and sum(map(_is_text, parts)) > 1 and _reaches_over(parts, walker):
            whole = "".join(part["text"] for part in parts if _is_text(part))
            rest = [part for part in parts if not _is_text(part)]
            message = {**message, "content": [{"type": "text", "text": whole}, *rest]}
        made.append(message)
    return {**body, "messages": made}


def _reaches_over(parts: list[Any], walker: _Walker) -> bool:
    borders, at = set(), 0
    for part in parts:
        if _is_text(part):
            at += len(part["text"])
            borders.add(at)
    whole = "".join(part["text"] for part in parts if _is_text(part))
    spans = [*find(whole), *walker.known.find(whole)]
    return any(span.start < border < span.end for span in spans for border in borders)


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    return [one for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []


def _is_text(part: Any) -> bool:
    said = isinstance(part, dict) and part.get("type") in ("text", "input_text")
    return said and isinstance(part.get("text"), str)


def _attachments(body: dict[str, Any]) -> set[str]:
    """Kinds of parts that are no text."""
    found = set()
    for message in _messages(body):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if not _is_text(part) and not (isinstance(part, dict) and part.get("type") == "refusal"):
                found.add(str(part.get("type") if isinstance(part, dict) else "unknown")[:40])
        found.update(name for name in ("audio", "file", "image") if message.get(name) is not None)
    return found


class AnswerRestorer:
    """Restores whole answers and streams of chunks, in OpenAI's forms."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._parts: dict[tuple[Any, ...], Restorer] = {}

    def whole(self, answer: Any, key: str = "") -> Any:
        """A whole answer with every text restored."""
        if isinstance(answer, dict):
            return {self._vault.restore(name): self.whole(each, name) for name, each in answer.items()}
        if isinstance(answer, list):
            return [self.whole(each, key) for each in answer]
        if isinstance(answer, str):
            return self._vault.restore(answer, inside_json=key == "arguments")
        return answer

    def chunk(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """A chunk of a stream; what waits of a choice comes with the chunk that ends it."""
        choices = []
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            made = dict(choice)
            for name in ("delta", "text"):
                if name in choice and choice[name] is not None:
                    made[name] = self._pieces(choice[name], (index, name), name)
            if choice.get("finish_reason") is not None:
                self._release(index, made)
            choices.append(made)
        return {**chunk, "choices": choices} if "choices" in chunk else chunk

    def left(self) -> dict[str, Any] | None:
        """A chunk with what still waits where a stream ended without saying so; None when nothing does."""
        choices: dict[int, dict[str, Any]] = {}
        for index in sorted({place[0] for place in self._parts}):
            choice: dict[str, Any] = {"index": index, "delta": {}, "finish_reason": None}
            self._release(index, choice)
            if choice["delta"] or choice.get("text"):
                choices[index] = choice
        return {"choices": list(choices.values())} if choices else None

    def _pieces(self, value: Any, place: tuple[Any, ...], key: str) -> Any:
        if isinstance(value, dict):
            return {name: self._pieces(each, (*place, name), name) for name, each in value.items()}
        if isinstance(value, list):
            made = []
            for number, each in enumerate(value):
                at = each.get("index", number) if isinstance(each, dict) else number
                made.append(self._pieces(each, (*place, at), key))
            return made
        if not isinstance(value, str) or key in _FIXED:
            return value
        if place not in self._parts:
            self._parts[place] = Restorer(self._vault, inside_json=key == "arguments")
        return self._parts[place].feed(value)

    def _release(self, index: int, choice: dict[str, Any]) -> None:
        for place in [place for place in self._parts if place[0] == index]:
            left = self._parts.pop(place).end()
            if left:
                _put(choice, place[1:], left)


def _put(target: Any, place: tuple[Any, ...], text: str) -> None:
    """Add `text` to what stands at `place`, making what is missing on the way."""
    name, *rest = place
    if isinstance(target, list):  # tool calls carry their number
        found = next((one for one in target if isinstance(one, dict) and one.get("index") == name), None)
        if found is None:
            found = {"index": name}
            target.append(found)
        _put(found, tuple(rest), text)
    elif not rest:
        target[name] = (target.get(name) or "") + text
    else:
        if target.get(name) is None:
            target[name] = [] if isinstance(rest[0], int) else {}
        _put(target[name], tuple(rest), text)
