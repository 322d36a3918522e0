"""The HTTP surface over a small export: the same answers as `run`'s, whatever the form; everything else by its name."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

from serving import CHAT, KEY, TOKENS, body, check, events, is_refused, serving

from safetykit import OnnxVLM
from safetykit.export.manifest import LAYOUT
from safetykit.serve.logs import Log


def test_answers_are_those_of_generate_alone_together_and_streamed(client, as_messages, requests, expected):
    answers, threshold = expected
    bodies = [body(as_messages(one)) for one in requests]
    for sent, answer in zip(bodies, answers, strict=True):
        check(client.post(CHAT, json=sent).json(), answer, threshold)
    many = 8 * bodies
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda sent: client.post(CHAT, json=sent).json(), many))
    for value, answer in zip(found, 8 * answers, strict=True):
        check(value, answer, threshold)
    for sent, answer in zip(bodies, answers, strict=True):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        first, *pieces, last, used = events(client.post(CHAT, json={**sent, **options}))
        assert first["choices"][0]["delta"]["role"] == "assistant" and first["safetykit"] == last["safetykit"]
        assert used["choices"] == [] and first["usage"] is None
        text = "".join(one["choices"][0]["delta"]["content"] for one in pieces)
        choice = {"message": {"role": "assistant", "content": text, "refusal": None}}
        whole = {**last, "choices": [{**last["choices"][0], **choice}], "usage": used["usage"]}
        check(whole, answer, threshold)


def test_drawn_answers_follow_the_seed_and_several_differ(client, as_messages, answered, served):
    fields = {"temperature": 1.5, "top_p": 0.9, "seed": 5}
    first, again = (client.post(CHAT, json=body(as_messages(answered), **fields)).json() for _ in range(2))
    model = OnnxVLM.from_pretrained(served)
    alone = model.generate(answered, TOKENS, do_sample=True, temperature=1.5, top_p=0.9, seed=5)
    assert first["choices"] == again["choices"] and first["choices"][0]["message"]["content"] == alone.text
    three = client.post(CHAT, json=body(as_messages(answered), n=3, **fields)).json()
    texts = [one["message"]["content"] for one in three["choices"]]
    assert texts[0] == alone.text and len(set(texts)) > 1 and [one["index"] for one in three["choices"]] == [0, 1, 2]
    streamed = events(client.post(CHAT, json=body(as_messages(answered), n=3, stream=True, **fields)))
    parts = ["", "", ""]
    for one in streamed:
        parts[one["choices"][0]["index"]] += one["choices"][0]["delta"].get("content", "")
    assert parts == texts


def test_a_stop_text_ends_the_answer_before_it(client, as_messages, answered, expected, requests):
    text = expected[0][requests.index(answered)].text
    stop = text.split()[3]
    for streamed in (False, True):
        found = client.post(CHAT, json=body(as_messages(answered), stop=["never said", stop], stream=streamed))
        if streamed:
            said = "".join(one["choices"][0]["delta"].get("content", "") for one in events(found))
        else:
            said = found.json()["choices"][0]["message"]["content"]
            assert found.json()["choices"][0]["finish_reason"] == "stop"
        assert said == text[: text.index(stop)]


def test_log_probabilities(client, as_messages, answered):
    (choice,) = client.post(CHAT, json=body(as_messages(answered), logprobs=True, top_logprobs=3)).json()["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == TOKENS
    for one in content:
        assert one["logprob"] == one["top_logprobs"][0]["logprob"] <= 0, "greedy takes the most probable"
        assert len(one["top_logprobs"]) == 3 and bytes(one["bytes"]).decode() == one["token"]
    streamed = events(client.post(CHAT, json=body(as_messages(answered), logprobs=True, stream=True)))
    found = [token for one in streamed if (told := one["choices"][0]["logprobs"]) for token in told["content"]]
    assert [one["token"] for one in found] == [one["token"] for one in content]
    assert all(one["top_logprobs"] == [] for one in found)


def test_conversations_are_read_as_they_are(client, served):
    model = OnnxVLM.from_pretrained(served)
    messages = [
        {"role": "user", "content": "what is this ?"},
        {"role": "assistant", "content": "the thing .", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": [{"type": "text", "text": "how to use it ?"}]},
    ]
    plain = [{"role": one["role"], "content": one["content"]} for one in messages]
    value = client.post(CHAT, json=body(messages)).json()
    assert value["choices"][0]["message"]["content"] == model.generate(plain, TOKENS).text
    value = client.post(CHAT, json=body([{"role": "developer", "content": "use it ."}, *messages])).json()
    expected = model.generate([{"role": "system", "content": "use it ."}, *plain], TOKENS)
    assert value["choices"][0]["message"]["content"] == expected.text


def test_keys_are_asked_for_everywhere_but_by_orchestrators(served):
    with serving(served, keys=[KEY, KEY[::-1]]) as client:
        for path in ("/v1/models", "/v1/models/tiny", "/metrics"):
            is_refused(client.get(path), 401, None, "missing_api_key")
            wrong = client.get(path, headers={"Authorization": "Bearer another-key-0123456789"})
            is_refused(wrong, 401, None, "invalid_api_key")
            for key in (KEY, KEY[::-1]):
                assert client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        is_refused(client.post(CHAT, content=b"{"), 401, None, "missing_api_key")
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200


def test_what_is_not_served_is_told_in_the_same_form(client):
    is_refused(client.get("/v1/nothing"), 404, None, "unknown_url")
    other = client.post("/v1/responses", json={})  # which harnesses try first
    assert other.status_code == 404 and f"POST {CHAT}" in other.json()["error"]["message"]
    is_refused(client.get(CHAT), 405, None, "unknown_url")
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    is_refused(client.get("/v1/models/other"), 404, "model", "model_not_found")


def test_a_body_beyond_the_limit_is_not_read(served):
    with serving(served, max_body=2000) as client:
        is_refused(client.post(CHAT, content=b"x" * 3000), 413, None, "request_too_large")
        parts = (b"x" * 500 for _ in range(6))  # sent without its length
        is_refused(client.post(CHAT, content=parts), 413, None, "request_too_large")


def test_metrics_and_log_say_what_happened_and_not_what_was_said(served, as_messages, answered, refused):
    log = io.StringIO()
    with serving(served, log=Log(log)) as client:
        client.post(CHAT, json=body(as_messages(answered)))
        client.post(CHAT, json=body(as_messages(refused)))
        client.post(CHAT, content=b"{")
        page = client.get("/metrics").text
    for line in (
        'safetykit_requests_total{status="200"} 2.0',
        'safetykit_requests_total{status="400"} 1.0',
        'safetykit_answers_total{finish_reason="content_filter"} 1.0',
        "safetykit_refusals_total 1.0",
        "safetykit_risk_log_odds_count 2.0",
        "safetykit_queue_rows 0.0",
        "safetykit_batch_rows 0.0",
    ):
        assert line in page.splitlines(), page
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [one["status"] for one in lines] == [200, 200, 400] and lines[1]["refused"]
    assert answered.prompt not in log.getvalue()
    log = io.StringIO()
    with serving(served, log=Log(log, prompts=True)) as client:
        client.post(CHAT, json=body(as_messages(answered)))
    assert json.loads(log.getvalue())["prompt"] == answered.prompt


def test_shadow_mode_tells_the_risk_and_answers(served, as_messages, refused):
    with serving(served, allow_shadow=True) as client:
        value = client.post(CHAT, json=body(as_messages(refused), safetykit={"shadow": True})).json()
        acted = client.post(CHAT, json=body(as_messages(refused))).json()
    verdict = value["safetykit"]
    assert verdict["would_refuse"] and not verdict["refused"] and verdict["risk"] == acted["safetykit"]["risk"]
    assert value["choices"][0]["finish_reason"] != "content_filter" == acted["choices"][0]["finish_reason"]
    assert "would_refuse" not in acted["safetykit"]


def test_a_request_may_choose_among_named_adapters(served, as_messages, requests, make_adapter, make_probe):
    from safetykit.export.runtime.hotswap import read_swap

    model = OnnxVLM.from_pretrained(served)
    others = [
        make_adapter(("SupervisedSteering", "decoder.layers.2", "all", "both"), seed=4),
        make_probe(threshold=99.0),
    ]
    swap = read_swap(others, model.manifest, allow_uncorrected_detector=True)
    answers = [model.generate(one, TOKENS) for one in requests]
    model.install(swap)
    swapped = [model.generate(one, TOKENS) for one in requests]
    assert [one.text for one in answers] != [one.text for one in swapped]
    model.reset()
    with serving(served, swaps={"other": swap}, model=model) as client, ThreadPoolExecutor(8) as pool:
        bodies = [
            body(as_messages(one), safetykit={"adapter": name})
            for _ in range(3)
            for one in requests
            for name in ("on", "other")
        ]
        found = list(pool.map(lambda sent: client.post(CHAT, json=sent).json(), bodies))
    expected = [one for _ in range(3) for pair in zip(answers, swapped, strict=True) for one in pair]
    for sent, value, answer in zip(bodies, found, expected, strict=True):
        assert value["choices"][0]["message"]["content"] == answer.text
        assert value["safetykit"]["adapter"] == sent["safetykit"]["adapter"]


def test_a_request_may_ask_the_model_without_adapters(served, base_folder, as_messages, requests, tmp_path):
    """What the base graphs' own export answers, whatever the detector would say, beside answers with adapters."""
    folder = shutil.copytree(served, tmp_path / "served")
    shutil.copyfile(base_folder / LAYOUT.decoder, folder / LAYOUT.base_graph("decoder"))
    model = OnnxVLM.from_pretrained(folder)
    answers = [model.generate(one, TOKENS) for one in requests]
    plain = OnnxVLM.from_pretrained(base_folder)
    unmodified = [plain.generate(one, TOKENS) for one in requests]
    assert any(one.refused for one in answers) and [one.text for one in answers] != [one.text for one in unmodified]
    with serving(folder, model=model, plain=model.unmodified()) as client, ThreadPoolExecutor(8) as pool:
        assert client.get("/v1/models").json()["data"][0]["safetykit"]["adapters"] == ["on", "off"]
        names = ["off", "on"] * len(requests)
        bodies = [
            body(as_messages(one), safetykit={"adapter": name})
            for one, name in zip([one for one in requests for _ in range(2)], names, strict=True)
        ]
        found = list(pool.map(lambda sent: client.post(CHAT, json=sent).json(), bodies))
    expected = [one for pair in zip(unmodified, answers, strict=True) for one in pair]
    for name, value, answer in zip(names, found, expected, strict=True):
        assert value["choices"][0]["message"]["content"] == answer.text, name
        assert (value["safetykit"]["adapter"], value["safetykit"]["refused"]) == (name, answer.refused)
        assert (value["safetykit"]["risk"] is None) == (name == "off")


