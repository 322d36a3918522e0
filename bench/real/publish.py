"""Collects the small trained parts, rebuilds the checkpoint from them, and checks a rebuilt one against the record.

    python bench/real/publish.py WORK [-o bench/real/parts]     write the parts and WORK/model
    python bench/real/publish.py WORK --check                   is WORK/model what the parts say?

Parts: the projector and the LoRAs in fp16, figures of their training, the split by hashes, and parts.json with the
fingerprint of the whole checkpoint. The checkpoint is always built from the published files, never from the training's
memory, so what anybody rebuilds is what was measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import assemble
from fetch import DEBIAN, NPM, WHEELS, say
from safetensors.torch import load_file, save_file

from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.fingerprint import fingerprint
from safetykit.adapters.artifact.manifest import canonical_json

PARTS = Path(__file__).parent / "parts"
_FIGURES = {
    "align/figures.json": "alignment.json",
    "align/split.json": "split.json",
    "probe.json": "probe.json",
    "tune/captions.json": "captions.json",
    "tune/log.jsonl": "tuning.jsonl",
    "score.json": "score.json",
}


_ADAPTER = ("adapter_model.safetensors", "adapter_config.json")


def collect(work: Path, parts: Path) -> None:
    """Copy what training left into the folder of parts, halved to fp16."""
    config = json.loads((work / "untrained/config.json").read_text())
    parts.mkdir(parents=True, exist_ok=True)
    for name, source in (("alignment", work / "align/alignment"), ("visual", work / "tune/visual")):
        for file in _ADAPTER:  # and nothing else that may lie there
            (parts / name / file).unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or holds something else
            (parts / name).rmdir()
        if source.is_dir():
            (parts / name).mkdir(exist_ok=True)
            weights = load_file(source / "adapter_model.safetensors")
            halved = {key: value.half().contiguous() for key, value in weights.items()}
            save_file(halved, parts / name / "adapter_model.safetensors")
            settings = json.loads((source / "adapter_config.json").read_text())
            settings["base_model_name_or_path"] = "SmolLM2-135M-Instruct"  # peft wrote the path on this machine
            write_atomic(parts / name / "adapter_config.json", canonical_json(settings))
    trained = load_file(work / "tune/trained.safetensors")
    own = {
        name.removeprefix("projector."): value.half()
        for name, value in trained.items()
        if name.startswith("projector.")
    }
    save_file(own, parts / "projector.safetensors")
    for source, target in _FIGURES.items():
        if (work / source).is_file():
            shutil.copy(work / source, parts / target)
    made = {
        "image_size": config["vision_config"]["image_size"],
        "layer": config["vision_feature_layer"],
        "packages": {**WHEELS, **NPM, DEBIAN: "any"},
        "language_model": "SmolLM2-135M-Instruct, dequantised from Q4_1, with the LoRAs merged",
    }
    write_atomic(parts / "parts.json", canonical_json(made))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", type=Path, default=PARTS, help="folder of the parts")
    parser.add_argument("--check", action="store_true", help="only compare WORK/model with the recorded fingerprint")
    options = parser.parse_args(arguments)
    if not options.check:
        collect(options.work, options.o)
        assemble.main([str(options.work), "--with-parts", str(options.o)])
        made = json.loads((options.o / "parts.json").read_text())
        write_atomic(
            options.o / "parts.json", canonical_json({**made, "fingerprint": fingerprint(options.work / "model")})
        )
    recorded = json.loads((options.o / "parts.json").read_text())["fingerprint"]
    found = fingerprint(options.work / "model")
    size = sum(file.stat().st_size for file in options.o.rglob("*") if file.is_file())
    say(f"parts: {size / 2**20:.1f} MiB")
    print(json.dumps({"fingerprint": found, "recorded": recorded, "same": found == recorded}))
    if found != recorded:
        say("The checkpoint is not the published one: rebuild it with assemble.py --with-parts from the same packages.")
        sys.exit(1)


if __name__ == "__main__":
    main()
