"""What the docs show of containers: a server starts with these very arguments, and has what they probe."""

import json
import re
import shlex
from pathlib import Path

import yaml
from serving import KEY, serving
from workshop import safetykit

from safetykit.serve.access import KEYS_VARIABLE
from safetykit.serve.replicas import read_options

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "howto" / "serve.md").read_text()
VALUES = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
DOCKERFILE = re.search(r"```dockerfile\n(.*?)```", PAGE, re.S)[1]


def started(arguments, export, keys):
    """What `--check` says of a server with these arguments, in the places of this machine."""
    here = {"/models/export": str(export), "/run/secrets/keys": str(keys), "8000": "0", "0.0.0.0": "127.0.0.1"}
    words = [here.get(one, one) for one in arguments if one != "--canary"]  # the small export has no canaries
    done = safetykit(*words, "--check", "--json")
    assert done.code == 0, done.err
    return done.value


def test_the_container_starts_as_its_file_says(served, tmp_path):
    (tmp_path / "keys").write_text(f"{KEY}\n")
    lines = dict(line.split(" ", 1) for line in DOCKERFILE.splitlines())
    command = [*json.loads(lines["ENTRYPOINT"]), *json.loads(lines["CMD"])]
    assert command[0] == "safetykit" and "--canary" in command
    told = started(command[1:], served, tmp_path / "keys")
    assert told["model"] == "my-vlm" and told["keys"] == 1
    assert lines["EXPOSE"] == command[command.index("--port") + 1]
    assert "/src[cpu,serve]" in shlex.split(lines["RUN"]) and (ROOT / "constraints.txt").is_file()


def test_the_values_start_a_server_that_has_what_they_probe(served, tmp_path, monkeypatch):
    monkeypatch.setenv(VALUES["env"][0]["name"], KEY)
    assert VALUES["env"][0]["name"] == KEYS_VARIABLE
    told = started(VALUES["args"], served, tmp_path)
    assert (told["keys"], told["max_batch"], told["max_queue"], told["drain"]) == (1, 8, 64, 30)
    assert VALUES["terminationGracePeriodSeconds"] > told["drain"]
    (port,) = VALUES["ports"]
    assert str(port["containerPort"]) == VALUES["args"][VALUES["args"].index("--port") + 1]
    with serving(served) as client:
        for name in ("livenessProbe", "readinessProbe", "startupProbe"):
            probe = VALUES[name]["httpGet"]
            assert probe["port"] == port["name"] and client.get(probe["path"]).status_code == 200
        assert client.get(VALUES["podAnnotations"]["prometheus.io/path"]).status_code == 200


def test_the_command_of_ray_names_options_that_there_are():
    line = re.search(r"^serve run safetykit\.serve\.replicas:deployment (.*)$", PAGE, re.M)[1]
    options = read_options(dict(one.split("=", 1) for one in line.split()))
    assert options.replicas == 2 and options.name == "my-vlm"
