"""A checkpoint's chat template is rendered apart: as transformers does, and never without end."""

import os
import threading
import time
from types import SimpleNamespace

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from safetykit.adapters import InvalidArtifact, UsageError
from safetykit.toolkit.families import templates
from safetykit.toolkit.families.templates import rendered

TURNS = [
    {"role": "system", "content": [{"type": "text", "text": 'be <kind> & "brief" \ud800 é'}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "line\nnext"}]},
]
SPECIAL = {"bos_token": "<s>", "additional_special_tokens": ["<image>"]}
LOOP = "{% for message in messages %}"


def processor(template):
    return SimpleNamespace(chat_template=template, tokenizer=SimpleNamespace(special_tokens_map=SPECIAL))


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}"
        + LOOP
        + "\n  {% if loop.first %}\nS{% endif %}{{ message['content'] | tojson }}\n{% endfor %}",
        LOOP
        + "{% if message.role == 'system' %}{% continue %}{% endif %}{{ message.content[1] }}{% break %}{% endfor %}",
        "{% set ns = namespace(n=0, self=1) %}" + LOOP + "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ ns.self }}",
        "{% generation %}{% set x = 1 %}{{ messages | length }}{% endgeneration %}{{ x is defined }}",
        "{{ dict(a=1) | tojson(indent=2) }}{{ dict.fromkeys('ab') }}{{ strftime_now('%%') }}{{ tools is none }}",
        "{{ additional_special_tokens }}{% if add_generation_prompt %}ASSISTANT:{% endif %}{{ missing }}",
    ],
)
def test_a_template_gives_what_transformers_gives(template):
    given = {"chat_template": template, "add_generation_prompt": True, **SPECIAL}
    (wanted,), _ = render_jinja_template(conversations=[TURNS], **given)
    assert rendered(processor(template), TURNS) == wanted == rendered(processor({"default": template}), TURNS)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "longer than 0.5 seconds"),
        ("{{ 9 ** 99999999 }}", "longer than 0.5 seconds"),
        ("{{ 'x' * 10 ** 10 }}", "MiB"),
        ("{{ 'x'.center(10 ** 10) }}", "MiB"),
        ("{{ '%1000000000d' % 1 }}", "MiB"),
        (
            "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
            "MiB|longer",
        ),
        ("{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "SecurityError"),
        ("{{ messages[7].role.name }}", "UndefinedError"),
    ],
)
def test_a_template_without_end_or_sense_is_refused_in_two_sentences(template, words, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    with pytest.raises(InvalidArtifact, match=words):
        rendered(processor(template), TURNS)
    monkeypatch.setattr(templates, "SECONDS", 60)
    assert rendered(processor("{{ messages[1].role }}"), TURNS) == "user"  # and the next one is rendered


def test_what_a_template_says_of_a_request_is_the_requests_fault():
    with pytest.raises(UsageError, match="refuses the request: roles must alternate"):
        rendered(processor("{{ raise_exception('roles must alternate') }}"), TURNS)
    for none in (None, {"tool_use": "x"}):
        with pytest.raises(UsageError, match="no chat template"):
            rendered(processor(none), TURNS)


def test_one_endless_template_harms_no_request_beside_it(monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 1.0)
    found, endless = {}, processor("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")

    def ask(name, one):
        try:
            found[name] = rendered(one, TURNS)
        except InvalidArtifact as error:
            found[name] = str(error)

    asked = [("endless", endless), *((n, processor("{{ messages[1].role }}")) for n in range(6))]
    threads = [threading.Thread(target=ask, args=one) for one in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "longer than" in found.pop("endless") and set(found.values()) == {"user"}


def test_an_interrupted_rendering_leaves_no_answer_to_the_next(monkeypatch):
    first, second = processor("first"), processor("second")
    assert rendered(first, TURNS) == "first"

    def interrupted(timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr(templates._running[0], "_lines", SimpleNamespace(get=interrupted, put=lambda line: None))
    with pytest.raises(KeyboardInterrupt):
        rendered(first, TURNS)
    assert rendered(second, TURNS) == "second"


def test_a_request_without_end_is_refused_before_it_is_rendered():
    turn = {"role": "user", "content": [{"type": "text", "text": "x" * templates.MAX_CHARACTERS}]}
    with pytest.raises(UsageError, match="more than 8388608 characters"):
        rendered(processor("{{ messages }}"), [turn])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_asks_a_worker_of_its_own():
    one = processor("{{ messages[1].role }}")
    assert rendered(one, TURNS) == "user"
    worker = templates._running[0]
    child = os.fork()
    if not child:
        os._exit(0 if not templates._running and rendered(one, TURNS) == "user" else 1)
    deadline = time.monotonic() + 60
    while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done == (child, 0)
    assert rendered(one, TURNS) == "user" and templates._running[0] is worker
