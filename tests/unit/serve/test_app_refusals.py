"""What nobody may ask of a server is refused by its name."""

import json
import random

import pytest
from serving import CHAT, body, events, is_refused, serving

from safetykit.serve.body import HARMLESS, NEUTRAL

PNG = "data:image/png;base64,iVBORw0KGgo="
WRONG = {
    "an unknown field": ({"temprature": 1}, "temprature", "unknown_parameter"),
    "no model": ({"model": None}, "model", "missing_required_parameter"),
    "another model": ({"model": "gpt"}, "model", "model_not_found"),
    "no messages": ({"messages": []}, "messages", "invalid_value"),
    "a number as text": ({"temperature": "1"}, "temperature", "invalid_value"),
    "too hot": ({"temperature": 2.5}, "temperature", "invalid_value"),
    "too long": ({"max_tokens": 17}, "max_tokens", "invalid_value"),
    "too long by its other name": (
        {"max_tokens": None, "max_completion_tokens": 17},
        "max_completion_tokens",
        "invalid_value",
    ),
    "two lengths": ({"max_completion_tokens": 3}, "max_tokens", "invalid_value"),
    "too many": ({"n": 9}, "n", "invalid_value"),
    "five stops": ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
    "top without": ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    "stream options without": ({"stream_options": {}}, "stream_options", "invalid_value"),
    "obfuscation": (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "invalid_value",
    ),
    "another adapter": ({"safetykit": {"adapter": "off"}}, "safetykit.adapter", "not_allowed"),
    "shadow": ({"safetykit": {"shadow": True}}, "safetykit.shadow", "not_allowed"),
    "a strength": ({"safetykit": {"strength": 1}}, "safetykit.strength", "not_allowed"),
    "an unknown choice": ({"safetykit": {"threshold": 9}}, "safetykit.threshold", "unknown_parameter"),
    "half a letter": ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "invalid_json"),
}
PARTS = {
    "an address": (
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}},
        "image_url.url",
        "invalid_image_url",
    ),
    "a file": ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "image_url.url", "invalid_image_url"),
    "no picture": ({"type": "image_url", "image_url": {"url": PNG}}, "image_url.url", "invalid_image"),
    "no base64": (
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}},
        "image_url.url",
        "invalid_base64",
    ),
    "a video": ({"type": "video_url", "video_url": {"url": PNG}}, "", "unsupported_parameter"),
    "in detail": (
        {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
        "image_url.detail",
        "unsupported_parameter",
    ),
    "sound": ({"type": "input_audio", "input_audio": {}}, "", "unsupported_parameter"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(client, case):
    fields, param, code = WRONG[case]
    sent = json.dumps(body([{"role": "user", "content": "what is this ?"}]) | fields)
    status = {"model_not_found": 404, "not_allowed": 403}.get(code, 400)
    is_refused(client.post(CHAT, content=sent), status, param, code)


@pytest.mark.parametrize("case", PARTS)
def test_a_part_that_is_wrong_is_named(client, case):
    part, place, code = PARTS[case]
    response = client.post(CHAT, json=body([{"role": "user", "content": [part]}]))
    is_refused(response, 400, f"messages.0.content.0.{place}".rstrip("."), code)


def test_messages_that_nobody_may_send(client, as_messages, requests):
    user = {"role": "user", "content": "what is this ?"}
    begun = {"role": "assistant", "content": "sure ,"}
    is_refused(client.post(CHAT, json=body([user, begun])), 400, "messages.1.role", "invalid_value")
    system = {"role": "system", "content": "it is one ."}
    is_refused(client.post(CHAT, json=body([user, system, user])), 400, "messages.1.role", "invalid_value")
    named = {**user, "name": "somebody"}
    is_refused(client.post(CHAT, json=body([named])), 400, "messages.0.name", "unsupported_parameter")
    pictured = {**as_messages(requests[0])[0], "role": "assistant"}
    is_refused(client.post(CHAT, json=body([user, pictured, user])), 400, "messages.1.content.0", "invalid_value")


def test_pictures_are_counted_and_measured_before_they_are_decoded(client, as_messages, requests):
    shown = as_messages(requests[0])[0]["content"][0]
    many = [{"role": "user", "content": [shown, shown, shown]}]
    place = "messages.0.content.2.image_url"
    is_refused(client.post(CHAT, json=body(many)), 400, place, "too_many_images")
    from PIL import Image

    from safetykit.toolkit.model.requests import Request

    large = as_messages(Request("what is this ?", Image.new("RGB", (40, 30))))
    is_refused(client.post(CHAT, json=body(large)), 400, "messages.0.content.0.image_url", "image_too_large")


def test_a_prompt_that_is_too_long_is_the_clients_fault(client):
    long = [{"role": "user", "content": "the " * 3000}]
    is_refused(client.post(CHAT, json=body(long)), 400, "messages", "context_length_exceeded")
    streamed = client.post(CHAT, json=body(long, stream=True))
    is_refused(streamed, 400, "messages", "context_length_exceeded")


def test_a_conversation_that_is_too_long_loses_its_oldest_turns_where_the_server_may_drop_them(
    served, as_messages, requests
):
    """As the export answers what is left; the answer says so, streamed too, and nothing is dropped that need not be."""
    shown = as_messages(requests[0])
    last = {"role": "user", "content": "describe it ."}
    talk = [*shown, {"role": "assistant", "content": "it is a thing ."}, last]
    with serving(served, truncate=True) as client:
        inputs = client.service.model.inputs
        inputs.limit(12)
        expected = client.service.model.generate("describe it .", 8).text
        value = client.post(CHAT, json=body(talk)).json()
        assert value["safetykit"]["dropped_turns"] == 2 and value["safetykit"]["dropped_pictures"] == 1
        assert value["choices"][0]["message"]["content"] == expected
        first, *_ = events(client.post(CHAT, json=body(talk, stream=True)))
        assert first["safetykit"]["dropped_turns"] == 2
        assert "dropped_turns" not in client.post(CHAT, json=body([last])).json()["safetykit"]
        is_refused(
            client.post(CHAT, json=body([*talk[:2], {"role": "user", "content": "the " * 20}])),
            *(400, "messages", "context_length_exceeded"),
        )
    with serving(served) as client:
        client.service.model.inputs.limit(12)
        is_refused(client.post(CHAT, json=body(talk)), 400, "messages", "context_length_exceeded")


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_fields_that_are_not_supported_may_say_nothing(client, name):
    user = [{"role": "user", "content": "what is this ?"}]
    is_refused(client.post(CHAT, json=body(user, **{name: 0.5})), 400, name, "unsupported_parameter")
    from safetykit.serve.body import read_body

    for value in NEUTRAL[name]:
        assert read_body(json.dumps(body(user, **{name: value})).encode()) == read_body(json.dumps(body(user)).encode())


def test_harmless_fields_are_accepted(client, as_messages, answered):
    plain = client.post(CHAT, json=body(as_messages(answered))).json()
    with_them = client.post(CHAT, json=body(as_messages(answered), **dict.fromkeys(HARMLESS, "x"))).json()
    assert with_them["choices"] == plain["choices"]


def test_a_thousand_malformed_bodies_are_typed_refusals(client, as_messages, requests):
    """Bytes, tokens and values of good bodies changed at random: never a server error, and no answer is lost."""
    draw = random.Random(0)
    whole = json.dumps(body(as_messages(requests[0]), n=1, stop=["x"], seed=1, top_p=1, safetykit={"adapter": "on"}))
    odd = [
        "null",
        "[]",
        "{}",
        "-1",
        "1e999",
        "NaN",
        '"\\ud800"',
        "true",
        '""',
        "[[[[[[[[[[",
        '{"a":',
        "99999999999999999999",
    ]
    values = [None, [], {}, -1, True, "", "\x00", 1e300, [None], {"role": "user"}, [{"type": "text"}], "x" * 10]
    statuses = {}
    for at in range(1000):
        kind = at % 4
        if kind == 0:
            data = bytearray(whole.encode())
            for _ in range(draw.randint(1, 8)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            data = bytes(data)
        elif kind == 1:
            data = whole[: draw.randrange(len(whole))].encode()
        elif kind == 2:
            value = json.loads(whole)
            place = value
            while isinstance(place, (dict, list)) and place:
                key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
                if draw.random() < 0.4 or not isinstance(place[key], (dict, list)):
                    place[key] = draw.choice(values)
                    break
                place = place[key]
            data = json.dumps(value).encode()
        else:
            cut = draw.randrange(len(whole))
            data = (whole[:cut] + draw.choice(odd) + whole[cut + draw.randint(0, 5) :]).encode()
        response = client.post(CHAT, content=data)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        assert response.status_code < 500, (data[:300], response.text)
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert statuses[400] > 700, statuses
    deep = client.post(CHAT, content=b"[" * 100_000)
    is_refused(deep, 400, None, "invalid_json")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((one, 200) for one in ("localhost:8017", "127.0.0.1", "[::1]:8017", "LOCALHOST")),
        *(
            (one, 421)
            for one in (
                "other.example",
                "127.0.0.1.other.example",
                "",
                "[::1",
                "192.168.0.1",
                "x@127.0.0.1",
                "127.0.0.1:x",
            )
        ),
    ],
)
def test_a_name_that_somebody_pointed_at_this_machine_is_refused(client, host, status):
    """A page of that name could read what is answered without a key."""
    found = client.get("/v1/models", headers={"host": host})
    if status == 200:
        assert found.status_code == 200
    else:
        is_refused(found, status, None, "wrong_host")
