"""What several processes make together is what one makes, to the last bit: threads stand for the processes."""

from collections import Counter

import pytest
import torch
from planted_vlm import SMALL
from ranks import Ranks

from safetykit.adapters.artifact.output import claimed
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.care.settings import CARE
from safetykit.adapters.errors import LeftBehind, UsageError
from safetykit.adapters.nullsteer.settings import NullSteer
from safetykit.adapters.protocols import Refusal
from safetykit.adapters.registry import methods
from safetykit.adapters.sasa.settings import SASA
from safetykit.adapters.statistics.threads import one_thread
from safetykit.adapters.tga.settings import TGA
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.toolkit.alignment import Aligner, trainer
from safetykit.toolkit.data.captions import captions_path, load_captions
from safetykit.toolkit.data.journal import Journal
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.diagnosis import diagnose
from safetykit.toolkit.evaluation.evaluate import decide
from safetykit.toolkit.model.second_pass import SecondPass
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.retrieval.build import build_index
from safetykit.toolkit.retrieval.embedders import VLMEmbedder
from safetykit.toolkit.retrieval.fit import fit_retrieval
from safetykit.toolkit.sweep.run import run_sweep
from safetykit.toolkit.workbench import Workbench

REFUSAL = Refusal("no .", 0)
FITS = {
    "vlm-guard": lambda vlm, records: VLMGuard(gate="whitened").fit(vlm, records),
    "care": lambda vlm, records: CARE(contrast="carrier").fit(vlm, records),
    "care by kernel": lambda vlm, records: CARE(contrast="carrier", selection="kernel").fit(vlm, records),
    "nullsteer": lambda vlm, records: NullSteer(towards="harmful", variant="low-rank").fit(vlm, records),
    "sasa": lambda vlm, records: SASA(safety_layer=2).fit(SecondPass(vlm), records, REFUSAL),
}


@pytest.fixture(scope="module")
def records():
    found = load_records(data_path("reference"), ["fit", "calibration"])
    return [record for split in ("fit", "calibration") for record in subset([r for r in found if r.split == split], 64)]


@pytest.fixture(scope="module")
def vlms(random_checkpoint):
    """One for each thread, whose branches were measured by a pass of their own."""
    found = [VLM.from_pretrained(random_checkpoint) for _ in range(2)]
    for vlm in found:
        vlm.parts.tap(Site("mlp", 0))
    return found


def contents(adapter):
    """Everything in it, its tensors as bytes."""
    parts = [item.tensors for item in adapter.interventions] + ([adapter.branch.tensors] if adapter.branch else [])
    tensors = [(name, tensor.numpy().tobytes()) for part in parts for name, tensor in sorted(part.items())]
    return tensors, adapter.info, adapter.attachments, adapter.detector


@pytest.mark.parametrize("name", [*list(FITS)[:-1], pytest.param("sasa", marks=pytest.mark.slow)])
def test_a_fit(name, vlms, records):
    alone = contents(FITS[name](vlms[0], records))
    passes = Counter()
    handles = [
        vlm.model.register_forward_pre_hook(lambda *_, at=at: passes.update([at])) for at, vlm in enumerate(vlms)
    ]
    with one_thread():  # ranks are threads here, and those of a process share the number of threads that compute
        both = Ranks(2).run(lambda rank: contents(FITS[name](vlms[rank], records)))
    for handle in handles:
        handle.remove()
    assert both == [alone, alone]
    assert 0 < passes[1] <= passes[0]  # they took turns


def test_a_journal_stays_until_the_output_that_it_is_of(tmp_path):
    path, cut = tmp_path / "out.jsonl", b'["c", 3'
    with claimed(tmp_path / "out", spent=[path]):
        journal = Journal(path, {"work": 1})
        journal.add("a", 1)
        journal.finish()
    assert Journal.unfinished is None and path.is_file()  # no output has appeared
    path.write_bytes(path.read_bytes() + cut)
    again = Journal(path, {"work": 1})
    assert again.done == {"a": 1} and cut not in path.read_bytes()
    again.add("b", 2)
    assert Journal(path, {"work": 1}).done == {"a": 1, "b": 2}
    with pytest.raises(UsageError, match="begin anew"), claimed(tmp_path / "out", spent=[path]):
        Journal(path, {"work": 2})
    with claimed(tmp_path / "out", spent=[path], overwrite=True), pytest.warns(LeftBehind, match="2 finished parts of"):
        other = Journal(path, {"work": 2})
    assert other.done == {} and path.read_text().count("\n") == 1
    other.finish()
    assert list(tmp_path.iterdir()) == []


