"""Where a text holds personal data: spans with a kind, found also behind the usual disguises.

Everything is looked for in a plain copy of the text (full-width letters made narrow, invisible characters
dropped, %40, \\u0040, &#64; and "(at)" read as what they stand for), whose spans are mapped back. Numbers
with a checksum are held against it. Runs of base64 and of hex digits that hold text are read, and hidden as a
whole when that text holds something. What only a reader of meaning would see (a person described without a
name) is not found: `--private FILE` takes a list of terms of one's own.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

CAP = r"[^\W\d_a-zß-öø-ÿ][\w'’-]*"
"""A word that begins with a capital."""
_NAME = rf"{CAP}(?:[ \u00a0]{CAP}){{0,3}}"
_DATE = (
    r"(?:\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|\d{1,2}\.? [A-Za-z]{3,9}\.?,? \d{4}"
    r"|[A-Za-z]{3,9}\.? \d{1,2},? \d{4})"
)
_RELATION = (
    r"(?:patient|client|customer|employee|applicant|tenant|wife|husband|daughter|son|mother|father|doctor"
    r"|boss|friend|colleague|neighbou?r)"
)
_SELF = r"(?:my name is|name's|i am called|call me|ich hei(?:ß|ss)e|mein name ist|je m'appelle|me llamo)"
_STREET = r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Boulevard|Blvd|Way|Court|Ct|Place|Square|Terrace)"


class Span(NamedTuple):
    """Characters `start` to `end` of a text are personal; `kind` names the placeholder."""

    kind: str
    start: int
    end: int


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def luhn(text: str) -> bool:
    """The checksum of card numbers, over 13 to 19 digits."""
    digits = [int(digit) for digit in _digits(text)]
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def iban(text: str) -> bool:
    """The checksum of bank accounts (ISO 13616)."""
    joined = re.sub(r"\s", "", text).upper()
    turned = joined[4:] + joined[:4]
    return 15 <= len(joined) <= 34 and int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def _address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _phone(text: str) -> bool:
    count = len(_digits(text))
    if re.fullmatch(_DATE, text.strip()) or not 7 <= count <= 15:
        return False
    grouped = re.fullmatch(r"\d{3}[-. /]\d{3,4}[-. ]\d{4}", text)
    return text.startswith("+") or "(" in text or bool(grouped) or (text[0] == "0" and count >= 9)


# (kind, pattern, check): the group `it`, where there is one, is what is personal.
_PATTERNS: tuple[tuple[str, str, Callable[[str], bool] | None], ...] = (
    ("SECRET", r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{0,8000}?(?:-----END [A-Z ]{0,30}-----|\Z)", None),
    ("SECRET", r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}", None),
    ("SECRET", r"\b(?:sk|pk|rk)[-_][\w-]{16,}|\bgh[pousr]_\w{20,}", None),
    ("SECRET", r"\bAKIA[0-9A-Z]{16}\b|\bxox[abpr]-[\w-]{10,}", None),
    ("SECRET", r"(?i:bearer)\s+(?P<it>[\w.~+/=-]{16,})", None),
    (
        "SECRET",
        r"(?i:\b(?:password|passwd|passphrase|pwd|pin|secret|token|api[_ -]?key|passwort|kennwort)\b)"
        r"[\"']?\s*(?::=|[:=]|\bis\b|\bist\b)\s*[\"']?(?P<it>[^\s\"',;<>]{3,200})",
        None,
    ),
    ("SECRET", r"\b[a-z][a-z0-9+.-]{1,15}://[^\s/:@]{1,64}:[^\s/@]{1,64}@[\w.-]{1,253}(?::\d{1,5})?", None),
    ("EMAIL", r"[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}", None),
    ("EMAIL", r"(?i:[\w.+-]{1,64} at [\w-]{1,63}(?: dot [\w-]{2,24}){1,4})\b", None),
    ("IBAN", r"\b[A-Za-z]{2}\d{2}(?:[ ]?[A-Za-z0-9]{4}){2,7}(?:[ ]?[A-Za-z0-9]{1,4})?\b", iban),
    ("CARD", r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w])", luhn),
    ("ID", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", None),
    (
        "ID",
        r"(?i:\b(?:passport|ssn|social security|tax id|licen[sc]e|patient|case|member|insurance)"
        r"(?: (?:number|no\.?|id|nr\.?))?\s*[:#]?\s+)(?P<it>[A-Z]{0,3}\d[A-Z\d-]{4,19})\b",
        None,
    ),
    ("MAC", r"(?<![\w:])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![\w:])", None),
    ("IP", r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]\d|\w)", _address),
    ("IP", r"(?<![\w:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", _address),
    ("PLACE", r"(?<![\w.])-?\d{1,2}\.\d{3,}\s*[,;]\s*-?\d{1,3}\.\d{3,}(?![\w.])", None),
    ("PLACE", rf"\b\d{{1,5}}[A-Za-z]? (?:{CAP} ){{1,4}}{_STREET}\b\.?", None),
    ("PLACE", r"\b[A-ZÄÖÜ][\w-]{1,40}(?:stra(?:ß|ss)e|str\.|weg|platz|gasse|allee) \d{1,4} ?[a-z]?\b", None),
    ("PHONE", r"(?<![\w.])(?:\+|00)?\(?\d(?:[ ().\-/]{0,2}\d){6,14}(?!\w)", _phone),
    (
        "PHONE",
        r"(?i:\b(?:phone|mobile|cell|tel|telefon|call|text|whatsapp|fax)\b[^\d\n+]{0,20})"
        r"(?P<it>\+?\d[\d ()/-]{5,18}\d)",
        None,
    ),
    (
        "BIRTH",
        rf"(?i:\b(?:born|birth|birthday|dob|geboren|geburtsdatum)\b[^\d\n]{{0,16}})(?P<it>{_DATE})",
        None,
    ),
    ("PERSON", rf"(?i:\b{_SELF})\s+(?P<it>{_NAME})", None),
    ("PERSON", rf"\b(?:I am|I'm|I’m|[Tt]his is|[Ii]ch bin) (?P<it>{CAP} {CAP}(?: {CAP})?)", None),
    ("PERSON", rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Herr|Frau|Señora?|Mme)\.? (?P<it>{_NAME})", None),
    ("PERSON", rf"\b(?:Dear|Hi|Hello|Hallo|Liebe[r]?|Cher) (?P<it>{_NAME})(?=[,!:\n])", None),
    (
        "PERSON",
        rf"(?i:\b(?:regards|sincerely|yours|cheers|signed|gr(?:ü|ue)(?:ß|ss)en?)\b[,:]?)\s+(?P<it>{_NAME})",
        None,
    ),
    (
        "PERSON",
        rf"(?i:\b{_RELATION})(?:'s name is| named| called|,|:| is)? (?P<it>{CAP}(?: {CAP})+)",
        None,
    ),
)
_COMPILED = tuple((kind, re.compile(pattern, re.DOTALL), check) for kind, pattern, check in _PATTERNS)

KEYS: dict[str, str] = {
    **dict.fromkeys(("name", "fullname", "firstname", "lastname", "surname", "givenname"), "PERSON"),
    **dict.fromkeys(
        ("patient", "contact", "author", "recipient", "sender", "customer", "employee"), "PERSON"
    ),
    **dict.fromkeys(("email", "mail", "emailaddress", "to", "cc", "bcc", "from"), "EMAIL"),
    **dict.fromkeys(("phone", "phonenumber", "mobile", "telephone", "tel", "fax"), "PHONE"),
    **dict.fromkeys(
        ("address", "street", "streetaddress", "postcode", "zip", "zipcode", "location"), "PLACE"
    ),
    **dict.fromkeys(("ssn", "passport", "taxid", "nationalid", "license", "patientid"), "ID"),
    **dict.fromkeys(("iban", "account", "accountnumber"), "IBAN"),
    **dict.fromkeys(("card", "cardnumber", "creditcard", "pan", "cvv", "cvc"), "CARD"),
    **dict.fromkeys(("dob", "birthdate", "dateofbirth", "birthday"), "BIRTH"),
    **dict.fromkeys(("password", "passwd", "pwd", "secret", "token", "apikey", "pin"), "SECRET"),
    **dict.fromkeys(("username", "login", "userid", "handle"), "PERSON"),
}
"""Fields of records whose value is personal whatever it says; written without case, dashes, underscores."""
_FIELD = re.compile(
    r"""["'](?P<key>[A-Za-z][\w -]{1,24})["']\s*(?::|=>?)\s*"""
    r"""(?P<quote>["'])(?P<it>(?:\\.|(?!(?P=quote))[^\\\n]){1,300})(?P=quote)"""
)
_ASSIGNED = re.compile(
    r"""\b(?P<key>[A-Za-z]\w{2,24})\s*=\s*(?P<quote>["'])(?P<it>[^"'\n]{1,300})(?P=quote)"""
)


