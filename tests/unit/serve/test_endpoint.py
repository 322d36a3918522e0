"""A server asked as a model is: `eval` and `verify --canary` at an address, and servers that are none or fail."""

import json
import os
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from serving import KEY, TOKENS, listening
from workshop import safetykit

from safetykit import Request
from safetykit.adapters.errors import RequestRefused, ServerFailed, UsageError
from safetykit.export.commands import verification
from safetykit.export.runtime import served_canary
from safetykit.export.runtime.canary import Canary
from safetykit.toolkit.commands import progress
from safetykit.toolkit.commands.progress import LiveWork, PlainWork, Work
from safetykit.toolkit.model import endpoint
from safetykit.toolkit.model.endpoint import KEY_VARIABLE, Endpoint
from safetykit.toolkit.model.inputs import InputProcessor

DATA = ("--data", "reference", "--limit", 10, "--max-new-tokens", TOKENS)


@pytest.fixture(scope="module")
def address(served):
    with listening(served) as found:
        yield found


def test_a_server_answers_records_as_its_export_does(address, served, tmp_path):
    here = safetykit("eval", served, *DATA, "-o", tmp_path / "here.json")
    there = safetykit(
        "eval", address, *DATA, "--batch-size", 4, "--served-model", "tiny", "-o", tmp_path / "there.json"
    )
    assert here.code == there.code == 0, there.err
    mine, theirs = (json.loads((tmp_path / name).read_text()) for name in ("here.json", "there.json"))
    assert theirs["model"] == address and theirs["rows"] == mine["rows"] and "verify" in there.err
    for one, other in zip(mine["decisions"], theirs["decisions"], strict=True):
        assert {**one, "scores": None} == {**other, "scores": None}
        assert one["scores"].keys() == other["scores"].keys()
        assert other["scores"] == pytest.approx(one["scores"], abs=1e-4)
    assert len({one["text"] for one in theirs["decisions"]}) > 1


def test_a_system_prompt_and_the_root_of_the_address(address, served):
    asked = ("--system", "use the thing .", "--json")
    here, there = (safetykit("eval", where, *DATA, *asked).value for where in (served, address.removesuffix("/v1")))
    assert here["system"] == there["system"] != "" and here["rows"] == there["rows"]


@pytest.mark.parametrize(
    "typed, said",
    [
        (("--adapter", "x"), "has its adapters already"),
        (("--swap", "x"), "--swap does nothing without a model that runs here"),
        (("--provider", "CPUExecutionProvider"), "--provider does nothing"),
        (("--max-prompt-tokens", 9), "--max-prompt-tokens does nothing"),
        (("--device", "cpu"), "--device does nothing"),
        (("--served-model", "tinny"), "Did you mean"),
    ],
)
def test_what_cannot_act_at_a_server(address, typed, said):
    done = safetykit("eval", address, *DATA, *typed)
    assert done.code == 2 and said in " ".join(done.err.split()), done.err


def test_a_model_of_a_server_where_there_is_none(served):
    done = safetykit("eval", served, *DATA, "--served-model", "tiny")
    assert done.code == 2 and "--served-model does nothing without the address of a server" in " ".join(
        done.err.split()
    )


def test_keys_are_told_by_the_environment(served, monkeypatch):
    with listening(served, keys=(KEY,)) as there:
        done = safetykit("eval", there, *DATA)
        assert done.code == 2 and f"Put an API key into {KEY_VARIABLE}" in done.err
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        assert safetykit("eval", there, *DATA).code == 0


def test_a_request_that_is_refused_is_named(address):
    asked = Endpoint(address)
    with pytest.raises(RequestRefused, match="Request 2 of 2") as caught:
        asked.generate([Request("what is this ?"), Request("club " * 4000)], TOKENS)
    assert caught.value.at == 1
    with pytest.raises(UsageError, match="begins its answers itself"):
        asked.ask(Request("what is this ?", answer="it is"), TOKENS)


