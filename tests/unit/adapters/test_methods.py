"""Every setting of every method: a wrong value, a misspelt name and a setting without effect are refused, everywhere.

The registry is enumerated, so a method that is added is tested with it.
"""

import dataclasses
import importlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from planted import PlantedExample, PlantedModel, planted_records
from planted_tokens import PlantedTokens, token_records

from safetykit import cli
from safetykit.adapters import Adapter, InvalidArtifact, Method, Site, UsageError, VLMGuard, get_method, register
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.artifact.store import save_adapter
from safetykit.adapters.care.settings import CARE
from safetykit.adapters.method import load
from safetykit.adapters.registry import methods
from safetykit.adapters.settings import POSITIVE, about, choices, option_of, plain_type

EVERY = [(name, field) for name, method in methods().items() for field in method.settings.model_fields]
CONDITIONAL = [(name, field) for name, field in EVERY if about(methods()[name].settings, field).acts]


def field_of(name, field):
    return methods()[name].settings.model_fields[field]


def wrong_values(name, field):
    """Values that the field cannot have, with what the error says."""
    found = field_of(name, field)
    if known := choices(found):
        yield known[0][:-1] + "X" if len(known[0]) > 3 else known[0] + "x", f"{known[0]!r}"
        yield known[-1].upper(), f"Did you mean {known[-1]!r}"
    elif "Layers" in str(methods()[name].settings.__annotations__.get(field)):
        yield "-1", "names no layers"
        yield "decoder.layers.3", "names no layers"
        yield "5-3", "names no layers"
    elif plain_type(found) in (int, float):
        for limit in found.metadata:
            for bound, beyond in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 1)):
                if (value := getattr(limit, bound, None)) is not None:
                    yield value + beyond, "cannot be"


def context(name, field):
    """Settings in which the field acts."""
    conditions = about(methods()[name].settings, field).acts
    return {other: enabling(name, other, wanted) for other, wanted in conditions[0].items()} if conditions else {}


def enabling(name, other, wanted):
    if wanted is POSITIVE:
        return 0.5
    return wanted[-1] if isinstance(wanted, tuple) else wanted


def idling(name, other, wanted):
    """A value of ``other`` with which a condition on it is not met; None if all are."""
    if wanted is POSITIVE:
        return 0
    if isinstance(wanted, bool):
        return not wanted
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    return next((value for value in choices(field_of(name, other)) if value not in wanted), None)