def test_an_answer_that_takes_too_long_fails_with_504(served, as_messages, answered):
    with serving(served, timeout=1e-9) as client:
        is_refused(client.post(CHAT, json=body(as_messages(answered))), 504, None, "timeout")


def test_a_full_queue_is_429_with_a_time_to_wait(served, as_messages, answered, monkeypatch):
    with serving(served, max_batch=1, max_queue=1) as client:
        step = client.service.model.step
        import time

        def slow(*given, **named):
            time.sleep(0.05)
            return step(*given, **named)

        monkeypatch.setattr(client.service.model, "step", slow)
        with ThreadPoolExecutor(8) as pool:
            sent = body(as_messages(answered))
            found = list(pool.map(lambda _: client.post(CHAT, json=sent), range(8)))
        statuses = [one.status_code for one in found]
        assert set(statuses) == {200, 429} and statuses.count(200) >= 1
        for one in found:
            if one.status_code == 429:
                is_refused(one, 429, None, "queue_full")
                assert int(one.headers["retry-after"]) >= 1


def test_a_fault_of_the_model_is_a_500_that_betrays_nothing(served, as_messages, answered, monkeypatch):
    log = io.StringIO()
    with serving(served, log=Log(log)) as client:

        def broken(*given, **named):
            raise RuntimeError("secret path /home/x")

        monkeypatch.setattr(client.service.model, "prefill_requests", broken)
        response = client.post(CHAT, json=body(as_messages(answered)))
        is_refused(response, 500, None, "internal_error")
        assert "secret" not in response.text and "secret path" in log.getvalue()
        monkeypatch.undo()
        assert client.post(CHAT, json=body(as_messages(answered))).status_code == 200
