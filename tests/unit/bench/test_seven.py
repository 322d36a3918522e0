"""The comparison of a deployed model: layers carried over by depth, arms, and what is refused."""

from pathlib import Path

import pytest

from safetykit.adapters.errors import UsageError
from safetykit.adapters.registry import get_method
from safetykit.bench.seven.seven import arms_for, imported
from safetykit.toolkit.comparison.entries import Defence

CAPTIONS = Path("captions.jsonl")


def test_on_the_papers_own_depth_layers_are_the_papers():
    arms = arms_for(32, CAPTIONS)
    assert arms["sasa-published"]["settings"] == {"safety-layer": 13, "fused-layer": 15}
    assert arms["tga-published"]["settings"]["layers"] == "10,11,12,13,14,15,16,17,18"
    assert arms_for(28, None)["care-published"]["settings"]["layers"] == "12,13,14"
    assert arms_for(8, None)["streaming-guard"]["settings"]["layers"] == "2,4,6"


@pytest.mark.parametrize("depth", [4, 28, 36, 80])
def test_layers_keep_their_place_at_every_depth(depth):
    for name, arm in arms_for(depth, CAPTIONS).items():
        given = arm["settings"].get("layers", arm["settings"].get("fused-layer"))
        if given is not None:
            layers = [int(one) for one in str(given).split(",")]
            assert layers == sorted(set(layers)) and layers[0] >= 0 and layers[-1] < depth, name


def test_every_arm_is_one_that_a_comparison_takes():
    for name, arm in arms_for(32, CAPTIONS).items():
        parts = arm.get("stack") or [{key: arm[key] for key in ("fit", "sweep", "settings") if key in arm}]
        Defence.model_validate({"stack": [{**part, "data": "reference"} for part in parts]})
        assert all(get_method(part["fit"]) for part in parts) and arm["source"], name


def test_arms_that_need_captions_are_left_out_or_refused_without_them():
    assert not {"tga", "tga-published"} & set(arms_for(32, None))
    with pytest.raises(UsageError, match="tga is fitted on captioned pictures"):
        arms_for(32, None, ["tga"])
    with pytest.raises(UsageError, match="There is no arm sassa"):
        arms_for(32, None, ["sassa"])


@pytest.mark.parametrize("given", [["figstep"], ["=there"], ["records=reference", "records=reference"]])
def test_a_benchmark_is_named_once_with_its_path(given, tmp_path):
    with pytest.raises(UsageError, match="is no KIND=PATH|is there twice"):
        imported(given, tmp_path, 8)
    assert not list(tmp_path.iterdir())
