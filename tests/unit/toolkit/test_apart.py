"""Which tags an evaluation reports apart."""

from __future__ import annotations

from safetykit.toolkit.evaluation.result import Decision, tabulate


def decision(at, carrier, *tags, outcome="answered"):
    return Decision(id=str(at), carrier=carrier, label="harmful", tags=tags, text="a text", outcome=outcome, scores={})


def test_forms_marks_and_what_was_made_are_reported_apart_and_other_tags_are_not():
    found = tabulate(
        [
            decision(0, "typographic", "scene", "topic:use"),
            decision(1, "typographic", "typographic", outcome="refused"),
            decision(2, "text+image", "blank", "apart:german"),
            decision(3, "text", "look-alike", "mine"),
            decision(4, "adversarial", "attack:pgd-16", "from:text", outcome="refused"),
        ]
    )
    shares = {row.group: row.metrics["attack_success"].rate for row in found}
    assert shares == {
        "all": 0.6,
        "text": 1,
        "text/look-alike": 1,
        "typographic": 0.5,
        "typographic/typographic": 0,
        "typographic/scene": 1,
        "text+image": 1,  # all of it is blank: a line of its own would say the same again
        "text+image/apart:german": 1,
        "adversarial": 0,
        "adversarial/attack:pgd-16": 0,
        "adversarial/from:text": 0,
    }
