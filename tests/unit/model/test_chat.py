"""Chat templates: Hugging Face's conventions, and templates that mean harm."""

from __future__ import annotations

import json
from typing import Any

import pytest

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.model import chat
from superinfer_trt.model.chat import ChatTemplate

USER = [{"role": "user", "content": "hi"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


def render(source: str, messages: Any = USER, special: dict[str, str] | None = None, **options: Any) -> str:
    return ChatTemplate(source, special or {}, **options).render(messages)


def test_the_generation_prompt_is_added_unless_declined() -> None:
    template = ChatTemplate("{{ messages[0].content }}{% if add_generation_prompt %}<go>{% endif %}", {})
    assert template.render(USER) == "hi<go>"
    assert template.render(USER, generation_prompt=False) == "hi"


def test_blocks_are_trimmed_as_hugging_face_does() -> None:
    source = (
        "{% for m in messages %}\n    {% if true %}\n[{{ m['role'] }}]\n    {% endif %}\n{% endfor %}\nend"
    )
    assert render(source, TALK) == "[system]\n[user]\n[assistant]\n[user]\nend"


def test_special_tokens_loop_controls_namespaces_and_macros() -> None:
    source = (
        "{{ bos_token }}{% set ns = namespace(n=0) %}{% macro tag(r) %}<{{ r | upper }}>{% endmacro %}"
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% if loop.index > 3 %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}"
        "{{ tag(m.role) ~ ns.n ~ ': ' + m.content.strip() }}{% endfor %}{{ eos_token }}"
    )
    assert (
        render(source, TALK, {"bos_token": "<s>", "eos_token": "</s>"}) == "<s><USER>1: a<ASSISTANT>2: b</s>"
    )


def test_tojson_is_hugging_faces_and_not_jinjas() -> None:
    assert render("{{ messages | tojson }}", [{"role": "user", "content": "<é&'>"}]) == (
        '[{"role": "user", "content": "<é&\'>"}]'
    )
    assert render("{{ messages[0] | tojson(indent=2) }}") == json.dumps(USER[0], indent=2)


def test_generation_blocks_are_their_body() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert render(source, TALK) == "Be brief.abc"


def test_the_date_is_there_only_when_injected() -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}no date{% endif %}"
    assert render(source) == "no date"
    assert render(source, strftime_now=lambda pattern: f"<{pattern}>") == "<%d %b %Y>"


def test_a_refusal_of_the_template_reaches_the_caller() -> None:
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}ok"
    assert render(source) == "ok"
    with pytest.raises(Refused, match="roles must alternate") as caught:
        render(source, TALK)
    assert (caught.value.code, caught.value.field) == (RefusalCode.INVALID, "messages")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one message"),
        ([{"role": "user"}], "message 0 has no text field 'content'"),
        ([*USER, {"content": "x"}], "message 1 has no text field 'role'"),
        ([{"role": 5, "content": "x"}], "no text field 'role'"),
        ([{"role": "r" * 65, "content": "x"}], "longer than 64"),
    ],
)
def test_messages_are_checked(messages: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        render("{{ messages | length }}", messages)


NESTED = ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{% if 1 %}" * 3000 + "{% endif %}" * 3000)


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ a", "{% endif %}", "{{ 'a' | nosuch }}", "{" * 300_000, *NESTED]
)
def test_a_template_that_does_not_compile_only_refuses_conversations(source: str) -> None:
    template = ChatTemplate(source, {})
    assert template.trouble
    with pytest.raises(Refused, match="chat template cannot be used") as caught:
        template.render(USER)
    assert caught.value.code is RefusalCode.UNSUPPORTED


def test_tools_and_documents_are_none() -> None:
    assert render("{{ tools is none }}{{ documents is none }}") == "TrueTrue"


DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
HOSTILE = {
    "a long output": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a huge range": "{% for i in range(10**9) %}{% endfor %}",
    "doubling by ~": DOUBLING + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by +": DOUBLING + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by output": DOUBLING + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "doubling by a macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "doubling by join": DOUBLING + "{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}",
    "doubling by str.join": DOUBLING + "{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
    "doubling by replace": DOUBLING + "{% set ns.x = ns.x | replace('a', 'aa') %}{% endfor %}",
    "doubling by str.replace": DOUBLING + "{% set ns.x = ns.x.replace('b', 'bb') %}{% endfor %}",
    "a mapped replace": "{{ [('a' * 4000)] | map('replace', 'a', 'b' * 4000) | first | length }}",
    "endless recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "multiplied text": "{{ ('a' * 1000000000) | length }}",
    "a multiplied list": "{{ ([1] * 1000000000) | length }}",
    "a huge power": "{{ 10 ** 10000000 }}",
    "a power tower": "{{ (9 ** 99) ** 99 }}",
    "squares": DOUBLING + "{% set ns.n = (ns.n or 9) * (ns.n or 9) %}{% endfor %}",
    "a wide format": "{{ '%1000000000d' % 5 }}",
    "str.format": "{{ '{:>1000000000}'.format(5) }}",
    "str.center": "{{ 'a'.center(1000000000) }}",
    "str.zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "the filter center": "{{ 'a' | center(1000000000) }}",
    "the filter format": "{{ '%1000000000d' | format(5) }}",
    "the filter indent": "{{ 'a' | indent(1000000000) }}",
    "a wide tojson": "{{ messages | tojson(indent=1000000000) }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "Python": "{{ ''.__class__.__mro__ }}",
    "a function's globals": "{{ raise_exception.__globals__['os'] }}",
    "a caller's message": "{{ messages[0].update({'role': 'x'}) }}",
    "an include": "{% include 'x' %}",
    "no such thing": "{{ nothing.at.all }}",
    "a division": "{{ 1 / 0 }}",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_hostile_template_is_stopped(case: str) -> None:
    with pytest.raises(Refused) as caught:
        ChatTemplate(HOSTILE[case], {}).render(USER)
    assert caught.value.field == "messages"


def test_rendered_length_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RENDERED_CHARACTERS_MAX", 100)
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert len(template.render([{"role": "user", "content": "x" * 100}])) == 100
    with pytest.raises(Refused, match="more than 100 characters"):
        template.render([{"role": "user", "content": "x" * 101}])


def test_a_rendering_does_not_use_up_the_next_ones_budget() -> None:
    template = ChatTemplate("{% for i in range(60000) %}{% endfor %}ok", {})
    assert [template.render(USER) for _ in range(3)] == ["ok"] * 3


def test_a_long_conversation_fits() -> None:
    source = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    talk = [{"role": "user", "content": "x" * 500}] * 2000
    assert render(source, talk) == ("<user>" + "x" * 500) * 2000
