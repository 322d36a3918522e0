"""Answers with the graphs beside this file, as io.json says. Needs numpy, onnxruntime, tokenizers and Pillow.

python run_ort.py --prompt "What is this?" --image picture.png, or --requests FILE, {"prompt": ..., "image": ...} a line
prints an object a line: text, tokens, whether the detector refused; of a request that cannot be answered its number and
the error, and the program ends with 2. On a GPU: --provider CUDAExecutionProvider.
"""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this folder: no module is taken from it

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, OrtValue
from PIL import Image, ImageOps
from tokenizers import Tokenizer, pre_tokenizers

STAYING = "present."  # what begins so stays on the device, to be fed again
BREAK = "\ufdd0"  # stands in special tokens that users write, which are text, and is dropped where words are split
LETTERS = 64  # of a prompt for each token that it may have: more are not even tokenised
FORMATS, MAX_PIXELS, MAX_RATIO = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"), 50_000_000, 100


def opened(path):
    """A picture in RGB, upright; of a usual format, and small enough, which is seen before it is decoded."""
    if not Path(path).resolve(strict=True).is_file():
        raise OSError(f"{path} is a folder, a pipe or a device")
    less, more = sorted((picture := Image.open(path, formats=FORMATS)).size)
    if not 0 < more <= less * MAX_RATIO or less * more > MAX_PIXELS:
        raise ValueError(f"{path} is too large, too narrow or empty: {picture.width}x{picture.height} pixels")
    return ImageOps.exif_transpose(picture).convert("RGB")


def require_whole(folder, files, names):
    """Refuse files that are not the ones which the manifest names; they are read in pieces."""
    for name in names:
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != files.get(name):
                raise SystemExit(
                    f"{name} is not the file that safetykit.json names. Get the folder from its source again."
                )


class Graph:
    def __init__(self, path, provider):
        self.session = InferenceSession(str(path), providers=[provider])
        if self.session.get_providers()[0] != provider:  # ONNX Runtime falls back without a word
            raise SystemExit(f"ONNX Runtime does not give {provider} here. Install onnxruntime-gpu and its libraries.")
        self.device = "cuda" if provider.startswith("CUDA") else "cpu"
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, feeds):
        binding = self.session.io_binding()
        arrays = {name: np.array(value, order="C") for name, value in feeds.items() if isinstance(value, np.ndarray)}
        for name, value in feeds.items():  # not by bind_cpu_input, which does not know optional inputs
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(arrays[name]) if name in arrays else value)
        for name in self.outputs:
            binding.bind_output(name, self.device if name.startswith(STAYING) else "cpu")
        self.session.run_with_iobinding(binding)
        results = zip(self.outputs, binding.get_outputs(), strict=True)
        return {name: value if name.startswith(STAYING) else value.numpy() for name, value in results}


