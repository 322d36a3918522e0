"""Answers with the graphs beside this file, as io.json says. Needs numpy, onnxruntime, tokenizers and Pillow.

python run_ort.py --prompt "What is this?" --image picture.png, or --requests FILE, {"prompt": ..., "image": ...} a line
prints an object a line: text, tokens, whether the detector refused; of a request that cannot be answered its number and
why, and ends with 2. --canary asks what the folder recorded, and ends with 5 where this runtime gives something else.
"""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this folder: no module is taken from it

import argparse
import base64
import hashlib
import io
import json
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tokenizers import Tokenizer, pre_tokenizers

PAST, PRESENT = "past_key_values.", "present."  # what is present stays on the device, and is fed again as past
BREAK = "\ufdd0"  # stands in special tokens that users write, which are text, and is dropped where words are split
LETTERS = 64  # of a prompt for each token that it may have: more are not even tokenised
FORMATS, MAX_PIXELS, MAX_RATIO = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"), 50_000_000, 100


def opened(path):
    """A picture in RGB, upright; of a usual format, and small enough, which is seen before it is decoded."""
    if not isinstance(path, io.BytesIO) and not Path(path).resolve(strict=True).is_file():
        raise OSError(f"{path} is a folder, a pipe or a device")
    less, more = sorted((picture := Image.open(path, formats=FORMATS)).size)
    if not 0 < more <= less * MAX_RATIO or less * more > MAX_PIXELS:
        raise ValueError(f"{path} is too large, too narrow or empty: {picture.width}x{picture.height} pixels")
    return in_rgb(ImageOps.exif_transpose(picture))


def in_rgb(picture):
    """A picture in RGB, over white where it is transparent, of 16 bits the upper 8."""
    if picture.mode in ("I", "F"):
        raise ValueError("The picture does not say which of its grey values is white.")
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if "transparency" in picture.info or "A" in picture.getbands():
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")


def require_whole(folder, files, names):
    """Refuse files that are not the ones which the manifest names; they are read in pieces."""
    for name in names:
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != files.get(name):
                raise SystemExit(f"{name} is not the file that safetykit.json names. Get the folder from its source.")


def graph(path, provider):
    """A graph as a function of what it is fed, by name."""
    from onnxruntime import InferenceSession, OrtValue, get_available_providers, set_default_logger_severity

    set_default_logger_severity(3)
    known, place = provider in get_available_providers(), "cuda" if provider.startswith("CUDA") else "cpu"
    session = InferenceSession(str(path), providers=[provider]) if known else None
    if not session or session.get_providers()[0] != provider:  # ONNX Runtime falls back without a word
        raise SystemExit(f"ONNX Runtime does not give {provider} here. Install onnxruntime-gpu and its libraries.")
    names = [value.name for value in session.get_outputs()]

    def run(feeds):
        binding = session.io_binding()
        arrays = {name: np.array(value, order="C") for name, value in feeds.items() if isinstance(value, np.ndarray)}
        for name, value in feeds.items():  # not by bind_cpu_input, which does not know optional inputs
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(arrays[name]) if name in arrays else value)
        for name in names:
            binding.bind_output(name, place if name.startswith(PRESENT) else "cpu")
        session.run_with_iobinding(binding)
        results = zip(names, binding.get_outputs(), strict=True)
        return {name: value if name.startswith(PRESENT) else value.numpy() for name, value in results}

    return run


class Requests:
    """How prompts and pictures are prepared, and what follows for the decoder."""

    def __init__(self, folder, said, base=False):
        self.io, self.graphs = said, {**said["graphs"], **(said["base_graphs"] if base else {})}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding(), self.tokenizer.no_truncation()
        drop, words = pre_tokenizers.Split(BREAK, "removed"), self.tokenizer.pre_tokenizer
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([drop, words]) if words else drop
        added = {at: one.content for at, one in self.tokenizer.get_added_tokens_decoder().items() if one.special}
        tokens = {*added.values(), said["prompt"]["picture"]["token"] if said["prompt"] else ""}
        self.special = sorted((one for one in tokens if len(one) > 1), key=len, reverse=True)
        unknown = getattr(self.tokenizer.model, "unk_token", None)  # as which words may be read
        self.special_ids = [at for at, content in added.items() if content != unknown]

    def tokens(self, prompt, pictured):
        """A prompt in the chat template [1, n]; ValueError if it is too long."""
        form, shown = self.io["prompt"], self.io["prompt"]["picture"]
        if (most := form["most_tokens"] or np.inf) * LETTERS < len(prompt):
            raise ValueError(f"The prompt has {len(prompt)} characters; {most} tokens are accepted.")
        shown = shown["opening"] + shown["token"] * shown["count"] + shown["closing"]
        text = form["with_picture"].replace("{picture}", shown) if pictured else form["text"]
        prompt = (prompt.strip() if form["strip"] else prompt).replace(BREAK, "")
        for token in self.special:
            prompt = prompt.replace(token, token[0] + BREAK + token[1:])
        made = [text.replace("{prompt}", said) for said in (prompt, "x" if prompt.strip() else prompt)]
        ids, plain = (self.tokenizer.encode(one, add_special_tokens=form["special_tokens"]).ids for one in made)
        if np.isin(ids, self.special_ids).sum() != np.isin(plain, self.special_ids).sum():
            raise ValueError("The prompt makes special tokens. Ask in other words, without tags.")
        if len(ids) > most:
            raise ValueError(f"The prompt has {len(ids)} tokens; {most} are accepted.")
        return np.array([ids], np.int64)

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


