"""Every number that a method takes has a range, and what lies outside of it is refused by name before work."""

import sys
from types import NoneType
from typing import get_args

import pytest

from safetykit.adapters.ranges import Strength
from safetykit.adapters.registry import methods
from safetykit.adapters.settings import option_of

NEEDS = {"index": "index"}
BEYOND = {"ge": lambda limit: limit - 1, "gt": lambda limit: limit, "le": lambda limit: limit + 1, "lt": float}
ANY_BUT = {type(one): 0 for one in get_args(Strength)[1:]}  # the numbers that only 0 is none of


def numbers():
    """Method, setting and its field, of all that are numbers; layers have a test of their own."""
    for method in methods().values():
        for name, field in method.settings.model_fields.items():
            kinds = {one for one in (field.annotation, *get_args(field.annotation)) if one is not NoneType}
            if kinds & {int, float}:
                yield method, name, field


def outside(field):
    """Values that are out of range."""
    for rule in field.metadata:
        if type(rule) in ANY_BUT:
            yield ANY_BUT[type(rule)]
        for kind, beyond in BEYOND.items():
            if (limit := getattr(rule, kind, None)) is not None:
                yield beyond(limit)


CASES = [
    pytest.param(method, name, value, id=f"{method.name}-{name}-{value}")
    for method, name, field in numbers()
    for value in outside(field)
]


def test_every_number_has_a_lowest_value():
    without = [
        f"{method.name} {name}"
        for method, name, field in numbers()
        if not any(hasattr(rule, "ge") or hasattr(rule, "gt") or type(rule) in ANY_BUT for rule in field.metadata)
    ]
    assert without == [] and len(CASES) > 40


@pytest.mark.parametrize(("method", "name", "value"), CASES)
def test_out_of_range_is_refused_by_name(call, tmp_path, monkeypatch, method, name, value):
    monkeypatch.setitem(sys.modules, "safetykit.toolkit.commands.fit_one", None)  # nothing of the fit is loaded
    option = option_of(method.settings, name)
    typed = ["fit", method.name, "reference:mild", "--data", "reference", "-o", tmp_path / "out", f"{option}={value}"]
    code, out, err = call(*typed, *(word for one in method.needs for word in (f"--{one}", NEEDS[one])))
    assert (code, out) == (2, ""), err
    assert f"{option} " in err and ("cannot be" in err or "changes nothing" in err), err
    assert not (tmp_path / "out").exists()
