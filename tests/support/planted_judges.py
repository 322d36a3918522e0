"""Guards and classifiers whose verdicts are known, and a server that judges: what judges do, without a large model."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

GUARD_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} {% endfor %}"
    "{% if guideline is defined %}{{ guideline }} {% endif %}reply :"
)
_WIDTH, _END = 8, 7  # the last direction is that of replies, after which the model ends


def _tokenizer(words: list[str], replies: list[str]) -> PreTrainedTokenizerFast:
    """Words between spaces, each reply one token, whatever it holds; unknown words are one token, too."""
    ids = {word: at for at, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *words, *replies])}
    made = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(one, special=True) for one in ("<pad>", "<unk>", "<s>", "</s>")])
    found = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    found.unk_token = "<unk>"
    return found


def _planted(model: Any, ids: Mapping[str, int], words: list[str], replies: list[str]) -> None:
    """One block that carries the share of each word in the text into a direction of its own; the largest replies."""
    block, embedding = model.model.layers[0], model.model.embed_tokens.weight
    for parameter in model.parameters():
        parameter.zero_()
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.weight.fill_(1)
    embedding[:, 0] = 1
    for at, word in enumerate(words, start=1):
        embedding[ids[word], at] = 1
        block.self_attn.v_proj.weight[at, at] = 1
        block.self_attn.o_proj.weight[at, at] = 1000
    for reply in replies:
        embedding[ids[reply], _END] = 1e6


def planted_guard(
    folder: Path, replies: Mapping[str, str], default: str, template: str = GUARD_TEMPLATE, longest: int = 2048
) -> Path:
    """A causal language model that replies ``replies[word]`` to a text with that word, else ``default``."""
    words, said = list(replies), list(dict.fromkeys([default, *replies.values()]))
    tokenizer = _tokenizer(words, said)
    ids = tokenizer.get_vocab()
    model = LlamaForCausalLM(_config(len(ids), longest))
    with torch.no_grad():
        _planted(model, ids, words, said)
        model.lm_head.weight[ids[default], 0] = 0.1
        for at, word in enumerate(words, start=1):
            model.lm_head.weight[ids[replies[word]], at] += 1
        model.lm_head.weight[ids["</s>"], _END] = 1
    return _saved(folder, model, tokenizer, template)


def planted_classifier(folder: Path, labels: Mapping[str, str], default: str) -> Path:
    """A sequence classifier that gives ``labels[word]`` to a text with that word, else ``default``."""
    words, names = list(labels), list(dict.fromkeys([default, *labels.values()]))
    tokenizer = _tokenizer(words, [])
    ids = tokenizer.get_vocab()
    config = _config(len(ids), 64)
    config.num_labels, config.id2label = len(names), dict(enumerate(names))
    config.label2id = {name: at for at, name in enumerate(names)}
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        _planted(model, ids, words, [])
        model.score.weight[0, 0] = 0.1
        for at, word in enumerate(words, start=1):
            model.score.weight[names.index(labels[word]), at] += 10
    return _saved(folder, model, tokenizer, "")


def _config(vocabulary: int, longest: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=longest,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        tie_word_embeddings=False,
    )


def _saved(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast, template: str) -> Path:
    tokenizer.chat_template = template or None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def judging_server(reply: Callable[[str], str | int], models: tuple[str, ...] = ("grader",)) -> Iterator[str]:
    """The address of a server that answers a request by ``reply``: its words, or the status of a failure."""

    class Handler(BaseHTTPRequestHandler):
        def _send(self, body: Any, status: int = 200) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._send({"object": "list", "data": [{"id": one, "object": "model"} for one in models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            content = body["messages"][-1]["content"]
            parts = [{"text": content}] if isinstance(content, str) else content
            said = reply("".join(part.get("text", "<picture>") for part in parts))
            if isinstance(said, int):
                return self._send({"error": {"message": "no"}}, said)
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return self._send({"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice]})

        def log_message(self, *_: Any) -> None:
            pass

    ThreadingHTTPServer.request_queue_size = 64
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join(10)