class Answers(Requests):
    """How graphs answer: each of ``opened`` is a function of what the graph is fed, by name."""

    def __init__(self, folder, said, opened, base=False):
        super().__init__(folder, said, base)
        self.vision, self.embed, self.decoder = (opened[name] for name in ("vision_encoder", "embed_tokens", "decoder"))
        acts = {"detector": None, "retrieval": None, "gates": {"held": {}, "reference": {}}} if base else said
        self.detector, self.retrieval, self.gates = acts["detector"], acts["retrieval"], acts["gates"]
        self.texts = (folder / self.retrieval["texts"]).read_bytes().splitlines() if self.retrieval else []

    def prefill(self, ids, seen, feeds):
        """The decoder's outputs for a whole prompt; `seen` is what the vision encoder gave, or nothing."""
        embeds, pictures = self.embed({"input_ids": ids})["inputs_embeds"], ids == self.io["features"]["token"]
        features = seen["image_features"].reshape(-1, embeds.shape[-1]) if seen else embeds[:0, 0]
        if pictures.sum() != len(features):
            raise ValueError(f"The prompt holds {pictures.sum()} image tokens, its picture gives {len(features)}.")
        embeds[pictures] = features
        for one in self.graphs["decoder"]["inputs"]:
            if one["role"] in ("cache", "gate", "reference") and one["name"] not in feeds:  # one row, nothing before it
                shape = [n if isinstance(n, int) else int(axis == 0) for axis, n in enumerate(one["shape"])]
                feeds = {**feeds, one["name"]: np.zeros(shape, one["dtype"])}
        return self.decoder({"inputs_embeds": embeds, **self.feeds(ids, 0), **feeds})

    def follow(self, prompt, picture, choose=np.argmax):
        """What the prompt gives, see the first ``yield``, and then the answer's tokens; none of what is refused.

        ``choose`` takes one of its logits [vocab]."""
        seen, gates = picture and self.vision({"pixel_values": self.pixels(picture.convert("RGB"))}), {}
        if self.gates["reference"]:  # what the same prompt would give without its picture and with the ops off
            first = self.prefill(self.tokens(prompt, False), None, {self.gates["off"]: np.zeros((), np.float32)})
            gates = {name: first[source] for name, source in self.gates["reference"].items()}
        if seen and self.retrieval:
            found = " ".join(json.loads(self.texts[at])["caption"] for at in seen["retrieved_ids"][0])
            prompt = f"{self.retrieval['before']}{found}{self.retrieval['after']}{prompt}"
        ids = self.tokens(prompt, bool(seen))
        past, out = ids.shape[1], self.prefill(ids, seen, gates)
        scores = [one["name"] for one in self.graphs["decoder"]["outputs"] if one["role"] == "score"]
        told = {name.removeprefix("safetykit."): float(out[name][0]) for name in scores if out[name].ndim == 1}
        risk = float(out["risk_score"][0]) if self.detector else None
        refused = bool(self.detector) and not risk <= np.float32(self.detector["threshold"])  # nor what is no number
        yield {"tokens": past, "risk": risk, "refused": refused, "logits": out["logits"][0, -1], "gates": told}
        after = {name: np.zeros_like(gate) for name, gate in gates.items()}
        while not refused:
            yield (token := int(choose(out["logits"][0, -1])))
            if token in self.io["end"]:
                return
            cache = {name.replace(PRESENT, PAST): out[name] for name in out if name.startswith(PRESENT)}
            after |= {name: out[source] for name, source in self.gates["held"].items()}
            step = np.array([[token]])
            out = self.decoder({**self.embed({"input_ids": step}), **self.feeds(step, past), **cache, **after})
            past += 1

    def answer(self, prompt, picture=None, max_new_tokens=64):
        """One answer to a prompt, with a picture of Pillow or without."""
        first, *tokens = islice(self.follow(prompt, picture), 1 + max_new_tokens)
        kept, refused = [one for one in tokens if one not in self.io["end"]], first["refused"]
        text = self.detector["refusal"] if refused else self.text(kept)
        return {"text": text, "tokens": len(kept), "refused_by_detector": refused, "risk": first["risk"]}


