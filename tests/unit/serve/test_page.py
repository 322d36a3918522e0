"""The page to try a server with, in a real browser: a picture, a streamed answer, a refusal, a comparison, an error."""

import time

import pytest
from browser import browsing, needs_browser
from serving import KEY, TOKENS, is_refused, listening, serving

from safetykit import OnnxVLM

STATIC = ("page.css", "page.js", "client.js", "verdict.js")
WORDS = "#talk li:last-child .words"


def test_the_page_is_served_where_it_is_asked_for_only(client, served):
    for path in ("/", "/page/page.js"):
        is_refused(client.get(path), 404, None, "unknown_url")
    with serving(served, page=True, keys=[KEY]) as other:
        answers = [other.get(path) for path in ("/", *(f"/page/{name}" for name in STATIC))]
        assert {one.status_code for one in answers} == {200}, "the page holds nothing that a key protects"
        for one in answers:
            policy = one.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            assert one.headers["x-content-type-options"] == "nosniff"
        page, *parts = (one.text for one in answers)
        assert "//" not in page and not any("http" in one or "innerHTML" in one for one in parts)
        assert " style=" not in page and " on" not in page.split("<body>")[1].split("<p")[0]
        for path in ("/page/other", "/page/..%2fapp.py", "/page/", "/page/index.html"):
            is_refused(other.get(path), 404, None, "unknown_url")


def test_a_model_says_what_a_request_may_choose(served):
    with serving(served, allow_shadow=True, max_pictures=3) as client:
        (told,) = client.get("/v1/models").json()["data"]
    policy = {name: told["safetykit"][name] for name in ("adapters", "shadow", "max_new_tokens", "max_pictures")}
    assert policy == {"adapters": ["on"], "shadow": True, "max_new_tokens": 16, "max_pictures": 3}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


PASTED = """(() => {
  const data = new DataTransfer();
  for (const kind of %s) data.items.add(new File([new Uint8Array(3)], "a", { type: kind }));
  const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
  document.getElementById("prompt").dispatchEvent(%s);
})()"""
DROP = 'new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })'


def slowly(model):
    step = model.step

    def slow(*given, **named):
        time.sleep(0.2)
        return step(*given, **named)

    model.step = slow


def ask(page, text):
    many = len(page.text("#talk > li"))
    page.type("#prompt", text, enter=True)
    page.wait(f"document.querySelectorAll('#talk > li').length > {many} && document.getElementById('stop').hidden")


@needs_browser
def test_a_conversation_with_a_picture_a_refusal_and_a_comparison(page, served, requests, expected, tmp_path):
    answers, threshold = expected
    with listening(served, page=True, allow_shadow=True) as address:
        page.open(address.removesuffix("/v1"))
        page.wait("document.getElementById('model').textContent === 'tiny'")
        assert page.value("document.getElementById('scaled').hidden"), "nothing that the server does not allow"
        page.value(f"document.getElementById('tokens').value = {TOKENS}")
        for request, answer in zip(requests, answers, strict=True):
            for place, picture in enumerate(request.pictures):
                picture.save(tmp_path / f"{place}.png")
                page.choose_files("#files", tmp_path / f"{place}.png")
                page.wait(f"document.querySelectorAll('#pictures li').length === {place + 1}")
            ask(page, request.prompt)
            assert page.text(WORDS) == [answer.text]
            assert len(page.text("#talk li:last-child .said img")) == len(request.pictures) and not page.text(
                "#pictures li"
            )
            (verdict,) = page.text("#talk li:last-child .verdict")
            risk = f"Risk {answer.scores['risk'] + threshold:.2f}".replace("-", "−")
            assert risk in verdict and f"{threshold:.2f}".replace("-", "−") in verdict
            assert verdict.startswith("Refused." if answer.refused else "Answered.")
            assert len(page.text("#talk li:last-child article.refused")) == answer.refused
            page.click("#anew")
        refused = next(
            one for one, answer in zip(requests, answers, strict=True) if answer.refused and not one.pictures
        )
        page.value("document.getElementById('compare').value = 'shadow'")
        ask(page, refused.prompt)
        shadow, own = page.text("#talk li:last-child .verdict")
        assert shadow.startswith("Answered in shadow mode; it would have been refused.") and own.startswith("Refused.")
        assert len(set(page.text(WORDS))) == 2
        page.click("#anew")
        page.value("document.getElementById('compare').value = ''")
        ask(page, "<img src=x onerror=alert(1)> what is this ?")
        assert page.text("#talk .said p") == ["<img src=x onerror=alert(1)> what is this ?"]
        assert not page.said, "neither the console nor the policy complained"


