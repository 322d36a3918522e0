"""The layout transformers.js in a browser, from static files alone: the tokens that Node gives, and refusals."""

import functools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser import browsing, needs_browser

from safetykit.bench.runtimes import PACKAGE, greedy, node_answers, without_node
from safetykit.export.layouts.arrange import arrange
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base

LENGTH = 8
needs_node = pytest.mark.skipif(without_node() is not None, reason=str(without_node()))
WASM = "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify"
LIBRARY = ("@huggingface/transformers/dist/transformers.min.js", f"{WASM}.mjs", f"{WASM}.wasm")


class Static(SimpleHTTPRequestHandler):
    def log_message(self, *given):
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory, base_folder, make_detector, split_risks, requests):
    """Where a folder with an enforced detector lies, beside it opened by safetykit in its plain form."""
    work = tmp_path_factory.mktemp("browser")
    detector, refused = split_risks(make_detector(1, 2), requests)
    assert any(refused) and not all(refused)
    base = read_manifest(base_folder)
    (work / "plain").mkdir()
    copy_base(base_folder, work / "plain", base)
    adapt(work / "plain", base, [detector], enforce=True)
    folder = shutil.copytree(work / "plain", work / "arranged")
    arrange(folder, read_manifest(folder), "transformers.js")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Static, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/browser/", work
        server.shutdown()


@needs_browser
@needs_node
def test_the_page_gives_the_tokens_of_node_and_the_enforced_refusals(address, requests, tmp_path):
    url, work = address
    folder = work / "arranged"
    with browsing(tmp_path / "profile") as page:
        page.open(url)
        page.wait("document.getElementById('state').className === 'wrong'")
        assert "There is no transformers.js in" in page.text("#state")[0], "what is missing is told"
        (folder / "browser/lib").mkdir()
        for name in LIBRARY:
            shutil.copy(PACKAGE.parents[1] / name, folder / "browser/lib")
        page.open(url)
        page.wait("!document.getElementById('ask').disabled")
        page.said.clear()
        answers = []
        for number, request in enumerate(requests):
            page.value("document.getElementById('form').reset()")
            page.value(f"document.getElementById('tokens').value = {LENGTH}")
            for picture in request.pictures:
                picture.save(tmp_path / f"{number}.png")
                page.choose_files("#picture", tmp_path / f"{number}.png")
            page.type("#prompt", request.prompt)
            page.click("#ask")
            page.wait(
                "document.getElementById('state').textContent === 'Ready.' && !document.getElementById('about').hidden"
            )
            answers.append(json.loads(page.value("document.getElementById('ids').textContent"))["token_ids"])
        assert not page.said, "nothing was asked for that the page's policy forbids"
    plain, arranged = (OnnxVLM.from_pretrained(work / name) for name in ("plain", "arranged"))
    ours = [greedy(plain, request, LENGTH) for request in requests]
    ends = plain.inputs.eos_token_ids
    found = [tuple(one[: next((at for at, token in enumerate(one) if token in ends), None)]) for one in answers]
    assert found == node_answers(arranged, requests, LENGTH, tmp_path / "job") == ours


def test_the_page_loads_nothing_from_elsewhere(address):
    _, work = address
    page = {path.name: path.read_text() for path in (work / "arranged/browser").iterdir() if path.is_file()}
    assert page.keys() == {"index.html", "page.js", "page.css"}
    assert not any("http:" in text or "https:" in text or "innerHTML" in text for text in page.values())
    assert "default-src 'none'" in page["index.html"] and "unsafe-inline" not in page["index.html"]
