"""`safetykit index` and `safetykit fit retrieval` on the reference VLM, as a user types them."""

import json

import pytest

from safetykit import cli


@pytest.fixture
def call(capsys):
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def run(*arguments):
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture
def captions(tmp_path):
    texts = ["a picture of a brown dagger.", "a picture of a grey sword.", "a bow and a band."]
    texts.append(texts[0])
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_an_index_is_built_and_searched_by_text(call, captions, random_checkpoint, tmp_path):
    code, out, _ = call("index", "build", captions, "-o", tmp_path / "index", "--model", random_checkpoint, "--json")
    made = json.loads(out)
    assert code == 0 and (made["count"], made["duplicates"], made["dimension"]) == (3, 1, 128)
    assert made["embedder"]["site"] == "decoder.layers.5"
    code, out, _ = call(
        "index",
        "search",
        tmp_path / "index",
        "--text",
        "a picture of a grey sword.",
        "--model",
        random_checkpoint,
        "--json",
    )
    found = json.loads(out)
    assert code == 0 and len(found) == 3
    assert found[0]["text"] == "a picture of a grey sword." and found[0]["score"] == pytest.approx(1, abs=1e-5)
    code, out, _ = call("index", "search", tmp_path / "index", "--text", "a bow", "--model", random_checkpoint, "-k", 1)
    assert code == 0 and len(out.splitlines()) == 1


def test_a_query_is_fitted_and_a_picture_finds_its_caption(call, tmp_path):
    index, adapter = tmp_path / "index", tmp_path / "adapter"
    assert call("index", "build", "reference", "-o", index, "--model", "reference:mild")[0] == 0
    code, out, _ = call(
        "fit", "retrieval", "reference:mild", "--index", index, "--data", "reference", "-o", adapter, "--k", 2, "--json"
    )
    fitted = json.loads(out)
    assert code == 0 and fitted["variant"] == "top-k" and fitted["hyperparameters"]["k"] == 2
    rate = fitted["accuracy"]["unseen_picture"]
    assert rate["n"] == 648 and rate["top5"] > rate["top1"] > 300  # by chance: about 5
    from safetykit.toolkit.reference.captions import captions_file

    first = json.loads(captions_file().read_text().splitlines()[0])
    picture = captions_file().parent / first["image"]
    code, out, _ = call(
        "index", "search", index, "--image", picture, "--adapter", adapter, "--model", "reference:mild", "--json"
    )
    assert code == 0 and first["caption"] in [item["text"] for item in json.loads(out)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "{captions}", "-o", "{out}"], "Pass --model or --encoder"),
        (["build", "{captions}", "-o", "{out}", "--model", "m", "--encoder", "e"], "Pass --model or --encoder"),
        (["build", "{captions}", "-o", "{out}", "--encoder", "nowhere"], "no encoder folder at nowhere"),
        (["build", "{captions}", "-o", "{out}", "--encoder", "e", "--site", "projector"], "no decoder sites"),
        (["build", "{captions}", "-o", "{out}", "--model", "m", "--keys", "int8"], "--keys cannot be 'int8'"),
        (["build", "nothing.jsonl", "-o", "{out}", "--model", "m"], "no captions at nothing.jsonl"),
        (["search", "nowhere", "--text", "x", "--model", "m"], "no index folder at nowhere"),
        (["search", "nowhere"], "Pass --text or --image"),
        (["search", "nowhere", "--text", "x", "--image", "y"], "Pass --text or --image"),
    ],
)
def test_mistakes_are_explained(call, captions, tmp_path, arguments, message):
    filled = [part.format(captions=captions, out=tmp_path / "out") for part in arguments]
    code, _, err = call("index", *filled)
    assert code == 2 and message in err
    assert not (tmp_path / "out").exists()


def test_a_picture_is_not_searched_for_without_its_query(call, captions, random_checkpoint, tmp_path):
    call("index", "build", captions, "-o", tmp_path / "index", "--model", random_checkpoint)
    code, _, err = call("index", "search", tmp_path / "index", "--image", "x.png", "--model", random_checkpoint)
    assert code == 2 and "--adapter (from `safetykit fit retrieval`)" in err


def test_an_index_of_another_model_is_not_searched_by_text(call, captions, random_checkpoint, tmp_path):
    call("index", "build", captions, "-o", tmp_path / "index", "--model", random_checkpoint)
    code, _, err = call("index", "search", tmp_path / "index", "--text", "a bow", "--model", "reference:mild")
    assert code == 2 and "Use the embedder that made it" in err


def test_a_folder_that_is_taken_is_kept(call, captions, random_checkpoint, tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "mine").write_text("x")
    code, _, err = call("index", "build", captions, "-o", tmp_path / "index", "--model", random_checkpoint)
    assert code == 2 and "already exists" in err and (tmp_path / "index" / "mine").read_text() == "x"


@pytest.mark.parametrize("command", [["build", "{captions}", "-o", "{out}"], ["search", "{index}", "--text", "a bow"]])
def test_a_missing_model_is_refused_before_anything_is_loaded(call, captions, random_checkpoint, tmp_path, command):
    made = tmp_path / "index"
    call("index", "build", captions, "-o", made, "--model", random_checkpoint)
    words = [word.format(captions=captions, out=tmp_path / "out", index=made) for word in command]
    code, _, err = call("index", *words, "--model", tmp_path / "nowhere")
    assert code == 2 and "There is no model folder" in err
    assert "loading" not in err and "searching" not in err