class Model(Answers):
    """An export folder; ``base`` runs the unmodified model, whose graphs share the weights."""

    def __init__(self, folder, provider="CPUExecutionProvider", base=False, skip_hashes=False):
        self.folder, self.files = folder, json.loads((folder / "safetykit.json").read_text("utf-8"))["files"]
        require_whole(folder, self.files, ["io.json", "tokenizer.json"])
        said = json.loads((folder / "io.json").read_text("utf-8"))
        if said["program"] is None:
            raise SystemExit(f"This program cannot run the folder: {said['no_program']}. Use `safetykit run`.")
        graphs = {**said["graphs"], **(said["base_graphs"] if base else {})}
        read = [name for info in graphs.values() for name in (info["file"], *info["weights"])]
        texts = [said["retrieval"]["texts"]] if said["retrieval"] else []
        require_whole(folder, self.files, [*texts, *([] if skip_hashes else read)])
        super().__init__(folder, said, {name: graph(folder / graphs[name]["file"], provider) for name in graphs}, base)

    def canaries(self):
        """What was asked when the folder was made, with what it gave."""
        if "canary.json" not in self.files:
            raise ValueError("it holds no canaries; export the model again with an adapter")
        require_whole(self.folder, self.files, ["canary.json"])
        return json.loads((self.folder / "canary.json").read_text("utf-8"))["canaries"]

    def differs(self, one):
        """What a canary gives otherwise than it did when the folder was made; nothing if it is the same."""
        picture = one["image"] and opened(io.BytesIO(base64.b64decode(one["image"].partition(",")[2])))
        first, *tokens = islice(self.follow(one["prompt"], picture), 1 + max(1, len(one["tokens"])))
        risk, refused, logits = first["risk"], first["refused"], first["logits"]
        if one["risk"] is not None and not (risk is not None and abs(risk - one["risk"]) <= one["risk_within"]):
            return f"the risk is {risk}, not {one['risk']}"
        if refused != one["refused"]:
            return "it is refused" if refused else "it is not refused"
        for token, was in one["best"] if not refused else ():
            if not (token < len(logits) and abs(logits[token] - was) <= one["within"]):
                return f"the logit of token {token} is not {was:.4g}"
        same = tokens[: len(one["tokens"])] == one["tokens"]
        return None if same else f"the answer begins {tokens}, not {one['tokens']}"


def said(error):
    """What went wrong, in words for users."""
    return f"{error.filename}: {error.strerror}" if getattr(error, "strerror", None) else str(error) or "it fails"


def asked(line):
    """Prompt and picture of a line of requests."""
    try:
        prompt, image = (one := json.loads(line))["prompt"], one.get("image") or ""
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        prompt = image = None
    if not isinstance(prompt, str) or not isinstance(image, str):
        raise ValueError('A request is a line of JSON: {"prompt": "What is this?", "image": "picture.png"}.')
    if strange := one.keys() & {"answer", "images", "messages", "retrieved", "system"}:
        raise ValueError(f"This program reads prompt and image of a request, and no {min(strange)}.")
    return prompt, opened(image) if image else None


if __name__ == "__main__":
    add = (parser := argparse.ArgumentParser(description=__doc__)).add_argument
    add("--prompt", default="What is this?"), add("--image"), add("--max-new-tokens", type=int, default=64)
    add("--requests", help="JSONL instead of --prompt and --image")
    add("--canary", action="store_true", help="ask the recorded requests: does everything act here as it did?")
    add("--base", action="store_true", help="the unmodified model"), add("--provider", default="CPUExecutionProvider")
    add("--skip-hashes", action="store_true", help="trust graphs and weights, which are read twice otherwise")
    given, here, failed = parser.parse_args(), Path(__file__).absolute().parent, 0
    given.max_new_tokens > 0 or parser.error("--max-new-tokens is 1 at least")
    Path(given.requests or __file__).is_file() or parser.error(f"there are no requests at {given.requests}")
    lines = Path(given.requests).read_bytes().splitlines() if given.requests else [json.dumps(vars(given))]
    try:
        model = Model(here, given.provider, given.base, given.skip_hashes)
        canaries = model.canaries() if given.canary else None
    except Exception as error:  # whatever the runtime raises
        sys.exit(f"The folder cannot be opened: {said(error)}.")
    for number, one in enumerate(canaries or lines, 1):  # one that cannot be answered leaves the others alone
        try:
            found = {"canary": number, "differs": model.differs(one)} if canaries else None
            found = found or model.answer(*asked(one), given.max_new_tokens)
        except Exception as error:  # decoders raise whatever the bytes lead them to
            found = {"request": number, "error": said(error)}
        failed |= bool(found.get("error") or found.get("differs"))
        print(json.dumps(found, ensure_ascii=False), flush=True)
    failed and sys.exit(5 if canaries else 2)
