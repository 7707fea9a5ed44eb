"""Chat templates that try to escape, to fill memory or to never end: each is refused in a sentence, soon."""

from __future__ import annotations

import resource
import time

import pytest

from haversack.core.errors import UserError
from haversack.models import _template_sandbox
from haversack.models._chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hello"}]
ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__base__ }}",
    "{{ messages['__class__']['__mro__'] }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ namespace().__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ dict.mro() }}",
    "{{ dict.fromkeys('a') }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format_map(messages[0]) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{% set messages[0].role = 'x' %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'base' %}",
    "{{ lipsum.__globals__ }}",
    "{{ config }}{{ config.items() }}",
    "{{ (1).__class__ }}{{ 1.0.as_integer_ratio() }}",
    "{{ 'a'.encode('utf-8').decode() }}",
    "{{ messages|map('attr', '__class__')|list }}",
    "{{ caller.__class__ }}",
]
EATERS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999)|list %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999)|map('string')|join %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * 'x' }}",
    "{{ [0] * 10**9 }}",
    "{{ 'x'|center(10**9) }}{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.zfill(10**9) }}",
    "{{ 'x'|indent(10**9) }}{{ '\n'|indent('x' * 10**6) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ ('x' * 10**6).replace('x', 'y' * 10**6) }}",
    "{{ ('x' * 10**6)|replace('', 'y' * 10**6) }}",
    "{{ ('x' * 10**6).join(('y' * 10**6)|list) }}",
    "{{ range(99999)|join('x' * 10**6) }}",
    "{{ 9 ** 9 ** 9 ** 9 }}{{ 10 ** (10 ** 10) }}",
    "{% set n = namespace(x=2) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(200) }}",
    "{% macro m(n) %}{% if n %}{% for i in range(9) %}{{ m(n - 1) }}{% endfor %}{% endif %}{% endmacro %}"
    "{{ m(50) }}",
    "{% macro m() %}"
    + "x" * 90_000
    + "{% endmacro %}{% for i in range(99999) %}{% set x = m() %}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}" + "x" * 90_000 + "{% endfor %}{% endset %}",
    "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% for i in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "{% call m() %}{% endcall %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "-" * 100_000 + "1 }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "x" * 300_000,
    "{{ messages|tojson(indent=10**9) }}",
    "{{ strftime_now('%A' * 10**6) }}",
    "{{ [[1] * 99999]|sum(start=[]) }}",
    "{{ lipsum(10**6) }}",
    "{{ raise_exception('no ' * 10**6) }}",
    "{% for",
    "{{ undefined_thing.field }}",
    "{{ 1 / 0 }}",
    "{{ messages[0]['content'] + 1 }}",
]


def render(source: str) -> str:
    return ChatTemplate({"default": source}, {"bos_token": "<s>"}, "hostile").render(MESSAGES)


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_of_python_is_reached(source: str) -> None:
    try:
        text = render(source)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert all(word not in text for word in ("class", "object", "module", "root:", "built-in", "function"))


@pytest.mark.parametrize("source", EATERS, ids=range(len(EATERS)))
def test_time_and_memory_are_bounded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_template_sandbox, "MOST_SECONDS", 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    with pytest.raises(UserError) as refused:
        render(source)
    assert time.monotonic() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


def test_a_template_cannot_change_the_messages() -> None:
    messages = [{"role": "user", "content": "a", "tool_calls": None}]
    ChatTemplate({"default": "{% set m = messages[0] %}{{ m.get('role') }}"}, {}).render(messages)
    assert messages == [{"role": "user", "content": "a", "tool_calls": None}]
