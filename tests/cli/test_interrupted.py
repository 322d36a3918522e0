"""Signals, writers that meet, a full disk and bad names, from the command line."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from safetykit.adapters.artifact.output import atomic_folder
from safetykit.export.commands import demo_loop
from safetykit.toolkit.commands import signals
from safetykit.toolkit.commands.exit_codes import EXIT_CODES

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def demo(call, tmp_path, monkeypatch):
    """`safetykit demo` that does ``work`` in place of the loop, in the unfinished folder."""

    def run(work, *more):
        def loop(out, checkpoint, *, overwrite, progress):
            with atomic_folder(out, overwrite=overwrite) as folder:
                (folder / "half").write_text("half")
                work()

        monkeypatch.setattr(demo_loop, "run_demo", loop)
        return call("demo", "-o", tmp_path / "out", *more)

    return run


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_a_command_with_its_code_and_leaves_nothing(demo, tmp_path, number):
    kept = signal.getsignal(number)  # of a run in the background SIGINT is ignored, which a command respects
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, before)

    def stop():
        os.kill(os.getpid(), number)
        time.sleep(30)

    try:
        code, out, err = demo(stop, "--json")
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, kept)
    how = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert code == CODES[number] and f"error: {how}; no half-written file was left\n" in err
    assert "next:  The same command begins anew." in err
    assert json.loads(out)["error"]["exit_code"] == code and code in EXIT_CODES
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_ends_it_at_once():
    code = (
        "import ctypes, os, signal, threading, time\n"
        "from safetykit.toolkit.commands import signals\n"
        "signals._ONE_WISH = 0.0\n"
        "with signals.heard():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)\n"
        "    except KeyboardInterrupt:\n"
        "        time.sleep(0.1); signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
        "        ctypes.CDLL(None).sleep(30)  # in which no handler of Python's runs\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 143


def test_a_terminal_that_says_it_twice_means_it_once_and_nohup_is_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.heard():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(30)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.asked.number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM to send")
def test_a_wish_that_meets_a_destructor_is_heard_once_more(capsys):
    class Asking:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(10))  # here Python hears it, and drops what is raised

    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), signals.heard():
        Asking()
        time.sleep(5)
    assert signals.asked.number == signal.SIGTERM and sys.unraisablehook is before
    assert "Traceback" not in capsys.readouterr().err


def test_in_a_thread_a_command_runs_without_hearing_them(call):
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(call, "--version").result()[0] == 0


def test_a_full_disk_is_said_and_has_its_code(demo, tmp_path):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    code, _, err = demo(full)
    assert code == 8 and "out could not be written: No space left on device." in err and "Make room" in err
    assert list(tmp_path.iterdir()) == []


def test_stdout_that_is_full_is_said():
    command = [sys.executable, "-m", "safetykit.cli", "--version"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 8 and "No space left on device" in done.stderr and "Traceback" not in done.stderr


WRITING = {
    "fit": "fit vlm-guard {model} --data d",
    "export": "export {model}",
    "eval": "eval {model} --data d",
    "diagnose": "diagnose {model} --data d",
    "index build": "index build d --model {model}",
    "lora": "lora {model} --adapter a",
    "demo": "demo",
}


@pytest.mark.parametrize("command", WRITING)
def test_where_nothing_may_be_written_is_said_before_work(call, random_checkpoint, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    typed = WRITING[command].format(model=random_checkpoint).split()
    for out, said in (
        ("/", "/ is the root of the file system."),
        ("nul", "the name 'nul' is the name of a device"),
        ("README.MD", "are one file on systems that do not tell A from a"),
        ("/proc/sys", "a mount point") if os.path.ismount("/proc/sys") else (".", "is the folder you are in"),
    ):
        code, _, err = call(*typed, "-o", out)
        assert (code, said in err, "loading" in err) == (2, True, False), (out, err)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("command", WRITING)
def test_overwrite_takes_no_folder_that_is_not_ours(call, random_checkpoint, tmp_path, monkeypatch, command):
    (mine := tmp_path / "mine").mkdir()
    (mine / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*WRITING[command].format(model=random_checkpoint).split(), "-o", mine, "--overwrite")
    assert code == 2, err
    assert "was not written by safetykit: it holds notes.txt" in err or "is a folder, not a file" in err
    assert (mine / "notes.txt").read_text() == "x" and [path.name for path in tmp_path.iterdir()] == ["mine"]
