"""Counting: per carrier, with intervals, nothing lost and nothing in another's place."""

import pytest

from safetykit.adapters import UsageError
from safetykit.toolkit.data.journal import Journal
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.evaluation.evaluate import Prompted, Rate, decide, evaluate
from safetykit.toolkit.model.requests import Generation, Request
from safetykit.toolkit.model.vlm import VLM


def make(index, label, carrier="text", tags=()):
    return Record(
        id=f"{carrier}{index}",
        prompt="x" * (index % 7),
        label=label,
        carrier=carrier,
        split="test",
        response=f"answer {carrier}{index}",
        tags=tags,
    )


class Scripted:
    """Answers by a function of the prompt's place, to know what must be counted."""

    def __init__(self, records, answer):
        self.by_prompt = {}
        self.records, self.answer, self.batches = list(records), answer, []

    def generate(self, requests, max_new_tokens=32):
        self.batches.append([len(request.prompt) for request in requests])
        return [Generation(self.answer(request), (), {"0.score": float(len(request.prompt))}) for request in requests]


def test_rates_are_counted_per_carrier_and_group():
    records = [make(i, "harmful" if i % 2 else "harmless") for i in range(10)]
    records += [make(i, "harmless", "image", ("look-alike",)) for i in range(4)]
    result = evaluate(Scripted(records, lambda request: "sorry, no"), records, name="m", batch_size=3)
    assert result.rate("text", "refused").rate == 1
    assert result.rate("text", "over_refusal").n == 5
    assert result.rate("image/look-alike", "over_refusal").count == 4
    assert result.rate("all", "exact").count == 0
    with pytest.raises(KeyError):
        result.rate("image", "attack_success")


def test_model_and_records_may_be_named(tmp_path):
    record = make(0, "harmless")
    data = tmp_path / "records.jsonl"
    data.write_text(record.model_dump_json())
    named = evaluate("reference:mild", str(data), max_new_tokens=2)
    assert (named.model, named.split, len(named.decisions)) == ("reference:mild", "test", 1)
    model = VLM.from_pretrained("reference:mild")
    given = evaluate(model, [record], max_new_tokens=2)
    assert given.decisions == named.decisions and given.model == str(model.path)
    with pytest.raises(UsageError, match="no model folder at reference:mid"):
        evaluate("reference:mid", [record])
    with pytest.raises(UsageError, match="no records at nowhere"):
        evaluate(Scripted([record], str), "nowhere")


def test_decisions_keep_the_order_of_records_though_batches_are_by_length():
    records = [make(i, "harmless") for i in range(20)]
    model = Scripted(records, lambda request: f"{len(request.prompt)}")
    decisions = decide(model, records, batch_size=4)
    assert [item.id for item in decisions] == [record.id for record in records]
    assert [item.text for item in decisions] == [str(len(record.prompt)) for record in records]
    lengths = [length for batch in model.batches for length in batch]
    assert lengths == sorted(lengths)


def test_intervals_are_wilsons():
    rate = Rate.of(0, 20)
    assert rate.low == 0
    assert rate.high == pytest.approx(0.1611, abs=1e-4)  # Wilson 95 % for 0 of 20


def test_the_detector_auroc_needs_both_labels():
    records = [make(i, "harmful" if i >= 5 else "harmless") for i in range(7)]
    result = evaluate(Scripted(records, lambda request: "x"), records, name="m")
    assert next(row for row in result.rows if row.group == "text").detector_auroc == 1.0
    alone = evaluate(Scripted(records, lambda request: "x"), records[:3], name="m")
    assert alone.rows[0].detector_auroc is None


def test_a_system_prompt_goes_before_every_request_and_is_on_record():
    records = [make(i, "harmless") for i in range(7)]
    model = Scripted(records, lambda request: request.system)
    result = evaluate(model, records, name="m", system="be careful")
    assert result.system == "be careful"
    assert {item.text for item in result.decisions} == {"be careful"}
    assert {item.text for item in evaluate(model, records, name="m").decisions} == {""}
    own = Prompted(model, "be careful").generate([Request("x", system="be brief")])
    assert own[0].text == "be brief", "what a request brings itself stays"


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(UsageError, match="no record was given"):
        decide(Scripted([], str), [])


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path):
    records = [make(i, "harmless") for i in range(12)]
    whole = decide(Scripted(records, lambda request: f"{len(request.prompt)}"), records, batch_size=4)

    def failing(request):
        if len(request.prompt) > 3:
            raise KeyboardInterrupt
        return f"{len(request.prompt)}"

    path = tmp_path / "eval.jsonl"
    with pytest.raises(KeyboardInterrupt):
        decide(Scripted(records, failing), records, batch_size=4, journal=Journal(path, {"work": 1}))
    path.write_text(path.read_text() + '["cut off", [{"id"')  # as a crash in mid-write leaves it
    resumed = Scripted(records, lambda request: f"{len(request.prompt)}")
    journal = Journal(path, {"work": 1})
    assert decide(resumed, records, batch_size=4, journal=journal) == whole
    assert sum(map(len, resumed.batches)) == 4  # eight of twelve were done
    journal.finish()
    assert not path.exists()


def test_a_journal_of_other_work_is_not_used(tmp_path):
    path = tmp_path / "eval.jsonl"
    one = {"model": "m", "--limit": 4}
    Journal(path, one).add("key", 1)
    assert Journal(path, one).done == {"key": 1}
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"had other: --limit\. Repeat that command .* or remove"):
        Journal(path, {**one, "--limit": 5})
    assert path.read_bytes() == before
    path.write_text("0" * 64 + "\n" + '["key", 1]\n')  # as earlier versions wrote it
    with pytest.raises(UsageError, match="had other: version"):
        Journal(path, one)


def test_a_journal_in_which_nothing_is_finished_stands_in_nobodys_way(tmp_path):
    Journal(tmp_path / "eval.jsonl", {"model": "one"})
    assert Journal(tmp_path / "eval.jsonl", {"model": "other"}).done == {}


def test_what_is_known_is_not_answered_again_for_another_batch_size(tmp_path):
    records = [make(i, "harmless") for i in range(12)]
    answer = Scripted(records, lambda request: f"{len(request.prompt)}")
    whole = decide(answer, records, batch_size=4)
    journal = Journal(tmp_path / "eval.jsonl", {"work": 1})
    decide(answer, records[:4], batch_size=4, journal=journal)
    resumed = Scripted(records, lambda request: f"{len(request.prompt)}")
    assert decide(resumed, records, batch_size=3, journal=journal) == whole
    assert list(map(len, resumed.batches)) == [3, 3, 2]
