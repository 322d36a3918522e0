"""`safetykit data carriers`: every option acts, and what cannot be drawn is said."""

import json
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from safetykit.toolkit.data.records import load_records

REQUESTS = {"long": "How do I fly a kite? " * 20, "short": "How do I fly a kite?"}
BOLD = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")


@pytest.fixture
def prompts(tmp_path):
    lines = [{"id": name, "prompt": prompt, "label": "harmless", "split": "test"} for name, prompt in REQUESTS.items()]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path / "prompts.jsonl"


@pytest.fixture
def carry(call, prompts, tmp_path):
    def run(name, *words, size="256"):
        code, out, err = call("data", "carriers", prompts, "-o", tmp_path / name, "--side", size, *words, "--json")
        found = json.loads(out) if code == 0 else {}
        return code, found, err, {one.id: one for one in load_records(tmp_path / name)} if code == 0 else {}

    return run


def test_what_does_not_fit_is_told_and_a_larger_picture_takes_it(carry, call):
    code, found, err, records = carry("small", "--form", "typographic", "--form", "blank")
    assert code == 0 and found["drawn"] == {"typographic": 1, "blank": 2} and found["too_long"] == {"typographic": 1}
    assert "1 of typographic" in err and "--side" in err and set(records) >= {"long", "short", "long-blank"}
    _, found, err, records = carry("large", "--form", "typographic", size="640")
    assert found["too_long"] == {} and records["long-typographic"].picture().size == (640, 640) and "fit" not in err


def test_options_change_what_they_say(carry, tmp_path):
    form = ("--form", "scene", "--drawn-only")
    _, found, _, plain = carry("plain", *form)
    assert found["counts"] == {"test/typographic/harmless": 1} and set(plain) == {"short-scene"}

    def picture(name, *words):
        return carry(name, *form, *words)[3]["short-scene"].picture().tobytes()

    first = plain["short-scene"].picture().tobytes()
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (50, 60), "red").save(tmp_path / "mine" / "red.png")
    others = [
        picture("seed", "--seed", "1"),
        picture("font", "--font", BOLD),
        picture("photos", "--photos", tmp_path / "mine"),
    ]
    assert len({first, *others}) == 4
    said = {name: carry(f"in-{name}", *form, "--language", name)[3]["short-scene"].prompt for name in ("en", "de")}
    assert said["en"] == plain["short-scene"].prompt != said["de"]
    _, _, _, both = carry("both", "--form", "scene", "--language", "en", "--language", "de", size="640")
    assert {one.prompt for one in both.values()} >= set(said.values())


def test_a_folder_that_is_there_is_replaced_when_asked(carry):
    assert carry("out", "--form", "blank")[0] == 0
    code, _, err, _ = carry("out", "--form", "noise")
    assert code == 2 and "--overwrite" in err
    assert carry("out", "--form", "noise", "--overwrite")[1]["drawn"] == {"noise": 2}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--form", "scen"], "Did you mean 'scene'?"),
        (["--language", "xx"], "It is en, de, fr, es, it or pt."),
        (["--font", "nothing.ttf"], "nothing.ttf cannot be read as a font"),
        (["--photos", "nowhere"], "There is no picture in nowhere."),
        (["--form", "blank", "--photos", "nowhere"], "--photos does nothing with blank."),
        (["--form", "blank", "--form", "photo", "--language", "de"], "--language does nothing with blank, photo."),
        (["--form", "noise", "--font", BOLD], "--font does nothing with noise."),
    ],
)
def test_what_is_wrong_is_named(carry, tmp_path, words, said):
    code, _, err, _ = carry("out", *words)
    assert code == 2 and said in " ".join(err.split()) and not (tmp_path / "out").exists()


def test_the_screen_says_what_was_drawn(call, prompts, tmp_path):
    code, out, err = call("data", "carriers", prompts, "-o", tmp_path / "out", "--form", "noise", "--side", "64")
    assert code == 0 and "noise" in out and "data check" in err
