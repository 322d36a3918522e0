"""Outputs: whole or not at all, by one writer at a time, and nothing of a killed one stays."""

import errno
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from safetykit.adapters.artifact import exchange, held
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import sealed
from safetykit.adapters.artifact.output import (
    atomic_folder,
    claimed,
    claimed_file,
    mark_made,
    require_free,
    write_output,
)
from safetykit.adapters.errors import LeftBehind, OutputFailed, UsageError


def folder(path, text="old"):
    path.mkdir()
    mark_made(path)
    (path / "anything.json").write_text(json.dumps({"ours": text}))
    return path


def text_of(path):
    return json.loads((path / "anything.json").read_text())["ours"]


def write(path, text="new", **given):
    with atomic_folder(path, **given) as work:
        (work / "anything.json").write_text(json.dumps({"ours": text}))


def names(path):
    return sorted(one.name for one in path.iterdir())


@pytest.fixture(params=["one step", "two renames"])
def swapping(request, monkeypatch):
    """With the system's exchange of two paths, and without it."""
    if request.param == "two renames":
        monkeypatch.setattr(exchange, "_call", lambda: None)
    return request.param


def test_a_folder_of_ours_with_somebody_s_file_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_bytes(sealed({"files": {"tensors": "00"}}))
    (out / "tensors").write_text("ours")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="also holds what safetykit did not write: notes.txt"):
        require_free(out, overwrite=True)
    assert names(out) == ["manifest.json", "notes.txt", "tensors"]
    (out / "notes.txt").unlink()
    require_free(out, overwrite=True)


def test_an_output_is_replaced_and_nothing_else_stays(tmp_path, swapping):
    out = folder(tmp_path / "out")
    write(out, overwrite=True)
    assert text_of(out) == "new" and names(tmp_path) == ["out"]
    assert os.stat(out).st_mode & 0o777 == 0o777 & ~os.umask(os.umask(0o022))