def kind_of_key(key: str) -> str | None:
    """The kind of a field by its name, or None when the name says nothing: `firstName`, `card_number`."""
    return KEYS.get(re.sub(r"[^a-z]", "", key.lower()))


def find(text: str) -> list[Span]:
    """Every span of `text` that is personal, in order, none overlapping; the longer wins."""
    plain, starts, ends = plain_copy(text)
    found = [Span(kind, starts[a], ends[b - 1]) for kind, a, b in _candidates(plain) if b > a]
    found += _encoded(text)
    return without_overlaps(found)


def without_overlaps(spans: Iterable[Span]) -> list[Span]:
    """The spans in order; of two that overlap the longer stays."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start - one.end, one.start)):
        if all(span.end <= other.start or span.start >= other.end for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda one: one.start)


def _candidates(plain: str) -> Iterator[tuple[str, int, int]]:
    for kind, pattern, check in _COMPILED:
        for match in pattern.finditer(plain):
            group = "it" if "it" in pattern.groupindex else 0
            if check is None or check(match[group].strip()):
                yield kind, match.start(group), match.end(group)
    for pattern in (_FIELD, _ASSIGNED):
        for match in pattern.finditer(plain):
            named = kind_of_key(match["key"])
            if named is not None and match["it"].strip():
                yield named, match.start("it"), match.end("it")


_HIDDEN = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad"))
_CODED = re.compile(
    r"%(?P<url>[2-7][0-9A-Fa-f])|\\u00(?P<json>[2-7][0-9A-Fa-f])"
    r"|&#(?P<dec>\d{2,3});|&#x(?P<hex>[2-7][0-9A-Fa-f]);"
    r"|(?P<at>&commat;|\s{0,2}[\[({<]\s?(?i:at|arroba|@)\s?[\])}>]\s{0,2})"
    r"|(?P<dot>&period;|\s{0,2}[\[({<]\s?(?i:dot|punkt|\.)\s?[\])}>]\s{0,2})"
)


def plain_copy(text: str) -> tuple[str, list[int], list[int]]:
    """(copy, starts, ends): character i of the copy stands for text[starts[i]:ends[i]]."""
    if text.isascii() and not any(mark in text for mark in "%\\&[({<"):
        return text, list(range(len(text))), list(range(1, len(text) + 1))
    made: list[str] = []
    starts: list[int] = []
    ends: list[int] = []

    def put(letters: str, start: int, end: int) -> None:
        for letter in letters:
            made.append(letter)
            starts.append(start)
            ends.append(end)

    at = 0
    for match in _CODED.finditer(text):
        for index in range(at, match.start()):
            _put_letter(text[index], index, put)
        put(_meaning(match), match.start(), match.end())
        at = match.end()
    for index in range(at, len(text)):
        _put_letter(text[index], index, put)
    return "".join(made), starts, ends


def _put_letter(letter: str, index: int, put: Callable[[str, int, int], None]) -> None:
    if letter.isascii():
        put(letter, index, index + 1)
    elif ord(letter) not in _HIDDEN:
        put(unicodedata.normalize("NFKC", letter), index, index + 1)


def _meaning(match: re.Match[str]) -> str:
    if match["at"]:
        return "@"
    if match["dot"]:
        return "."
    if match["dec"]:
        code = int(match["dec"])
        return chr(code) if 32 <= code < 127 else match[0]
    return chr(int(match["url"] or match["json"] or match["hex"], 16))


_BLOB = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{16,}={0,2}(?![\w=])")
_DATA = re.compile(r"data:[\w.+-]{1,64}/[\w.+-]{1,64};base64,[A-Za-z0-9+/=\s]{16,}")


def _encoded(text: str) -> Iterator[Span]:
    """Runs of base64 or hex whose text holds something personal, and files inside addresses."""
    for match in _DATA.finditer(text):
        yield Span("DATA", match.start(), match.end())
    for match in _BLOB.finditer(text):
        for said in _decoded(match[0]):
            if any(True for _ in _candidates(said)):
                yield Span("DATA", match.start(), match.end())
                break


def _decoded(blob: str) -> Iterator[str]:
    readings: list[bytes] = []
    if re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", blob):
        readings.append(bytes.fromhex(blob))
    body = blob.rstrip("=").replace("-", "+").replace("_", "/")
    with contextlib.suppress(binascii.Error, ValueError):
        readings.append(base64.b64decode(body + "=" * (-len(body) % 4), validate=True))
    for raw in readings:
        try:
            said = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if all(letter.isprintable() or letter.isspace() for letter in said):
            yield said