def test_canaries_at_a_server(canary_export, served):
    with listening(canary_export) as there:
        done = safetykit("verify", canary_export, "--canary", "--server", there, "--served-model", "tiny", "--json")
        assert done.code == 0 and done.value["canary"] == {"asked": 6, "telling": 6, "providers": [there]}, done.err
        done = safetykit("verify", canary_export, "--canary", "--server", there, "--provider", "CPUExecutionProvider")
        assert done.code == 2 and "the server chose its own" in done.err
    with listening(served) as other:
        done = safetykit("verify", canary_export, "--canary", "--server", other)
        assert done.code == 5 and "canaries of" in done.err and "differ at http" in done.err
    for words in (("--server", "http://127.0.0.1:1/v1"), ("--served-model", "tiny")):
        done = safetykit("verify", canary_export, *words)
        assert done.code == 2 and f"{words[0]} does nothing with --canary off" in done.err
    done = safetykit("verify", canary_export, "--canary", "--served-model", "tiny")
    assert done.code == 2 and "--served-model does nothing without a server" in " ".join(done.err.split())


def test_a_server_whose_adapters_do_not_act_is_noticed(canary_export):
    import numpy as np

    def switch_off(model):
        run = model._decoder.run
        model._decoder.run = lambda outputs, feeds: run(
            outputs, {**feeds, "safetykit.enabled": np.array(0, np.float32)}
        )

    with listening(canary_export, change=switch_off) as there:
        done = safetykit("verify", canary_export, "--canary", "--server", there)
    assert done.code == 5 and "of 6 canaries" in done.err


@pytest.mark.parametrize("ends", ["stop", "length"])
def test_an_answer_that_goes_on_where_the_canary_s_ended_is_another(served, ends):
    inputs = InputProcessor.from_pretrained(served)
    end = next(iter(inputs.eos_token_ids))
    word = next(at for at in range(5, 50) if at not in inputs.eos_token_ids and inputs.decode([at]))
    message = SimpleNamespace(content=inputs.decode([word]))
    choice = SimpleNamespace(message=message, finish_reason=ends, logprobs=None)
    given = SimpleNamespace(choices=[choice], model_extra={"safetykit": {"refused": False}})
    asked = SimpleNamespace(ask=lambda *_, **__: given)
    found = served_canary._differs(asked, inputs, Canary(prompt="what is this ?", tokens=(word, end)))
    assert (found is None) if ends == "stop" else "does not end there" in found


