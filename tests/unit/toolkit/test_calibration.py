"""Calibrating what is fitted already: a threshold in its stack, a strength from weak to strong."""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from safetykit.adapters import Adapter, Intervention, Site, UsageError
from safetykit.adapters.artifact.manifest import AdapterInfo, BaseInfo, DataInfo, DetectorInfo
from safetykit.adapters.budget import Budget
from safetykit.toolkit.calibration import Calibration, scaled
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.model.requests import Generation

BASE = BaseInfo(fingerprint="0" * 64, architecture="none", n_layers=2, d_model=4)
INFO = AdapterInfo(
    method="test",
    variant="test",
    sign_convention="none",
    hyperparameters={"false_positive_rate": 0.02},
    seed=None,
    base=BASE,
    data=DataInfo(sha256="0" * 64, counts={}),
    versions={},
)
THINGS = 100


def corrector(strength=1.0):
    tensors = {"basis": torch.eye(4)[:, :1], "mean": torch.zeros(4), "beta": torch.tensor(strength)}
    return Adapter(INFO, (Intervention("SubspaceProjection", Site.block(0), "all", "both", tensors),))


def detector(threshold=0.0):
    tensors = {"weight": torch.ones(4), "bias": torch.tensor(0.0)}
    item = Intervention("LinearProbe", Site.block(0), "last", "prefill", tensors)
    info = DetectorInfo(threshold=threshold, refusal="sorry.", refusal_token=1)
    return Adapter(INFO, (item,), detector=info)


def records():
    return tuple(
        Record(id=f"{label}{at}", prompt=str(at), response="yes", label=label, split="calibration", group=f"g{at}")
        for at in range(THINGS)
        for label in ("harmless", "harmful")
    )


@dataclass
class Planted:
    """A model whose harmless requests are refused by a corrector the sooner the lower their number; their number is
    their risk, too, and that of harmful ones lies above a hundred.

    Attributes:
        gentle: requests that the corrector costs at its full strength.
        alone: requests that the model refuses by itself, the last ones.
    """

    gentle: int
    alone: int = 0
    stack: tuple = ()

    @contextmanager
    def applied(self, *stack):
        self.stack = stack
        yield
        self.stack = ()

    def generate(self, requests, max_new_tokens):
        made = []
        for request in requests:
            number = int(request.prompt)
            strength = sum(float(one.interventions[0].tensors.get("beta", 0.0)) for one in self.stack)
            refused = number < strength * self.gentle or number >= THINGS - self.alone
            found = next((one.detector for one in self.stack if one.detector), None)
            scores = {} if found is None else {"risk": float(number) / 10 - found.threshold}
            refused = refused or scores.get("risk", -1.0) > 0
            made.append(Generation("sorry." if refused else "yes", (), scores))
        return made


def run(model, adapter, *beside, behind=(), **limits):
    budget = Budget(**(limits or {"max_over_refusal": 0.1}))
    return Calibration(model, adapter, beside, records(), budget, behind=behind).run()


@pytest.mark.parametrize(("gentle", "factor"), [(4, 1.0), (18, 0.5), (36, 0.25)])
def test_the_largest_strength_that_keeps_the_budget_is_written(gentle, factor):
    found = run(Planted(gentle), corrector(), max_over_refusal=0.2)
    assert float(found.interventions[0].tensors["beta"]) == factor
    assert found.info.hyperparameters["scaled_by"] == factor
    assert found.attachments["budget"]["chosen"] == f"{factor:g} times the strength"
    assert "false_positive_rate" not in found.info.hyperparameters


def test_what_the_model_refuses_by_itself_costs_nothing():
    assert run(Planted(3, alone=60), corrector()).info.hyperparameters["scaled_by"] == 1.0


def test_a_strength_of_which_nothing_is_left_is_refused():
    with pytest.raises(UsageError, match=r"Not even 0.25 times the strength keeps the budget"):
        run(Planted(90), corrector())


def test_a_threshold_counts_what_the_correctors_beside_it_cost():
    alone = run(Planted(0), detector()).detector.threshold
    beside = run(Planted(3), detector(), corrector()).detector.threshold
    assert alone < beside < 9.9
    with pytest.raises(UsageError, match="Not even a detector that refuses nothing keeps the budget"):
        run(Planted(40), detector(), corrector())


def test_what_runs_after_it_counts_as_what_runs_before_it():
    """Of 18 requests at the whole strength the budget leaves half where it is alone, and less beside another."""
    before = run(Planted(18), corrector(), corrector(0.25), max_over_refusal=0.2)
    after = run(Planted(18), corrector(), behind=(corrector(0.25),), max_over_refusal=0.2)
    scales = [one.info.hyperparameters["scaled_by"] for one in (before, after)]
    assert scales == [0.25, 0.25]
    assert [len(after.info.hyperparameters[name]) for name in ("calibrated_beside", "calibrated_before")] == [0, 1]
    assert "calibrated_before" not in before.info.hyperparameters


def test_utility_is_a_budget_of_its_own():
    assert run(Planted(4), corrector(), max_utility_loss=0.1).attachments["budget"]["kept"][0]["what"] == "utility loss"


def test_scaling_leaves_the_given_adapter_as_it_was():
    given = corrector(3.0)
    assert float(scaled(given, 0.5).interventions[0].tensors["beta"]) == 1.5
    assert float(given.interventions[0].tensors["beta"]) == 3.0
