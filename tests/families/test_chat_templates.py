"""Chat templates: a system turn has its place or is refused, and a given answer begins where the model would begin."""

import pytest

from safetykit.adapters import UsageError
from safetykit.toolkit.model.requests import Request

KNOWS = (
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}"
    "{{ part.get('text', '<image>') }}{% endfor %} | {% endfor %}assistant:"
)
IGNORES = "{% for m in messages if m['role'] == 'user' %}{{ m['content'][-1]['text'] }}{% endfor %}"


def test_the_system_turn_stands_before_the_request(templated):
    rendered = templated(KNOWS).render(Request("is it dangerous ?", system="be careful"))
    assert rendered == "system: be careful | user: is it dangerous ? | assistant:"


def test_without_one_nothing_is_added(templated):
    assert templated(KNOWS).render(Request("is it dangerous ?")) == "user: is it dangerous ? | assistant:"


def test_a_template_that_would_drop_it_is_refused(templated):
    with pytest.raises(UsageError, match="no place for a system turn"):
        templated(IGNORES).render(Request("is it dangerous ?", system="be careful"))


@pytest.mark.parametrize(
    ("end", "joined"),
    [("assistant:", "assistant: it is"), ("assistant: ", "assistant: it is"), ("assistant\n", "assistant\nit is")],
)
def test_an_answer_begins_where_the_template_lets_it(templated, end, joined):
    template = f"{{{{ messages[-1]['content'][-1]['text'] }}}} {{{{ {end!r} }}}}"  # a bare last new line would be cut
    rendered = templated(template).render(Request("is it ?", answer="it is"))
    assert rendered == f"is it ? {joined}"