class Foreign(BaseHTTPRequestHandler):
    """Servers of others, by the first part of the path."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        names = {"two": ["a", "b"], "none": []}.get(kind, ["a"])
        self.tell(404 if kind == "lost" else 200, {"data": [{"id": one, "object": "model"} for one in names]})

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        kind = self.path.split("/")[1]
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes ."}}
        whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "a", "choices": [choice]}
        if kind == "filter":
            choice["finish_reason"], choice["message"] = "content_filter", {"role": "assistant", "refusal": "no ."}
        self.tell(500 if kind == "broken" else 200, {**whole, "choices": []} if kind == "empty" else whole)

    def tell(self, status, value):
        data = b"<html>" if "/html/" in self.path else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *given):
        pass


@pytest.fixture(scope="module")
def foreign():
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_servers_of_others_are_asked_too(foreign, canary_export):
    (found,) = Endpoint(f"{foreign}/plain/v1").generate([Request("what is this ?")])
    assert (found.text, found.scores, found.refused) == ("yes .", {}, False)
    (found,) = Endpoint(f"{foreign}/filter/v1").generate([Request("what is this ?")])
    assert (found.text, found.refused) == ("no .", True)
    assert Endpoint(f"{foreign}/two/v1", "b").model == "b"
    done = safetykit("verify", canary_export, "--canary", "--server", f"{foreign}/plain/v1")
    assert done.code == 2 and "none of safetykit's" in done.err


@pytest.mark.parametrize(
    "kind, error, said",
    [
        ("two", UsageError, "several models, or none: a, b"),
        ("none", UsageError, "several models, or none: none"),
        ("lost", UsageError, "does not know that"),
        ("html", ServerFailed, "does not answer as OpenAI's interface does"),
        ("broken", ServerFailed, "failed with status 500"),
        ("empty", ServerFailed, "without an answer"),
    ],
)
def test_servers_that_are_none_or_fail(foreign, monkeypatch, kind, error, said):
    monkeypatch.setattr(endpoint, "_RETRIES", 0)
    with pytest.raises(error, match=said):
        Endpoint(f"{foreign}/{kind}/v1").generate([Request("what is this ?")])


def test_no_server_and_no_address(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    done = safetykit("eval", f"http://127.0.0.1:{port}/v1", *DATA, "-o", tmp_path / "x.json")
    assert done.code == 9 and "does not answer" in done.err and "Traceback" not in done.err
    assert time.monotonic() - began < 30 and not (tmp_path / "x.json").exists()
    done = safetykit("eval", "http://", *DATA)
    assert done.code == 2 and "is no address of a server" in done.err


def called(*typed):
    done = safetykit(*typed)
    return done.code, done.out, done.err


class Dying(Foreign):
    """A server that answers some requests and then is gone, until it comes back."""

    left = 0

    def do_POST(self):
        type(self).left -= 1
        if self.left < 0:
            self.close_connection = True  # without an answer, as a process that was killed
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        super().do_POST()


@pytest.fixture
def dying(monkeypatch):
    """The address of a server that dies after eight answers."""
    monkeypatch.setattr(Dying, "left", 8)
    with ThreadingHTTPServer(("127.0.0.1", 0), Dying) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/plain/v1"
        server.shutdown()


def test_an_evaluation_whose_server_dies_says_so_and_goes_on_when_it_is_back(dying, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "_PAUSE", 0.01)
    monkeypatch.setattr(endpoint, "_RETRIES", 2)
    kept = tmp_path / ".out.json.partial.jsonl"
    typed = ("eval", dying, *DATA, "--batch-size", 4, "-o", tmp_path / "out.json")
    code, _, err = called(*typed)
    assert code == 9 and err.count("the server does not answer (") == 1 and "and is asked again ..." in err
    assert f"What it has answered is kept in {kept}: the same command goes on from there." in err
    assert [path.name for path in tmp_path.iterdir()] == [kept.name] and len(kept.read_text().splitlines()) == 3
    Dying.left = 100
    assert called(*typed)[0] == 0 and Dying.left == 100 - 2 and not kept.exists()
    Dying.left = 4
    code, _, err = called(*typed[:-2])
    assert code == 9 and "See whether it runs there." in err and "kept" not in err


def test_a_wish_to_end_is_heard_while_a_server_is_asked_again(dying, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "_PAUSE", 60.0)
    monkeypatch.setattr(endpoint, "_LONGEST_PAUSE", 60.0)
    hold = Work.hold
    told = []

    def held(self, why):
        hold(self, why)
        told.append(why)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PlainWork, "hold", held)
    began = time.monotonic()
    code, _, err = called("eval", dying, *DATA, "--batch-size", 4, "-o", tmp_path / "out.json")
    assert code == 143 and time.monotonic() - began < 5 and told[0].startswith("the server does not answer (")
    assert "2 finished parts are kept in" in err and "The same command goes on where it stopped" in err


def test_a_step_that_is_held_up_has_no_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    with PlainWork("answering") as doing:
        doing.count(1, 4)
        doing.hold("the server is away")
        time.sleep(0.2)
        doing.count(2, 4)
    err = capsys.readouterr().err
    assert "the server is away ...\nanswering: 1 of 4, the server is away, 0 s\n" in err and "left" not in err
    live = LiveWork("answering")
    live.count(1, 4)
    live.hold("the server is away")
    assert live._live.tasks[0].fields["counted"] == "1/4 the server is away"


def test_what_a_server_says_of_its_models_is_said_before_files_are_read(foreign, canary_export, monkeypatch):
    monkeypatch.setattr(verification, "require_hashes", lambda *_: pytest.fail("files were read"))
    code, _, err = called(
        "verify", canary_export, "--canary", "--server", f"{foreign}/plain/v1", "--served-model", "ab"
    )
    assert code == 2 and "has no model 'ab'; it has a." in err and "Say --served-model" not in err
    monkeypatch.setattr(endpoint, "_RETRIES", 0)
    code, _, err = called("verify", canary_export, "--canary", "--server", "http://127.0.0.1:1/v1")
    assert code == 9 and "See whether it runs there." in err and "kept" not in err


def test_a_swap_at_an_export_of_fixed_parameters_asks_for_no_checkpoint(canary_export):
    code, _, err = called("verify", canary_export, "--canary", "--swap", "guard")
    assert code == 2 and "parameters are fixed" in err and "checkpoint" not in err