def options(name, settings):
    """Settings as one types them."""
    typed = []
    for field, value in settings.items():
        spelled = option_of(methods()[name].settings, field)
        if value is False and field_of(name, field).default is False:
            continue  # such a switch has no negative
        if isinstance(value, bool):
            typed.append(spelled if value else f"--no-{spelled.removeprefix('--')}")
        else:
            typed += [spelled, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return typed


@pytest.fixture
def fit(capsys, tmp_path):
    """`safetykit fit NAME` on a model and data that are not there: exit code and stderr."""

    def run(name, *typed):
        needs = {"index": ("--index", tmp_path / "index")}
        needed = [part for need in methods()[name].needs for part in needs[need]]
        call = ["fit", name, "nowhere", "--data", "nothing", "-o", tmp_path / "out", *needed, *typed]
        with pytest.raises(SystemExit) as caught:
            cli.main([str(part) for part in call])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert not (tmp_path / "out").exists()
        return caught.value.code, " ".join(captured.err.split())

    return run


@pytest.mark.parametrize(("name", "field"), EVERY)
def test_a_value_the_setting_cannot_have_is_refused_in_python_and_from_the_command_line(fit, name, field):
    settings, also = methods()[name].settings, context(name, field)
    for value, words in wrong_values(name, field):
        with pytest.raises(UsageError) as caught:
            settings(**also, **{field: value})
        assert words in str(caught.value)
        code, told = fit(name, *options(name, also), *options(name, {field: value}))
        assert code == 2
        assert words in told
        with pytest.raises(UsageError):
            settings.recorded({field: value})


@pytest.mark.parametrize(("name", "field"), EVERY)
def test_a_misspelt_name_is_refused_with_the_right_one(fit, name, field):
    settings, spelled = methods()[name].settings, option_of(methods()[name].settings, field)
    if len(field) > 1:
        with pytest.raises(UsageError, match=f"has no setting '{field}s'. Did you mean '{field}'"):
            settings(**{f"{field}s": 1})
    if len(spelled) > len("--k"):
        code, told = fit(name, f"{spelled}s", "1")
        assert code == 2
        assert "No such option" in told and spelled in told.replace(f"{spelled}s", "", 1)


@pytest.mark.parametrize(("name", "field"), CONDITIONAL)
def test_a_setting_that_cannot_act_is_refused_by_name(fit, name, field):
    settings, found = methods()[name].settings, field_of(name, field)
    value = choices(found)[-1] if choices(found) else {bool: True, int: 1, float: 0.5, str: "1"}[plain_type(found)]
    for other, wanted in about(settings, field).acts[0].items():
        unmet = idling(name, other, wanted)
        if unmet is None:
            continue
        combination = {other: unmet}
        for further in context(name, other):  # what the other one needs to act itself
            if further not in combination:
                combination = {**context(name, other), **combination}
        with pytest.raises(UsageError) as caught:
            settings(**combination, **{field: value})
        assert f"{field} does nothing with " in str(caught.value) and other in str(caught.value)
        code, told = fit(name, *options(name, combination), *options(name, {field: value}))
        assert code == 2
        assert f"{option_of(settings, field)} does nothing with " in told and option_of(settings, other) in told


def test_the_settings_of_the_faults_are_refused():
    for kind, given, words in (
        ("vlm-guard", {"gate": "papr"}, "Did you mean 'paper'"),
        ("vlm-guard", {"direction": "SVD"}, "Did you mean 'svd'"),
        ("vlm-guard", {"false_positive_rate": 0.1}, "does nothing with gate paper"),
        ("vlm-guard", {"variant": "orthogonal", "alpha": 2.0}, "does nothing with variant orthogonal"),
        ("care", {"visual_share": 0.5}, "does nothing with selection none"),
        ("care", {"variant": "official", "shrinkage": "oas"}, "does nothing with variant official"),
        ("sasa", {"variant": "publishd"}, "Did you mean 'published'"),
        ("tga", {"variant": "closed-form", "rank": 8}, "does nothing with variant closed-form"),
        ("tga", {"ridge": 1.0}, "does nothing with variant lora"),
    ):
        with pytest.raises(UsageError, match=words):
            methods()[kind].settings(**given)


@pytest.mark.parametrize(
    ("name", "typed", "words"),
    [
        ("tga", ["--index", "i", "--no-retrieval"], "--index does nothing with --retrieval off"),
        ("tga", ["--index", "i", "--variant", "closed-form"], "--index does nothing with --variant closed-form"),
        ("sasa", ["--safety-layer", "-1"], "--safety-layer cannot be -1"),
        ("one-pass", ["--fused-layer", "-2"], "--fused-layer cannot be -2"),
        ("vlm-guard", ["--layers", "-1"], "'-1' names no layers"),
        ("vlm-guard", ["--variant", "steer", "--site", "mlp"], "--site does nothing with --variant steer"),
        ("vlm-guard", ["--sweep", "--hold"], "--hold does nothing with --phase prefill"),
        ("vlm-guard", ["--sweep", "--text-model", "m"], "--text-model does nothing"),
        ("vlm-guard", ["--sweep", "--gate", "papr"], "Did you mean 'paper'"),
    ],
)
def test_inputs_and_layers_that_cannot_be_are_refused_before_anything_is_loaded(fit, name, typed, words):
    code, told = fit(name, *typed)
    assert code == 2
    assert words in told


def test_negative_layers_are_refused_wherever_a_layer_is_named(planted, records):
    with pytest.raises(UsageError, match="no decoder layer -1"):
        Site.block(-1)
    with pytest.raises(UsageError, match="layers cannot be -1"):
        VLMGuard(layers=(-1,)).fit(planted, records)
    with pytest.raises(UsageError, match="Unknown site"):
        Site.parse("decoder.layers.-1")


def test_a_manifest_that_records_what_cannot_be_is_refused(planted, records, tmp_path):
    adapter = VLMGuard(layers=(1,)).fit(planted, records)
    wrong = {**adapter.info.hyperparameters, "gate": "papr"}
    info = adapter.info.model_copy(update={"hyperparameters": wrong})
    folder = save_adapter(replace(adapter, info=info), tmp_path / "a")
    with pytest.raises(InvalidArtifact, match="gate cannot be 'papr'.*Did you mean 'paper'"):
        Adapter.load(folder)


def tensors(adapter):
    return [
        (str(item.site), item.scope, item.phase, item.gate, item.op, item.tensors) for item in adapter.interventions
    ]


def differs(one, other):
    """Whether two adapters do something else."""
    first, second = tensors(one), tensors(other)
    if [item[:-1] for item in first] != [item[:-1] for item in second]:
        return True
    return any(
        left[-1][name].shape != right[-1][name].shape or not torch.equal(left[-1][name], right[-1][name])
        for left, right in zip(first, second, strict=True)
        for name in left[-1]
    )


OTHER = {"alpha": 3.0, "beta": 0.5, "visual_share": 0.5, "textual_share": 0.7, "false_positive_rate": 0.3}
OTHER |= {
    "hold": True,
    "site": "mlp",
    "gate": "calibrated",
    "shrinkage": "oas",
    "textual_layers": (2,),
    "scope": "last",
}


ACCEPTING = "allow_constant_gate"  # changes no adapter, and lets some be made: test_deciding.py


@pytest.mark.parametrize("field", [field for name, field in CONDITIONAL if name == "vlm-guard" and field != ACCEPTING])
def test_a_setting_of_vlm_guard_that_is_accepted_changes_the_adapter(planted, field):
    records = planted_records(12)
    records += [PlantedExample(f"seen{index}", "harmless", carrier="image") for index in range(6)]
    also = {**context("vlm-guard", field), "layers": (1,)}
    plain = VLMGuard(**also).fit(planted, records)
    assert differs(plain, VLMGuard(**also, **{field: OTHER[field]}).fit(planted, records))


@pytest.mark.parametrize("field", [field for name, field in CONDITIONAL if name == "care" and field != "with_response"])
def test_a_setting_of_care_that_is_accepted_changes_the_adapter(field):
    model, records = PlantedTokens(), token_records(30)
    also = {**context("care", field), "layers": (1,), "rank": 2}
    plain = CARE(**also).fit(model, records)
    other = {**OTHER, "site": "attn"}[field]
    assert differs(plain, CARE(**also, **{field: other}).fit(model, records))


def test_a_method_that_has_the_name_of_another_is_refused():
    guard = get_method("vlm-guard")
    assert register(guard) is guard, "registering twice changes nothing"
    with pytest.raises(TypeError, match="Two methods are called 'vlm-guard'"):
        register(dataclasses.replace(guard, title="another"))
    with pytest.raises(TypeError, match="no Method"):
        register(VLMGuard)


def test_a_method_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="no method 'vlmguard'. Did you mean 'vlm-guard'"):
        get_method("vlmguard")
    assert get_method("TGA retrieval").name == "retrieval", "as manifests record it"


@pytest.mark.parametrize("method", methods().values(), ids=list(methods()))
def test_what_a_method_declares_is_there(method: Method):
    for part in (method.fit, method.usual, method.map, method.sweep, method.sections):
        load(part)
    for module in method.ops:
        importlib.import_module(module)
    assert method.summary.endswith(".")
    json.loads(canonical_json(method.settings().values()))


def test_declarations_need_no_torch():
    code = "import sys; from safetykit.adapters.registry import methods; methods(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_planted_model_has_every_site():
    """The generic tests above read other outputs than blocks."""
    (_, states), *_ = PlantedModel().states([(planted_records(1)[0],)], [Site("mlp", 1)])
    assert list(states) == [Site("mlp", 1)]