def test_answers_and_their_journal(vlms, records, tmp_path):
    alone = decide(vlms[0], records[:40], max_new_tokens=4, batch_size=8)

    def work(rank):
        journal = Journal(tmp_path / "answers.jsonl", {"these": 1})
        return decide(vlms[rank], records[:40], max_new_tokens=4, batch_size=8, journal=journal), len(journal.done)

    assert Ranks(2).run(work) == [(alone, 5)] * 2
    journal = Journal(tmp_path / "answers.jsonl", {"these": 1})
    journal.done = dict(list(journal.done.items())[:3])
    assert decide(vlms[0], records[:40], max_new_tokens=4, batch_size=8, journal=journal) == alone


def test_a_sweep(vlms, records, tmp_path):
    method, given = (
        methods()["vlm-guard"],
        {"layers": (2,), "variant": "steer", "alpha": 1.0, "gate": "paper", "allow_constant_gate": True},
    )
    some = [record for record in records if record.split == "fit" or int(record.digest()[:8], 16) % 4 == 0]

    def sweep(rank, path):
        return run_sweep(method, Workbench(vlms[rank], some), given, max_new_tokens=2, journal_path=path).sweep.table()

    alone = sweep(0, None)
    assert len(alone["trials"]) > 1
    assert Ranks(2).run(lambda rank: sweep(rank, tmp_path / "sweep.jsonl")) == [alone, alone]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_diagnosis(planted_folder, planted_data, tmp_path):
    records = load_records(planted_data)
    vlms = [VLM.from_pretrained(planted_folder) for _ in range(2)]
    small = {**SMALL, "neurons": 2}
    ticks = {rank: [] for rank in range(3)}

    def found(rank, path=None, told=None):
        made = diagnose(vlms[rank], records, **small, journal_path=path, progress=lambda *now: told.append(now))
        return made.info.model_dump(), {name: value.tobytes() for name, value in made.tensors.items()}

    alone = found(0, told=ticks[2])
    assert Ranks(2).run(lambda rank: found(rank, tmp_path / "map.jsonl", ticks[rank])) == [alone, alone]
    assert ticks[0] == ticks[1] and ticks[0][-1] == ticks[2][-1]


def test_an_index_and_what_is_fitted_on_it(vlms, tmp_path):
    captions = load_captions(captions_path("reference"))[:90]
    texts = [item.caption for item in captions]

    def made(rank, out):
        index = build_index(lambda: iter(texts), VLMEmbedder(vlms[rank]), out, batch_size=8)
        return contents(fit_retrieval(vlms[rank], index, captions))

    alone = made(0, tmp_path / "alone")
    assert Ranks(2).run(lambda rank: made(rank, tmp_path / "both")) == [alone, alone]
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "both" / path.name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "both"]


@pytest.mark.slow
def test_an_alignment_goes_on_with_more_processes(vlms, tmp_path, monkeypatch):
    captions = load_captions(captions_path("reference"))[:70]
    settings = TGA(variant="projector", steps=4, accumulate=3, batch_size=2)
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 2)

    def trained(rank, work, stop=None):
        def progress(done, total):
            if done == stop:
                raise KeyboardInterrupt

        found = Aligner(vlms[rank], captions, work=work, progress=progress).align(settings)
        tensors = [
            (one.parameter, {name: value.numpy().tobytes() for name, value in one.tensors.items()})
            for one in found.updates
        ]
        return tensors, found.training["terms"], found.alignment

    alone = trained(0, None)
    with pytest.raises(KeyboardInterrupt):
        trained(0, tmp_path / "work", stop=3)
    works = (tmp_path / "work", tmp_path / "elsewhere")
    assert Ranks(2).run(lambda rank: trained(rank, works[rank])) == [alone, alone]
    assert not works[1].exists()


def test_views_are_not_sent_whole(vlms, records):
    for _, states in SecondPass(vlms[0]).branch_states(records[:8], SASA().places(8)[:2]):
        assert all(state.untyped_storage().nbytes() == state.nbytes for state in states.values())
    assert torch.get_num_threads() == 1
