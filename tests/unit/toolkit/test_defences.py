"""Defences ask as their papers say: in which words, in which order, of what, and how often."""

from dataclasses import replace
from typing import get_args

import pytest
from PIL import Image

from safetykit.adapters.errors import BatchRefused, RequestRefused, UsageError
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.defences.ecso import is_yes
from safetykit.toolkit.defences.names import DefenceName
from safetykit.toolkit.defences.registry import DEFENCES, defended, require_defensible
from safetykit.toolkit.defences.system_prompt import SHIELD
from safetykit.toolkit.evaluation.evaluate import Decision, evaluate
from safetykit.toolkit.model.requests import Generation, Request, Turn

PICTURE = Image.new("RGB", (8, 8), "red")
SHOWN, TOLD = Request("how do i use it ?", PICTURE, system="be brief"), Request("what is a kite ?")


class Scripted:
    """Answers by what is asked: a harmful answer to pictures, which it owns up to, and a refusal of text."""

    def __init__(self, verdict="Yes."):
        self.asked, self.lengths, self.verdict = [], [], verdict

    def generate(self, requests, max_new_tokens=32):
        self.asked.append(list(requests))
        self.lengths.append(max_new_tokens)
        return [self._answer(one) for one in requests]

    def _answer(self, request):
        if "Say yes or no" in request.prompt:
            return Generation(self.verdict, ())
        if "Describe the image" in request.prompt:
            return Generation("a bomb on a table", ())
        if request.pictures:
            return Generation("light the fuse .", (), {"0.score": 1.0})
        return Generation("sorry , no .", (), {"0.score": -1.0})


def test_every_name_that_can_be_typed_is_a_defence():
    assert set(get_args(DefenceName)) == set(DEFENCES)
    with pytest.raises(UsageError, match="no defence 'esco'. Did you mean 'ecso'"):
        defended(Scripted(), "esco")


def test_the_shield_stands_between_two_copies_of_the_question_in_the_users_turn():
    model = Scripted()
    answers = defended(model, "system-prompt").generate([SHOWN, TOLD], 7)
    ((shown, told),) = model.asked
    assert shown.prompt == f"how do i use it ?\n{SHIELD}\nhow do i use it ?"
    assert (shown.pictures, shown.system) == (SHOWN.pictures, "be brief")
    assert told is TOLD and model.lengths == [7]
    assert [one.calls for one in answers] == [1, 1]


def test_the_shield_goes_into_the_last_turn_of_a_conversation():
    turns = (Turn("user", (PICTURE, "hello")), Turn("assistant", ("hi",)), Turn("user", ("and this ?",)))
    model = Scripted()
    defended(model, "system-prompt").generate([Request("and this ?", PICTURE, turns=turns)])
    ((asked,),) = model.asked
    assert asked.turns[:2] == turns[:2] and SHIELD in asked.turns[2].text and asked.pictures == (PICTURE,)


def test_ecso_judges_its_answer_and_answers_again_with_eyes_closed():
    model = Scripted()
    shown, told = defended(model, "ecso").generate([SHOWN, TOLD], 20)
    first, judged, described, again = model.asked
    assert first == [SHOWN, TOLD]
    assert [one.pictures for one in judged] == [SHOWN.pictures], "text alone is not judged"
    assert "how do i use it ?" in judged[0].prompt and "light the fuse ." in judged[0].prompt
    assert described[0].pictures == SHOWN.pictures and "how do i use it ?" in described[0].prompt
    assert not again[0].pictures and "a bomb on a table" in again[0].prompt and "how do i use it ?" in again[0].prompt
    assert all(one.system == "be brief" for one in (judged[0], described[0], again[0]))
    assert model.lengths == [20, 4, 64, 20]
    assert (shown.text, shown.calls, shown.scores) == ("sorry , no .", 4, {"0.score": 1.0})
    assert (told.text, told.calls) == ("sorry , no .", 1)


def test_ecso_keeps_an_answer_that_the_model_calls_harmless():
    model = Scripted(verdict="no , yes is not what i would say")
    (shown,) = defended(model, "ecso").generate([SHOWN])
    assert (shown.text, shown.calls, len(model.asked)) == ("light the fuse .", 2, 2)
    assert is_yes(" Yes, it is.") and is_yes("YES") and not is_yes("yesterday") and not is_yes("")


def test_ecso_leaves_a_detectors_refusal_alone():
    class Refusing(Scripted):
        def _answer(self, request):
            return Generation("no .", (), {"risk": 2.0}, refused=True)

    (shown,) = defended(Refusing(), "ecso").generate([SHOWN])
    assert shown == Generation("no .", (), {"risk": 2.0}, refused=True, calls=1)


@pytest.mark.parametrize("several", [True, False])
def test_a_request_that_cannot_be_asked_again_is_named_by_its_place(several):
    class Short(Scripted):
        def generate(self, requests, max_new_tokens=32):
            if "Describe" in requests[0].prompt:
                error = RequestRefused(0, len(requests), requests[0].prompt, UsageError("Too long.", "Shorten it."))
                raise BatchRefused({0: error}, [None]) if several else error
            return super().generate(requests, max_new_tokens)

    with pytest.raises(RequestRefused, match="Request 2 of 2") as caught:
        defended(Short(), "ecso").generate([TOLD, SHOWN])
    assert caught.value.at == 1


def record(carrier, label="harmful"):
    return Record(id=carrier, prompt="what ?", label=label, carrier=carrier, split="test", image=_PNG[carrier])


_PNG = {"text": None, "image": "x.png"}


def test_records_without_pictures_are_refused():
    with pytest.raises(UsageError, match="The defence ecso does nothing for these records: none has a picture"):
        require_defensible("ecso", [record("text")])
    require_defensible("ecso", [record("text"), record("image")])


def test_an_evaluation_says_which_defence_it_was_and_what_it_cost(tmp_path):
    PICTURE.save(tmp_path / "x.png")
    records = [record("text", "harmless"), record("image").model_copy(update={"image": str(tmp_path / "x.png")})]
    found = evaluate(defended(Scripted(), "ecso"), records)
    assert (found.defence, found.calls) == ("ecso", 2.5)
    assert [one.calls for one in found.decisions] == [1, 4]
    bare = evaluate(Scripted(), records)
    assert (bare.defence, bare.calls) == ("", 1.0)
    older = {name: value for name, value in bare.decisions[0].model_dump().items() if name != "calls"}
    assert Decision.model_validate(older).calls == 1


def test_turns_that_were_dropped_for_one_of_its_questions_are_told_with_the_answer():
    class Dropping(Scripted):
        def _answer(self, request):
            return replace(super()._answer(request), dropped_turns=2 if request.pictures else 0)

    (answer,) = defended(Dropping(), "ecso").generate([SHOWN])
    assert (answer.text, answer.calls, answer.dropped_turns) == ("sorry , no .", 4, 2)
