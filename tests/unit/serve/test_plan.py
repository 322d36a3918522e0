"""What a server cannot be is refused before it is opened, in two sentences and with an exit code."""

import socket
import sys

import pytest
from workshop import safetykit

from safetykit.serve.access import read_keys
from safetykit.serve.errors import ApiError

KEY = "a-key-of-the-tests-0123456789"


def is_refused(done, said, code=2):
    assert done.code == code and said in done.err and "Traceback" not in done.err, (done.code, done.err)
    assert "next:" in done.err and not done.out


def test_what_is_no_export(tmp_path, random_checkpoint):
    is_refused(safetykit("serve", tmp_path / "nothing", "--check"), "There is no export")
    is_refused(safetykit("serve", random_checkpoint, "--check"), "is a checkpoint, and exports are served")


def test_a_port_in_use(served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        is_refused(safetykit("serve", served, "--check", "--port", port), f"port {port}: Address already in use")
    is_refused(
        safetykit("serve", served, "--check", "--host", "nowhere.invalid", "--allow-anonymous"), "Nothing can listen"
    )


def test_other_machines_without_keys(served, tmp_path, monkeypatch):
    is_refused(safetykit("serve", served, "--check", "--host", "0.0.0.0"), "everybody who reaches this machine")
    monkeypatch.setenv("SAFETYKIT_API_KEYS", KEY)
    done = safetykit("serve", served, "--check", "--host", "0.0.0.0", "--port", 0, "--json")
    assert done.code == 0 and done.value["keys"] == 1
    is_refused(safetykit("serve", served, "--check", "--allow-anonymous"), "--allow-anonymous does nothing")


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "cannot be read"),
        ("# none\n", "holds no key"),
        ("short\n", "shorter than 16"),
        ("a b " * 9, "white space"),
    ],
)
def test_keys_that_are_none(served, tmp_path, text, said):
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    is_refused(safetykit("serve", served, "--check", "--api-key-file", path), said)


def test_an_unsigned_export_where_a_policy_is_asked_for(served):
    done = safetykit("serve", served, "--check", "--require-signature")
    assert done.code in (2, 6) and "Traceback" not in done.err and not done.out


def test_adapters_that_are_none(served, tmp_path):
    command = ("serve", served, "--check", "--port", 0)
    for name in ("x", "=x", "x=", "on=x", "off=x"):
        is_refused(safetykit(*command, "--adapter", name), "names no adapter")
    is_refused(safetykit(*command, "--adapter", f"x={tmp_path / 'nowhere'}"), "There is no adapter at")
    done = safetykit(*command, "--adapter", f"x={tmp_path}")
    assert done.code in (2, 3) and str(tmp_path) in done.err and not done.out
    is_refused(safetykit(*command, "--allow-uncorrected-detector"), "does nothing without an adapter")
    is_refused(safetykit(*command, "--allow-off"), "holds no graphs of the model without adapters")


def test_limits_of_the_wrong_size(served):
    for option, value in (
        ("--max-batch", 0),
        ("--max-queue", 0),
        ("--threads", 0),
        ("--timeout", 0),
        ("--port", 65536),
        ("--max-body", 5),
    ):
        is_refused(safetykit("serve", served, "--check", option, value), option)
    is_refused(safetykit("serve", served, "--check", "--port", 0, "--max-prompt-tokens", 10**7), "Prompts cannot have")


def test_threads_are_those_of_every_session(served, monkeypatch):
    import onnxruntime

    opened, real = [], onnxruntime.InferenceSession

    def session(source, options, **named):
        opened.append(options.intra_op_num_threads)
        return real(source, options, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    for words, threads in ((("--threads", 1), 1), ((), 0)):
        done = safetykit("serve", served, "--check", "--port", 0, "--json", *words)
        assert done.code == 0 and f'"threads": {threads or "null"}' in done.out, done.err
        assert opened == [threads] * 3
        opened.clear()
    is_refused(
        safetykit("serve", served, "--check", "--threads", 1, "--provider", "CUDAExecutionProvider"),
        "--threads does nothing without the provider CPUExecutionProvider",
    )
    is_refused(safetykit("serve", served, "--check", "--threads", 100_000), "more than this machine has cores")


def test_an_export_without_canaries_cannot_be_asked_them(served):
    done = safetykit("serve", served, "--check", "--port", 0, "--canary")
    assert done.code == 2 and "canar" in done.err


def test_without_the_extra_its_command_is_told(served, monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest))
    done = safetykit("serve", served, "--check")
    is_refused(done, "needs uvicorn, which is not installed")
    assert 'pip install "safetykit[serve]"' in done.err


def test_keys_are_kept_as_hashes_and_name_their_clients(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n\n# another\n{KEY[::-1]}\n")
    keys = read_keys(path)
    assert len(keys) == 2 and KEY not in repr(vars(keys))
    names = {keys.client(f"Bearer {key}") for key in (KEY, KEY[::-1])}
    assert len(names) == 2 and all(len(name) == 8 for name in names)
    for said in (None, "", "Basic x", f"Bearer {KEY}x", "Bearer \ud800"):
        with pytest.raises(ApiError):
            keys.client(said)


def test_help_needs_none_of_the_servers_packages():
    import subprocess

    code = (
        "import sys; from safetykit import cli; from contextlib import suppress\n"
        "with suppress(SystemExit): cli.main(['serve', '--help'])\n"
        "assert not {'fastapi', 'starlette', 'uvicorn', 'prometheus_client', 'torch', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--max-batch" in done.stdout, done.stderr
