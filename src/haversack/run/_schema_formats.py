"""The formats of JSON Schema that can be enforced, as patterns: each allows a part of what the format allows,
never more. Dates have days 1 to 28, or the longer ends of months that have them every year; times are in UTC
or with an offset; addresses and names use the letters, digits and marks that every reader takes."""

from __future__ import annotations

from functools import cache

from haversack.run._regex import Builder, Dfa, parse

_DATE = (
    r"(19|20)[0-9]{2}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
)
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,4}}\.[a-z]{{2,8}}"
_PATH = r"(/[A-Za-z0-9_.~-]*)*(\?[A-Za-z0-9_.~=&-]*)?(#[A-Za-z0-9_.~-]*)?"

FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_CLOCK}{_ZONE}$",
    "date-time": f"^{_DATE}T{_CLOCK}{_ZONE}$",
    "duration": r"^P([1-9][0-9]{0,3}D(T[1-9][0-9]{0,3}[HMS])?|T[1-9][0-9]{0,3}[HMS]|[1-9][0-9]{0,3}[WMY])$",
    "email": rf"^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+){{0,3}}@{_HOST}$",
    "hostname": f"^{_HOST}$",
    "ipv4": rf"^({_BYTE}\.){{3}}{_BYTE}$",
    "ipv6": r"^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$",
    "uri": rf"^https?://{_HOST}(:[1-9][0-9]{{1,3}})?{_PATH}$",
    "uuid": r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
}


@cache
def format_automaton(name: str) -> Dfa:
    """The automaton of a format, made once."""
    builder = Builder()
    return builder.automaton(parse(builder, FORMATS[name]))
