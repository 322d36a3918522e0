"""The options of the training of the reference VLM, which itself takes too long for a test."""

import torch

from safetykit.toolkit.reference import train


def called(monkeypatch, *typed):
    """Stages that were run, or the checkpoints published, with their steps and folders."""
    calls, threads = [], torch.get_num_threads()
    monkeypatch.setattr(train, "run", lambda work, stages, steps: calls.append((stages, steps)))
    monkeypatch.setattr(train, "publish", lambda work, name, steps, folder: calls.append((name, steps, folder)))
    try:
        train.main([str(word) for word in typed])
        return calls, torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


def test_checkpoints_go_where_they_are_told_with_fewer_steps_and_one_thread(monkeypatch, tmp_path):
    options = ("--work", tmp_path, "--out", tmp_path / "out", "--until", "mild", "--scale", 0.01, "--threads", 1)
    ((name, steps, folder),), threads = called(monkeypatch, *options)
    assert (name, folder, threads) == ("mild", tmp_path / "out" / "mild", 1)
    assert steps["knowledge"] == 10 and steps["mild"] == 3


def test_stages_before_the_checkpoints_are_run_and_those_named_again(monkeypatch, tmp_path):
    reports = [tmp_path / f"{stage}.json" for stage in train.STAGES]
    for report in reports:
        report.write_text("{}")
    ((stages, steps),), _ = called(monkeypatch, "--work", tmp_path, "--until", "encoder", "--from", "alignment")
    assert stages == ("knowledge", "alignment", "encoder") and steps == train.STEPS
    assert [report.exists() for report in reports] == [True] + [False] * 5


def test_the_encoder_can_be_trained_beside_the_first_stages(monkeypatch, tmp_path):
    calls, _ = called(monkeypatch, "--work", tmp_path, "--only", "encoder")
    assert calls == [(("encoder",), train.STEPS)]
