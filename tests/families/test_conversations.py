"""Conversations in every family are what transformers' own processor makes of them, pictures included."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from safetykit.adapters import UsageError
from safetykit.bench.zoo import NAMES, build
from safetykit.toolkit.model.chat import as_request
from safetykit.toolkit.model.inputs import InputProcessor

A, B = (
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for seed, (width, height) in enumerate([(40, 20), (18, 30)])
)
ASK = "what is this ?"


def text(words):
    return {"type": "text", "text": words}


def image(picture):
    return {"type": "image", "image": picture}


def turn(role, *parts):
    return {"role": role, "content": list(parts)}


EARLIER = [turn("user", image(A), text(ASK)), turn("assistant", text("a knife"))]
CONVERSATIONS = {
    "picture first": [turn("user", image(A), text(ASK))],
    "picture later": [turn("user", text(ASK), image(A))],
    "two pictures": [turn("user", image(A), text("and"), image(B), text("what ?"))],
    "earlier turn": [*EARLIER, turn("user", text("is it dangerous ?"))],
    "earlier and new": [*EARLIER, turn("user", image(B), text("is it dangerous ?"))],
    "system": [turn("system", text("be careful")), turn("user", image(A), text(ASK))],
    "system that is asked, too": [turn("system", text(ASK)), turn("user", image(A), text(ASK))],
    "text": [turn("user", text("hello"))],
}
CHATTING = [name for name in NAMES if not name.startswith("paligemma")]  # which has no chat


@pytest.fixture(scope="module")
def inputs_of(tmp_path_factory):
    made = {}

    def get(name: str) -> InputProcessor:
        if name not in made:
            made[name] = InputProcessor.from_pretrained(build(name, tmp_path_factory.mktemp("zoo") / name))
        return made[name]

    return get


@pytest.mark.parametrize("family", CHATTING)
def test_a_conversation_is_what_transformers_makes_of_it(inputs_of, family):
    inputs = inputs_of(family)
    for name, messages in CONVERSATIONS.items():
        wanted = inputs.processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="np"
        )
        found = inputs.prepare([as_request(messages)])
        assert found.input_ids.tolist() == np.asarray(wanted["input_ids"]).tolist(), name
        seen = {**found.pictures, **found.tokens}
        assert set(wanted) == {"input_ids", "attention_mask", *seen}, name
        for key, value in seen.items():
            np.testing.assert_allclose(value, np.asarray(wanted[key]), rtol=1e-6, atol=1e-6, err_msg=f"{name} {key}")


@pytest.mark.parametrize("family", CHATTING)
def test_a_given_answer_goes_on_where_transformers_lets_it(inputs_of, family):
    inputs, messages = inputs_of(family), [*CONVERSATIONS["system"], turn("assistant", text("a knife"))]
    wanted = inputs.processor.apply_chat_template(
        messages, tokenize=True, continue_final_message=True, return_dict=True, return_tensors="np"
    )
    assert inputs.prepare([as_request(messages)]).input_ids.tolist() == np.asarray(wanted["input_ids"]).tolist()


@pytest.mark.parametrize("family", sorted(set(NAMES) - set(CHATTING)))
def test_a_family_without_chat_takes_pictures_and_one_prompt(inputs_of, family):
    inputs = inputs_of(family)
    first, later = (inputs.prepare([as_request(CONVERSATIONS[f"picture {where}"])]) for where in ("first", "later"))
    assert np.array_equal(first.input_ids, later.input_ids)
    for name, refused in {
        "two pictures": "takes apart text and pictures",
        "earlier turn": "drops what the assistant said before: 'a knife'",
        "system": "no place for a system turn",
        "system that is asked, too": "no place for a system turn",
    }.items():
        with pytest.raises(UsageError, match=refused):
            inputs.prepare([as_request(CONVERSATIONS[name])])


# --- templates of other people

PARTS = "{% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}"
PICTURES_FIRST = (  # as that of LLaVA 1.5
    "{% for m in messages %}{{ m.role }}: {% for p in m.content if p.type == 'image' %}<image>{% endfor %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %} {% endfor %}assistant:"
)
SYSTEM_WITH_THE_FIRST = (  # as that of Gemma 3
    "{% set ns = namespace(before='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.before = m.content[0].text %}{% else %}{{ m.role }}: {{ ns.before }}{% set ns.before = '' %}"
    f"{PARTS} {{% endif %}}{{% endfor %}}assistant:"
)
SYSTEM_WITH_THE_LAST = (  # as those of Mistral
    "{% for m in messages if m.role != 'system' %}{{ m.role }}: "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content[0].text }} {% endif %}"
    f"{PARTS} {{% endfor %}}assistant:"
)
NO_SYSTEM = f"{{% for m in messages if m.role != 'system' %}}{{{{ m.role }}}}: {PARTS} {{% endfor %}}assistant:"
LAST_ONLY = f"{{% set m = messages[-1] %}}{PARTS} assistant:"
TEXT_ONLY = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %} "
    "{% endfor %}assistant:"
)
LAST_TEXT = "{% for m in messages %}{{ m.role }}: <image>{{ m.content[-1].text }} {% endfor %}assistant:"
BACKWARDS = f"{{% for m in messages | reverse %}}{{{{ m.role }}}}: {PARTS} {{% endfor %}}assistant:"
FORGETS_THOUGHTS = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}"
    "{{ p.text.split('THINK')[-1] if p.type == 'text' else '<image>' }}{% endfor %} {% endfor %}assistant:"
)
SAME = "be careful . what ?"


@pytest.mark.parametrize(
    ("template", "messages", "refused"),
    [
        (NO_SYSTEM, [turn("system", text("careful")), turn("user", text(SAME))], "no place for a system turn"),
        (LAST_ONLY, [*EARLIER, turn("user", text(f"{ASK} a knife"))], "drops what the user said before"),
        (LAST_ONLY, [turn("user", text("x")), turn("assistant", text("y")), turn("user", text("x y"))], "said before"),
        (TEXT_ONLY, [turn("user", image(A), text(ASK))], "shows 0 of the 1 pictures"),
        (LAST_TEXT, [turn("user", text("a"), image(A), text("a"))], "drops what the user said: 'a'"),
        (PICTURES_FIRST, CONVERSATIONS["two pictures"], "takes apart text and pictures"),
        (PICTURES_FIRST, [turn("user", text("look :"), image(A), text(ASK))], "takes apart text and pictures"),
        (BACKWARDS, [*EARLIER, turn("user", text(ASK))], "in another order"),
        (FORGETS_THOUGHTS, [turn("user", text("a THINK b"))], "drops what the user said: 'a THINK b'"),
    ],
)
def test_what_a_template_drops_or_moves_is_refused_by_name(templated, template, messages, refused):
    inputs = templated(template)
    for ask in (inputs.render, lambda request: inputs.prepare([request])):
        with pytest.raises(UsageError, match=refused):
            ask(as_request(messages))


@pytest.mark.parametrize("template", [PICTURES_FIRST, SYSTEM_WITH_THE_FIRST, SYSTEM_WITH_THE_LAST])
@pytest.mark.parametrize("name", sorted(set(CONVERSATIONS) - {"two pictures"}))
def test_what_a_template_puts_elsewhere_on_purpose_is_answered(templated, template, name):
    inputs, messages = templated(template), CONVERSATIONS[name]
    theirs = inputs.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert inputs.render(as_request(messages)) == theirs


def test_forms_are_looked_at_once(templated, monkeypatch):
    inputs = templated(PICTURES_FIRST)
    asked = as_request(CONVERSATIONS["system"])
    inputs.render(asked)
    family, renders = inputs.family, []
    monkeypatch.setattr(
        type(family), "render", lambda self, processor, turns: renders.append(turns) or f"be careful <image> {ASK}"
    )
    inputs.render(asked)
    assert len(renders) == 1
