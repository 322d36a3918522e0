"""`safetykit judge`: what is wrong is refused before any answer is judged."""

import json

import pytest
from workshop import safetykit


@pytest.mark.parametrize(
    ("spec", "code", "said"),
    [
        ("phrase", 2, "Did you mean 'phrases'?"),
        ("regex:(", 2, "is no regular expression"),
        ("regex:", 2, "names no pattern"),
        ("regex:x*", 2, "found in an empty answer"),
        ("exact:x", 2, "takes nothing after it"),
        ("llama-guard-3:nowhere", 2, "names no folder of a model"),
        ("harmbench:{picturing}", 2, "and a judge harmbench is a …ForCausalLM"),
        ("classifier:{picturing}", 2, "ForSequenceClassification"),
        ("llama-guard-3-vision:{picturing}", 2, "There is no device cuda:77 here"),
        ("http://127.0.0.1:9/v1", 9, "does not answer"),
        ("http://me:secret@127.0.0.1:9/v1", 2, "The address of the server at 127.0.0.1 holds more than host and path"),
        ("http://127.0.0.1:9/v1?key=secret", 2, "keys belong into the environment"),
        ("ftp:x", 2, "There is no judge"),
        ("siuo:nowhere", 2, "names no address. next: Write siuo:http://HOST/v1#MODEL."),
        ("strongreject:", 2, "names no folder"),
        ("strongreject:http://127.0.0.1:9/v1", 9, "does not answer"),
    ],
)
def test_a_judge_that_is_none_is_refused_before_work(judged, kept, spec, code, said, random_checkpoint, monkeypatch):
    from safetykit.toolkit.model import endpoint

    monkeypatch.setattr(endpoint, "_RETRIES", 0)
    more = ("--judge-device", "cuda:77") if spec.startswith("llama-guard-3-vision") else ()
    done, value = judged(spec.replace("{picturing}", str(random_checkpoint)), more=more)
    assert (done.code, value) == (code, None) and "secret" not in done.err
    assert said in " ".join(done.err.split()), done.err


def test_other_faults_are_refused(kept, judged):
    labels = kept / "labels.jsonl"
    for text, said in (
        ('{"id": "h1", "outcome": "yes"}\n', "labels.jsonl:1 is no label"),
        ('{"id": "h1", "outcome": "other"}\n' * 2, "labels.jsonl:2 repeats the id"),
        ('{"id": "x", "outcome": "other"}\n', "None of the labels belongs"),
        ("\n", "holds no label"),
    ):
        labels.write_text(text)
        done, value = judged("phrases", more=("--labels", labels))
        assert done.code in (2, 3) and value is None and said in " ".join(done.err.split()), done.err
    done, _ = judged()
    assert done.code == 2 and "nothing to judge by" in done.err
    done, _ = judged("phrases", "phrases")
    assert done.code == 2 and "named twice" in done.err
    done, _ = judged("phrases", more=("--judge-device", "cpu"))
    assert done.code == 2 and "--judge-device does nothing without a judge that is a model" in " ".join(
        done.err.split()
    )
    done, _ = judged("phrases", more=("--judge-dtype", "float3"))
    assert done.code == 2 and "--judge-dtype cannot be 'float3'" in done.err
    (kept / "records.jsonl").write_text("".join((kept / "records.jsonl").read_text().splitlines(keepends=True)[1:]))
    done, _ = judged("phrases")
    assert done.code == 2 and "holds an answer to h1" in done.err
    decisions = json.loads((kept / "kept.json").read_text())["decisions"]
    for body, said in (
        ({}, "is no evaluation"),
        ({"decisions": []}, "holds no answer"),
        ({"decisions": [*decisions, decisions[0]]}, "holds two answers to h1"),
    ):
        shared = {"model": "m", "split": "test", "max_new_tokens": 8, "rows": []} if body else {}
        (kept / "kept.json").write_text(json.dumps({**shared, **body}))
        done, _ = judged("phrases")
        assert done.code == 3 and said in done.err


def test_an_evaluation_is_not_replaced_by_what_is_judged_of_it(kept):
    before = (kept / "kept.json").read_bytes()
    typed = ("--data", kept / "records.jsonl", "--judge", "phrases", "-o", kept / "kept.json", "--overwrite")
    done = safetykit("judge", kept / "kept.json", *typed)
    assert done.code == 2 and "is read to make it" in done.err and (kept / "kept.json").read_bytes() == before
