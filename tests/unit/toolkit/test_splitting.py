"""Splits keep together what belongs together, in the shares that were asked for, the same for one seed."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from safetykit.adapters.errors import UsageError
from safetykit.toolkit.data.record import Record
from safetykit.toolkit.data.splitting import split_records

SHARES = {"fit": 0.6, "calibration": 0.2, "test": 0.2}


def some(pairs=150, groups=60, categories=12):
    """Pairs of three carriers, of which one is rare; a category has five groups."""
    found = []
    for at in range(pairs):
        carrier = ("text", "image", "typographic")[0 if at % 10 else 2] if at % 2 == 0 else "image"
        group = at % groups
        for label, other in (("harmful", "harmless"), ("harmless", "harmful")):
            found.append(
                Record(
                    id=f"{at}-{label}",
                    prompt=f"a request {at}",
                    label=label,
                    split="test",
                    carrier=carrier,
                    pair=f"{at}-{other}",
                    group=f"group {group}",
                    category=f"category {group % categories}",
                )
            )
    return found


def parts(records, drawn, name):
    found = defaultdict(set)
    for record, split in zip(records, drawn, strict=True):
        found[name(record)].add(split)
    return found


@pytest.mark.parametrize("by", ["group", "category", "pair"])
@pytest.mark.parametrize("seed", range(3))
def test_what_belongs_together_stays_together(by, seed):
    records = some()
    drawn = split_records(records, SHARES, by=by, seed=seed)
    kept = {"pair": lambda one: one.id.partition("-")[0], "group": lambda one: one.group}
    kept["category"] = lambda one: one.category
    for name in {"pair": ("pair",), "group": ("pair", "group"), "category": ("pair", "group", "category")}[by]:
        assert all(len(splits) == 1 for splits in parts(records, drawn, kept[name]).values())
    if by == "pair":
        assert any(len(splits) > 1 for splits in parts(records, drawn, kept["group"]).values())
    if by == "group":
        assert any(len(splits) > 1 for splits in parts(records, drawn, kept["category"]).values())


@pytest.mark.parametrize("seed", range(5))
def test_every_kind_gets_its_share(seed):
    records = some()
    drawn = split_records(records, SHARES, seed=seed)
    kinds = Counter(f"{record.carrier}/{record.label}" for record in records)
    found = Counter((f"{record.carrier}/{record.label}", split) for record, split in zip(records, drawn, strict=True))
    for kind, count in kinds.items():
        for split, share in SHARES.items():
            assert abs(found[kind, split] - share * count) <= 3, (kind, split)


def test_one_seed_draws_one_split_and_the_order_of_pairs_does_not_part_them():
    records = some()
    assert split_records(records, SHARES, seed=1) == split_records(records, SHARES, seed=1)
    assert split_records(records, SHARES, seed=1) != split_records(records, SHARES, seed=2)
    harmful_first = sorted(records, key=lambda record: record.label)
    drawn = split_records(harmful_first, SHARES, by="pair")
    assert all(len(one) == 1 for one in parts(harmful_first, drawn, lambda one: one.id.partition("-")[0]).values())


def test_a_split_of_no_share_gets_nothing_and_every_other_something():
    records = some(pairs=3, groups=3)
    assert set(split_records(records, {"fit": 0.98, "calibration": 0.01, "test": 0.01})) == set(SHARES)
    assert set(split_records(records, {"fit": 0.5, "calibration": 0, "test": 0.5})) == {"fit", "test"}


def test_too_few_units_are_refused():
    records = [record.model_copy(update={"category": "one"}) for record in some(pairs=4)]
    with pytest.raises(UsageError, match="joins make 1 unit of the records, which cannot be 3 splits"):
        split_records(records, SHARES, by="category")


def lone(at, **changes):
    given = {"id": f"{at}", "prompt": f"a request {at}", "label": ("harmful", "harmless")[at % 2], "split": "test"}
    return Record(**{**given, **changes})


@pytest.mark.parametrize(
    ("made", "by", "joined"),
    [
        (lambda at: {"prompt": f"a request {at % 9}"}, "pair", lambda one: one.prompt),
        (lambda at: {"image": f"{at % 9}.png"}, "group", lambda one: one.image),
        (lambda at: {"image": f"{at % 9}.png", "prompt": f"a {at % 2}"}, "pair", lambda one: (one.image, one.prompt)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_equal_requests_and_equal_pictures_stay_together(made, by, joined, seed):
    records = [lone(at, **made(at)) for at in range(90)]
    drawn = split_records(records, SHARES, by=by, seed=seed)
    assert all(len(splits) == 1 for splits in parts(records, drawn, joined).values()) and len(set(drawn)) == 3


def test_one_prompt_for_all_pictures_and_records_without_a_category_join_nothing():
    records = [lone(at, image=f"{at}.png", prompt="what is this?") for at in range(10)]
    assert Counter(split_records(records, SHARES, by="category")) == {"fit": 6, "calibration": 2, "test": 2}
    with pytest.raises(UsageError, match="make 1 unit of"):
        split_records(records, SHARES, pictures=["one"] * 10)
