"""The deployment of Ray Serve: the endpoint's own application in every replica, and its options as `serve` has them."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from starlette.testclient import TestClient

from safetykit.adapters import UsageError
from safetykit.serve import replicas
from safetykit.serve.access import KEYS_VARIABLE

KEY = "a key of sixteen letters".replace(" ", "-")


@pytest.fixture
def ray(monkeypatch):
    """Ray as far as a deployment is declared to it."""
    made = SimpleNamespace()

    def deployment(kind, **options):
        made.kind, made.options = kind, options
        return SimpleNamespace(bind=lambda *given: SimpleNamespace(given=given))

    found = ModuleType("ray")
    found.serve = SimpleNamespace(deployment=deployment, ingress=lambda: lambda kind: kind)
    monkeypatch.setitem(sys.modules, "ray", found)
    return made


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "keys").write_text(f"{KEY}\n")
    return tmp_path / "keys"


def test_every_replica_answers_as_the_endpoint_does(ray, keys, served, requests, as_messages, expected):
    given = {"export": str(served), "replicas": "2", "name": "tiny", "max-batch": "3", "api-key-file": str(keys)}
    (options,) = replicas.deployment({**given, "max_queue": 5, "cpus": "0.5", "gpus": "0", "drain": "7"}).given
    assert ray.options == {
        "name": "safetykit",
        "num_replicas": 2,
        "max_ongoing_requests": 8,
        "ray_actor_options": {"num_cpus": 0.5, "num_gpus": 0.0},
        "graceful_shutdown_timeout_s": 7.0,
    }
    replica, (answer, *_) = ray.kind(options), expected[0]
    body = {"model": "tiny", "messages": as_messages(requests[0]), "temperature": 0, "max_tokens": 4}
    with TestClient(replica.__serve_build_asgi_app__()) as client:
        replica.check_health()
        assert client.post("/v1/chat/completions", json=body).status_code == 401
        found = client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}).json()
        assert found["safetykit"]["refused"] == answer.refused
        if answer.refused:
            assert found["choices"][0]["message"]["content"] == answer.text
    with pytest.raises(RuntimeError, match="has ended"):
        replica.check_health()  # so that Ray starts another


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "export"),
        ({"export": "nowhere", "allow-anonymous": "true"}, "There is no export in nowhere"),
        ({"export": "e", "port": "1"}, "port is for Ray's proxies to know"),
        ({"export": "e", "replicas": "0"}, "replicas"),
        ({"export": "e", "max-bach": "1"}, "max_bach"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(ray, given, words):
    with pytest.raises(UsageError, match=words):
        replicas.deployment(given)


def test_nobody_asks_without_a_key_unless_that_was_said(ray, served, keys, monkeypatch):
    with pytest.raises(UsageError, match="allow-anonymous"):
        replicas.deployment({"export": str(served)})
    monkeypatch.setenv(KEYS_VARIABLE, KEY)
    (options,) = replicas.deployment({"export": str(served)}).given
    monkeypatch.delenv(KEYS_VARIABLE)  # a replica elsewhere, whose environment is another one
    with pytest.raises(UsageError, match="allow-anonymous"):
        ray.kind(options)