class Requests:
    """How prompts and pictures are prepared, and what follows for the decoder."""

    def __init__(self, folder, io, base=False):
        self.io, self.graphs = io, {**io["graphs"], **(io["base_graphs"] if base else {})}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding(), self.tokenizer.no_truncation()
        drop, words = pre_tokenizers.Split(BREAK, "removed"), self.tokenizer.pre_tokenizer
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([drop, words]) if words else drop
        added = {at: one.content for at, one in self.tokenizer.get_added_tokens_decoder().items() if one.special}
        token = io["prompt"] and io["prompt"]["picture"]["token"]
        self.special = sorted({one for one in (*added.values(), token or "") if len(one) > 1}, key=len, reverse=True)
        unknown = getattr(self.tokenizer.model, "unk_token", None)  # as which words may be read
        self.special_ids = [at for at, content in added.items() if content != unknown]

    def tokens(self, prompt, pictured):
        """A prompt in the chat template [1, n]; ValueError if it is too long."""
        form, shown = self.io["prompt"], self.io["prompt"]["picture"]
        if (most := form["most_tokens"]) and len(prompt) > LETTERS * most:
            raise ValueError(f"The prompt has {len(prompt)} characters; {most} tokens are accepted.")
        shown = shown["opening"] + shown["token"] * shown["count"] + shown["closing"]
        text = form["with_picture"].replace("{picture}", shown) if pictured else form["text"]
        prompt = (prompt.strip() if form["strip"] else prompt).replace(BREAK, "")
        for token in self.special:
            prompt = prompt.replace(token, token[0] + BREAK + token[1:])
        made = [text.replace("{prompt}", said) for said in (prompt, "x" if prompt.strip() else prompt)]
        ids, plain = (
            np.array([self.tokenizer.encode(one, add_special_tokens=form["special_tokens"]).ids]) for one in made
        )
        if np.isin(ids, self.special_ids).sum() != np.isin(plain, self.special_ids).sum():
            raise ValueError("The prompt makes special tokens. Ask in other words, without tags.")
        if most and ids.shape[1] > most:
            raise ValueError(f"The prompt has {ids.shape[1]} tokens; {most} are accepted.")
        return ids.astype(np.int64)

    def pixels(self, picture):
        """A picture [1, 3, height, width] as the checkpoint's processor makes it."""
        how, (width, height) = self.io["picture"], picture.size
        if edge := how["shortest_edge"]:
            long = int(edge * max(width, height) / min(width, height))
            picture = picture.resize((edge, long) if width <= height else (long, edge), how["resample"])
        elif how["size"]:
            picture = picture.resize(how["size"], how["resample"])
        if how["crop"]:
            left, top = ((have - wanted) // 2 for have, wanted in zip(picture.size, how["crop"], strict=True))
            picture = picture.crop((left, top, left + how["crop"][0], top + how["crop"][1]))
        values = (np.asarray(picture, np.float64) * how["scale"]).astype(np.float32)
        return ((values - np.float32(how["mean"])) / np.float32(how["std"])).transpose(2, 0, 1)[None]

    def feeds(self, ids, past):
        """What the decoder is fed beside embeddings, cache and gates, for tokens [1, n] after `past` others."""
        made = {
            "mask": np.ones((1, past + ids.shape[1])),
            "positions": past + np.arange(ids.shape[1])[None] + self.io["first_position"],
            "pictures": ids == self.io["features"]["token"],
            "phase": np.full(ids.shape, past > 0),
        }
        wanted = [one for one in self.graphs["decoder"]["inputs"] if one["role"] in made]
        return {one["name"]: made[one["role"]].astype(one["dtype"]) for one in wanted}

    def text(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()


class Model(Requests):
    """An export folder; ``base`` runs the unmodified model, whose graphs share the weights."""

    def __init__(self, folder, provider="CPUExecutionProvider", base=False, skip_hashes=False):
        files = json.loads((folder / "safetykit.json").read_text("utf-8"))["files"]
        require_whole(folder, files, ["io.json", "tokenizer.json"])
        super().__init__(folder, json.loads((folder / "io.json").read_text("utf-8")), base)
        if self.io["program"] is None:
            raise SystemExit(f"This program cannot run the folder: {self.io['no_program']}. Use `safetykit run`.")
        read = [name for info in self.graphs.values() for name in (info["file"], *info["weights"])]
        texts = [self.io["retrieval"]["texts"]] if self.io["retrieval"] else []
        require_whole(folder, files, [*texts, *([] if skip_hashes else read)])
        sessions = {name: Graph(folder / info["file"], provider) for name, info in self.graphs.items()}
        self.vision, self.embed, self.decoder = (sessions[n] for n in ("vision_encoder", "embed_tokens", "decoder"))
        self.detector, self.retrieval = (None, None) if base else (self.io["detector"], self.io["retrieval"])
        self.held, self.reference = ({}, {}) if base else (self.io["gates"]["held"], self.io["gates"]["reference"])
        self.texts = (folder / self.retrieval["texts"]).read_bytes().splitlines() if self.retrieval else []

    def prefill(self, ids, seen, feeds):
        """The decoder's outputs for a whole prompt; `seen` is what the vision encoder gave, or nothing."""
        embeds, pictures = self.embed({"input_ids": ids})["inputs_embeds"], ids == self.io["features"]["token"]
        features = seen["image_features"].reshape(-1, embeds.shape[-1]) if seen else embeds[:0, 0]
        if pictures.sum() != len(features):
            raise SystemExit(f"The prompt holds {pictures.sum()} image tokens, its picture gives {len(features)}.")
        embeds[pictures] = features
        blank = {}
        for one in self.graphs["decoder"]["inputs"]:
            if one["role"] in ("cache", "gate", "reference"):  # one row, nothing before it
                shape = [n if isinstance(n, int) else int(axis == 0) for axis, n in enumerate(one["shape"])]
                blank[one["name"]] = np.zeros(shape, one["dtype"])
        return self.decoder({"inputs_embeds": embeds, **self.feeds(ids, 0), **blank, **feeds})

    def answer(self, prompt, picture=None, max_new_tokens=64):
        """One answer to a prompt, with a picture of Pillow or without."""
        seen, gates = picture and self.vision({"pixel_values": self.pixels(picture.convert("RGB"))}), {}
        if self.reference:  # what the same prompt would give without its picture and with the ops off
            first = self.prefill(self.tokens(prompt, False), None, {self.io["gates"]["off"]: np.zeros((), np.float32)})
            gates = {name: first[source] for name, source in self.reference.items()}
        if seen and self.retrieval:
            found = " ".join(json.loads(self.texts[at])["caption"] for at in seen["retrieved_ids"][0])
            prompt = f"{self.retrieval['before']}{found}{self.retrieval['after']}{prompt}"
        ids = self.tokens(prompt, bool(seen))
        out, tokens = self.prefill(ids, seen, gates), []
        risk = self.detector and float(out["risk_score"][0])
        if self.detector and not risk <= np.float32(self.detector["threshold"]):  # nor is what is no number answered
            return {"text": self.detector["refusal"], "tokens": 0, "refused_by_detector": True, "risk": risk}
        after = {name: out[source] for name, source in self.held.items()} | {n: np.zeros_like(gates[n]) for n in gates}
        while len(tokens) < max_new_tokens and (token := int(out["logits"][0, -1].argmax())) not in self.io["end"]:
            step, past = np.array([[token]]), ids.shape[1] + len(tokens)
            tokens.append(token)
            cache = {name.replace(STAYING, "past_key_values."): out[name] for name in out if name.startswith(STAYING)}
            out = self.decoder({**self.embed({"input_ids": step}), **self.feeds(step, past), **cache, **after})
        return {"text": self.text(tokens), "tokens": len(tokens), "refused_by_detector": False, "risk": risk}


if __name__ == "__main__":
    add = (parser := argparse.ArgumentParser(description=__doc__)).add_argument
    add("--prompt", default="What is this?"), add("--image"), add("--max-new-tokens", type=int, default=64)
    add("--requests", help="JSONL instead of --prompt and --image")
    add("--base", action="store_true", help="the unmodified model"), add("--provider", default="CPUExecutionProvider")
    add("--skip-hashes", action="store_true", help="trust graphs and weights, which are read twice otherwise")
    given, failed = parser.parse_args(), 0
    Path(given.requests or __file__).is_file() or parser.error(f"there are no requests at {given.requests}")
    lines = Path(given.requests).read_bytes().splitlines() if given.requests else [json.dumps(vars(given))]
    model = Model(Path(__file__).absolute().parent, given.provider, given.base, given.skip_hashes)
    for number, line in enumerate(lines, 1):  # one that cannot be answered leaves the others alone
        try:
            prompt, picture = "" + (one := json.loads(line))["prompt"], one.get("image")  # other than text is an error
            found = model.answer(prompt, picture and opened(picture), given.max_new_tokens)
        except Exception as error:  # decoders raise whatever the bytes lead them to
            found, failed = {"request": number, "error": f"{type(error).__name__}: {error}"}, 2
        print(json.dumps(found, ensure_ascii=False), flush=True)
    failed and sys.exit(failed)