def test_a_checkpoint_of_somebody_is_not_replaced(tmp_path):
    (mine := tmp_path / "mine").mkdir()
    (mine / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UsageError, match="was not written by safetykit: it holds config.json"):
        write(mine, overwrite=True)
    assert names(mine) == ["config.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="of macOS nothing is known here")
def test_two_paths_swap_in_one_step(tmp_path):
    first, second = folder(tmp_path / "a", "a"), folder(tmp_path / "b", "b")
    assert exchange.exchanged(first, second)
    assert (text_of(first), text_of(second)) == ("b", "a")
    with pytest.raises(FileNotFoundError):
        exchange.exchanged(first, tmp_path / "nothing")


def killed(out, line):
    """Run a line that never returns in a process, in the block of ``out``, and kill that with SIGKILL."""
    code = (
        "import json, os, signal, pathlib\n"
        "from safetykit.adapters.artifact import exchange, held\n"
        "from safetykit.adapters.artifact.output import atomic_folder\n"
        "kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"with atomic_folder(pathlib.Path({str(out)!r}), overwrite=True) as work:\n"
        "    (work / 'anything.json').write_text(json.dumps({'ours': 'half'}))\n"
        f"    {line}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


def test_what_a_killed_writer_left_is_cleared_with_a_word(tmp_path):
    killed(tmp_path / "out", "kill()")
    assert names(tmp_path) == [".out.writing"]
    with pytest.warns(LeftBehind, match=r"0\.0 MiB that were left of .*out by process \d+ on .*removed"):
        write(tmp_path / "out")
    assert text_of(tmp_path / "out") == "new" and names(tmp_path) == ["out"]


def test_killed_between_two_renames_the_former_output_is_put_back(tmp_path):
    out = folder(tmp_path / "out")
    rename = "exchange._call = lambda: None; held.os.replace = lambda a, b, keep=os.replace: (keep(a, b), kill())"
    killed(out, rename)
    assert not out.exists()
    with pytest.warns(LeftBehind, match="out was put back: process"), pytest.raises(UsageError, match="already exists"):
        require_free(out)
    assert text_of(out) == "old" and names(tmp_path) == ["out"]


def test_an_error_between_two_renames_puts_the_former_output_back(tmp_path, monkeypatch):
    out = folder(tmp_path / "out")
    monkeypatch.setattr(exchange, "_call", lambda: None)
    keep, calls = os.replace, []

    def fails_once(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        keep(source, target)

    monkeypatch.setattr(held.os, "replace", fails_once)
    with pytest.raises(KeyboardInterrupt):
        write(out, overwrite=True)
    assert text_of(out) == "old" and names(tmp_path) == ["out"]


def test_a_wish_to_end_at_any_point_leaves_the_former_output_or_the_new_one_and_nothing_else(tmp_path, monkeypatch):
    folder(out := tmp_path / "out")
    touched, ends_at = [0], 0

    def asked(act):
        def acting(*given, **named):
            touched[0] += 1
            if touched[0] == ends_at:
                raise KeyboardInterrupt
            return act(*given, **named)

        return acting

    for name in ("open", "mkdir", "rmdir", "replace", "unlink", "scandir", "stat"):
        monkeypatch.setattr(os, name, asked(getattr(os, name)))
    seen = 0
    while seen >= ends_at:  # until a writer touches less often than that
        ends_at, touched[0] = ends_at + 1, 0
        with suppress(KeyboardInterrupt), atomic_folder(out, overwrite=True) as work:
            mark_made(work)
            (work / "anything.json").write_text(json.dumps({"ours": f"new {ends_at}"}))
        seen, touched[0] = touched[0], ends_at  # what looks is not disturbed
        assert names(tmp_path) == ["out"] and text_of(out) in {"old", *(f"new {at}" for at in range(ends_at + 1))}
    assert ends_at > 30 and text_of(out) == f"new {ends_at}"


def test_a_second_writer_is_told_of_the_first(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from safetykit.adapters.artifact.output import claimed\n"
        f"with claimed(pathlib.Path({str(tmp_path / 'out')!r})):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    said = rf"out is being written by process {other.pid} on .*, for \d+ seconds now. Wait until it is done"
    for attempt in (lambda: write(tmp_path / "out"), lambda: write_output(tmp_path / "out", b"")):
        with pytest.raises(UsageError, match=said):
            attempt()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "out")
    with pytest.raises(UsageError, match="is being written by process"):
        require_free(link)  # it is the same one
    link.unlink()
    other.communicate()
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_many_writers_at_once_leave_one_output(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "from safetykit.adapters.artifact.output import atomic_folder\n"
        "from safetykit.adapters.errors import UsageError\n"
        "time.sleep(max(0, float(sys.argv[1]) - time.time()))\n"
        f"try:\n    with atomic_folder(pathlib.Path({str(tmp_path / 'deep/out')!r})) as work:\n"
        "        (work / 'a').write_text(sys.argv[2])\n"
        "except UsageError as error:\n    sys.exit(2)\n"
    )
    at = str(time.time() + 2)
    jobs = [subprocess.Popen([sys.executable, "-c", code, at, str(job)]) for job in range(4)]
    ended = [job.wait() for job in jobs]
    assert sorted(ended) == [0, 2, 2, 2]
    assert (tmp_path / "deep/out/a").read_text() == str(ended.index(0))
    assert names(tmp_path / "deep") == ["out"]


def test_what_can_be_gone_on_from_ends_with_the_output(tmp_path):
    out, state = tmp_path / "out", tmp_path / ".out.state"
    state.mkdir()
    with pytest.raises(RuntimeError), claimed(out, spent=[state]):
        raise RuntimeError
    assert held.unfinished() == [state] and names(tmp_path) == [".out.state"]
    with claimed(out, spent=[state]):
        assert held.ends_with_output(state) and not held.ends_with_output(tmp_path)
        write(out)
        assert not state.exists()
    assert names(tmp_path) == ["out"]


def test_a_failed_exchange_keeps_what_can_be_gone_on_from(tmp_path, monkeypatch):
    out, state = folder(tmp_path / "out"), tmp_path / ".out.state"
    state.write_text("half")

    def busy(first, second):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(second))

    monkeypatch.setattr(held, "exchanged", busy)
    said = "could not be written: Device or resource busy"
    with pytest.raises(OutputFailed, match=said), claimed(out, overwrite=True, spent=[state]):
        write(out, overwrite=True)
    assert text_of(out) == "old" and names(tmp_path) == [".out.state", "out"]


BAD = ["con", "NUL", "nul.tar", "COM1", "a.", "a ", "line\nbreak", "x" * 300, "README.MD", "deep/aux/out", "nul\0"]


@pytest.mark.parametrize("name", BAD)
def test_names_that_not_every_system_holds_are_refused(tmp_path, name):
    (tmp_path / "README.md").write_text("mine")
    for attempt in (require_free, write, lambda path: write_output(path, b"x")):
        with pytest.raises(UsageError, match=r"Choose another (name|one)\."):
            attempt(tmp_path / name)
    assert names(tmp_path) == ["README.md"] and (tmp_path / "README.md").read_text() == "mine"


def test_places_that_cannot_be_replaced_are_refused(tmp_path, monkeypatch):
    for place, said in (
        ("/", "the root"),
        ("/proc", "a mount point"),
        (tmp_path / "a" / "..", "the folder you are in"),
    ):
        (tmp_path / "a").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "a")
        with pytest.raises(UsageError, match=said):
            write(Path(place), overwrite=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError, match="cannot be the path of an output"):
        write(tmp_path / "loop/out")
    assert names(tmp_path) == ["a", "loop"]


def test_what_is_read_only_is_said(tmp_path, monkeypatch):
    def denied(self, *given, **named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    with monkeypatch.context() as patch, pytest.raises(UsageError, match=f"Nothing can be written in {tmp_path}: Perm"):
        patch.setattr(Path, "mkdir", denied)  # root may write anywhere
        write(tmp_path / "out")
    with pytest.raises(UsageError, match="is a folder, not a file"):
        write_output(tmp_path, b"")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        write(tmp_path / "file", overwrite=True)
    claim = claimed_file(tmp_path / "file", overwrite=True, keys=("rows",))
    with pytest.raises(UsageError, match="was not written by this command"), claim:
        pytest.fail("it was claimed")
    assert names(tmp_path) == ["file"]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("onnxruntime: write failed: No space left on device"),
        OSError("25008 requested and 7136 written"),
    ],
    ids=["full", "read-only", "rust", "c++", "numpy"],
)
def test_what_the_system_refuses_is_typed(tmp_path, error):
    with pytest.raises(OutputFailed, match="out could not be written") as caught, atomic_folder(tmp_path / "out"):
        raise error
    assert caught.value.exit_code == 8 and names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyError("a"), PermissionError(errno.EACCES, "denied", "/elsewhere/picture.png")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, atomic_folder(tmp_path / "out"):
        raise error
    assert caught.value is error and names(tmp_path) == []


def test_a_disk_that_is_full_at_any_point(tmp_path):
    """A process may write no file beyond so many bytes; the output is whole or absent, and the error typed."""
    code = (
        "import pathlib, resource, sys\n"
        "from safetykit.adapters.artifact.output import atomic_folder, write_output\n"
        "from safetykit.adapters.errors import OutputFailed\n"
        "codes = []\n"
        "for limit in range(0, 1100, 100):\n"
        "    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))\n"
        "    out = pathlib.Path(sys.argv[1]) / str(limit)\n"
        "    try:\n"
        "        write_output(out, b'x' * 1000)\n"
        "        codes.append(0)\n"
        "    except OutputFailed as error:\n"
        "        codes.append(error.exit_code)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "print(codes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout.strip() == str([8] * 10 + [0]), done.stderr
    assert names(tmp_path) == ["1000"] and len((tmp_path / "1000").read_bytes()) == 1000


def test_no_link_that_was_planted_is_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".file.partial").symlink_to(tmp_path / "mine")
    write_atomic(tmp_path / "file", b"whole")
    assert names(tmp_path) == ["file", "mine"] and (tmp_path / "mine").read_text() == "mine"