@needs_browser
def test_a_strength_is_chosen_where_the_server_allows_one(page, scalable, base_folder, requests):
    models = [OnnxVLM.from_pretrained(folder) for folder in (base_folder, scalable)]
    asked = next(one for one in requests if not one.pictures and not models[1].generate(one, TOKENS).refused)
    plain, fitted = (model.generate(asked, TOKENS).text for model in models)
    assert plain != fitted
    with listening(scalable, page=True, allow_strength=1.5) as address:
        page.open(address.removesuffix("/v1"))
        page.wait("document.getElementById('model').textContent === 'tiny'")
        page.value("document.getElementById('settings').open = true")
        assert "as fitted, 1.5 the most" in page.text("#scaled label")[0].replace("\n", " ")
        page.value(f"document.getElementById('tokens').value = {TOKENS}")
        for given, shown in (("0", ["the export's own adapters, strength 0"]), ("1", []), ("", [])):
            page.value(f"document.getElementById('strength').value = '{given}'")
            ask(page, asked.prompt)
            assert page.text(WORDS) == [plain if shown else fitted]
            assert page.text("#talk li:last-child h2:not(.hidden)") == shown
            page.click("#anew")
        page.value("document.getElementById('strength').value = 0")
        page.value("document.getElementById('compare').value = 'fitted'")
        ask(page, asked.prompt)
        assert page.text(WORDS) == [plain, fitted]
        titles = ["the export's own adapters, strength 0", "the export's own adapters, as fitted"]
        assert page.text("#talk li:last-child h2") == titles
        page.value("document.getElementById('strength').value = 1.6")
        ask(page, asked.prompt)
        assert "safetykit.strength is at most 1.5" in page.text("#talk .wrong")[0]


@needs_browser
def test_pictures_are_pasted_dropped_and_taken_back_and_an_answer_is_stopped(page, served):
    with listening(served, change=slowly, page=True) as address:
        page.open(address.removesuffix("/v1"))
        page.wait("document.getElementById('model').textContent === 'tiny'")
        page.value(PASTED % ('["image/png"]', "event"))
        page.wait("document.querySelectorAll('#pictures li').length === 1")
        page.value(PASTED % ('["image/png", "text/csv"]', DROP))
        page.wait("document.querySelectorAll('#pictures li').length === 2")
        assert page.text("#notice") == ["a is no picture."]
        for left in (1, 0):
            page.click("#pictures button")
            page.wait(f"document.querySelectorAll('#pictures li').length === {left}")
        page.value("document.getElementById('prompt').focus()")
        page.press("Tab", 9)
        page.press("Tab", 9)
        assert page.value("document.activeElement.id") == "anew", "what can be clicked can be reached by keys"
        page.type("#prompt", "what is in the picture ?", enter=True)
        page.wait(
            "document.querySelector('.words')?.textContent.length > 0 && Boolean(document.querySelector('.verdict'))"
        )
        assert page.value("document.getElementById('send').disabled && !document.getElementById('stop').hidden")
        page.click("#stop")
        page.wait("document.querySelector('.wrong')?.textContent === 'Stopped.'")
        assert page.value("document.getElementById('stop').hidden")


@needs_browser
def test_keys_and_errors_are_told_in_words(page, served):
    with listening(served, keys=(KEY,), page=True) as address:
        page.open(address.removesuffix("/v1"))
        page.wait("!document.getElementById('notice').hidden && document.getElementById('settings').open")
        assert "asks for an API key" in page.text("#notice")[0]
        page.type("#key", "wrong-wrong-wrong-wrong")
        ask_again = "document.getElementById('key').blur()"  # which tells the page that it changed
        page.value(ask_again)
        page.wait("document.getElementById('notice').textContent.includes('Incorrect API key')")
        page.value("document.getElementById('key').value = ''")
        page.type("#key", KEY)
        page.value(ask_again)
        page.wait("document.getElementById('model').textContent === 'tiny'")
        assert page.text("#notice") == [""]
        page.value("document.getElementById('tokens').value = 4000")
        ask(page, "what is this ?")
        assert "max_tokens is at most 64" in page.text("#talk .wrong")[0]
        assert page.value("document.getElementById('prompt').value") == "what is this ?", "to be sent again"
        stored = "localStorage.length + sessionStorage.length + document.cookie.length"
        assert page.value(stored) == 0, "the key is in memory only"
    page.click("#anew")
    page.click("#send")
    page.wait("document.querySelector('.wrong')?.textContent.includes('does not answer')")
