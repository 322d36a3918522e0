"""What a fit cannot do is refused before a model is loaded, and few records are said to be few."""

import json

import pytest

OPENINGS = {"harmful": "how do i use", "harmless": "what is"}
CARRIERS = {"text": None, "image": "p.png"}


def record(split, label, at, carrier="text"):
    return {
        "id": f"{split}-{label}-{carrier}-{at}",
        "prompt": f"{OPENINGS[label]} {' '.join(['this'] * (at + 1))} ?",
        "label": label,
        "carrier": carrier,
        "split": split,
        "response": "x",
        **({"image": CARRIERS[carrier]} if CARRIERS[carrier] else {}),
    }


@pytest.fixture
def fit(call, random_checkpoint, tmp_path):
    """`safetykit fit METHOD` on so many records of each (split, label, carrier)."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")

    def run(method, counts, *options):
        rows = [record(split, label, at, carrier) for split, label, carrier, n in counts for at in range(n)]
        (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = "reference" if method == "tga" else tmp_path / "records.jsonl"
        return call("fit", method, random_checkpoint, "--data", data, "-o", tmp_path / "out", *options)

    return run


def both(n=4, carrier="text"):
    return [(split, label, carrier, n) for split in ("fit", "calibration") for label in ("harmful", "harmless")]


def harmless(n=4):
    return [(split, "harmless", "text", n) for split in ("fit", "calibration")]


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        ("vlm-guard", ["--layers", "99"], "--layers names layer 99"),
        ("vlm-guard", ["--layers", "99", "--sweep"], "--layers names layer 99"),
        ("care", ["--layers", "2,8"], "--layers names layer 8"),
        ("care", ["--textual-layers", "7-9"], "--textual-layers names layer 9"),
        ("sasa", ["--safety-layer", "2", "--fused-layer", "9"], "--fused-layer names layer 9"),
        ("one-pass", ["--fused-layer", "8"], "--fused-layer names layer 8"),
        ("tga", ["--layers", "8"], "--layers names layer 8"),
    ],
)
def test_a_layer_that_the_decoder_lacks_is_refused_in_the_plan(fit, method, options, named):
    code, _, err = fit(method, [*both(), *both(carrier="image")], *options)
    assert code == 2
    assert f"{named}: the decoder has 8 layers." in err and "the last one is 7" in err
    assert "loading" not in err


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        *((name, ["--seed", "-1"], "--seed cannot be -1. It is at least 0.") for name in ("one-pass", "sasa", "tga")),
        ("streaming-guard", ["--seed", 2**32], "--seed cannot be 4294967296. It is at most 4294967295."),
        *(
            (name, ["--alpha", "0"], "--alpha 0.0 changes nothing. Give another number.")
            for name in ("care", "vlm-guard")
        ),
        ("one-pass", ["--refusal", " "], "The refusal is empty."),
    ],
)
def test_numbers_and_texts_that_could_only_fail_later_are_refused_in_the_plan(fit, method, options, message):
    code, _, err = fit(method, [*both(), *both(carrier="image")], *options)
    assert code == 2
    assert message in err.replace("\nnext: ", "")
    assert "loading" not in err


@pytest.mark.parametrize(
    ("method", "counts", "options", "message"),
    [
        ("vlm-guard", harmless(), [], "The fit split holds no harmful text record"),
        ("vlm-guard", harmless(), ["--sweep"], "The fit split holds no harmful text record"),
        ("vlm-guard", both()[:2], [], "no record of split calibration"),
        ("vlm-guard", both(1), ["--rank", "3"], "--rank cannot be 3: the fit split gives 2 differences"),
        ("vlm-guard", both(), ["--gate", "whitened"], "needs harmless records with pictures in the fit split"),
        ("care", harmless(), [], "The fit split holds no harmful record"),
        ("care", both(), [], "The fit split holds no malicious record with a picture"),
        ("care", both(), ["--contrast", "carrier"], "The fit split holds no harmful record with a picture"),
        ("care", both(1, "image"), [], "needs at least 2 records, and there are 1"),
        ("care", both(4, "image"), ["--k", "999"], "k = 999 directions were asked for"),
        ("sasa", harmless(), [], "The fit split holds no harmful record"),
        ("one-pass", both()[:3], [], "The calibration split holds no harmless record"),
    ],
)
def test_records_that_nothing_can_be_learnt_from_are_refused_in_the_plan(fit, method, counts, options, message):
    code, _, err = fit(method, counts, *options)
    assert code == 2
    assert message in err
    assert "loading" not in err


def test_few_records_are_said_to_be_few(fit):
    code, _, err = fit("vlm-guard", [*both(6), ("fit", "harmless", "image", 30)], "--layers", 3)
    assert code == 0
    few = "6 harmful in split calibration, 6 harmless in split calibration, 6 harmful in split fit. A share of 6"
    assert f"warning: few records: {few} is known to about ±31 points only" in err


def test_a_share_of_the_records_that_leaves_few_is_said(fit):
    code, _, err = fit("one-pass", both(40), "--fraction", "0.0001", "--refusal", "sorry", "--fused-layer", 3)
    assert code == 0
    assert "warning: few records: 1 harmful in split fit, 1 harmless in split fit." in err


def test_a_false_positive_rate_finer_than_the_records_is_said(fit):
    options = ("--refusal", "sorry", "--fused-layer", 3, "--false-positive-rate")
    code, _, err = fit("one-pass", both(40), *options, "0.001")
    assert code == 0 and "few records" not in err
    assert "--false-positive-rate 0.001 is less than one of 40 harmless calibration records" in err
    code, _, err = fit("one-pass", both(40), *options, "0.05", "--overwrite")
    assert code == 0 and "less than one" not in err


@pytest.mark.parametrize("option", ["--no-resume", "--resume"])
def test_an_option_that_cannot_act_is_called_as_it_was_typed(fit, option):
    code, _, err = fit("tga", [], option, "--variant", "closed-form")
    assert code == 2 and f"{option} does nothing with --variant closed-form." in err


def test_an_evaluation_of_few_records_says_so(call, random_checkpoint, tmp_path):
    data = tmp_path / "records.jsonl"
    data.write_text(json.dumps(record("test", "harmless", 0)))
    code, out, err = call("eval", random_checkpoint, "--data", data, "--max-new-tokens", 2, "--json")
    assert code == 0 and json.loads(out)["split"] == "test"
    assert "warning: few records: 1 harmless in split test. A share of 1 is known to about" in err


@pytest.mark.parametrize(
    ("method", "options", "site"),
    [
        ("care", ["--site", "mlp", "--layers", "2"], "decoder.layers.2.mlp"),
        ("nullsteer", ["--site", "attn", "--layers", "3"], "decoder.layers.3.attn"),
    ],
)
def test_branches_that_the_blocks_lack_are_refused_in_the_plan(fit, method, options, site, monkeypatch):
    from safetykit.toolkit.model import planned_sites
    from safetykit.toolkit.model.quantised import skeleton

    def convolving(folder):
        """The model with blocks of one part alone."""
        model = skeleton(folder)
        for layer in model.get_decoder().layers:
            layer.mixer, layer.mlp = layer.mlp, None
        return model

    monkeypatch.setattr(planned_sites, "skeleton", convolving)
    code, _, err = fit(method, [*both(8), *both(8, carrier="image")], *options)
    assert code == 2
    assert f"has no attention and MLP branches, so no site {site}.\nnext:  Use the site of a whole block." in err
    assert "loading" not in err
