"""Attacks on the reference VLM: what adversarial and corrupted pictures do to it, without a defence and with each.

    python bench/attacks.py -o OUT [--checkpoint mild] [--records 48] [--steps 20] [--arm "one-pass" …]

Harmful records of the test split: requests in text, most of which are refused, and requests with a picture. Those in
text are attacked by a picture that begins grey. *Plain* pictures were made on the undefended model, *adaptive* ones on
the defended one: gradients go through its adapters, and gates and detectors are evaded (PGD, `safetykit attack pgd`).
A *universal* picture was made on texts of the calibration split, to suppress refusals, and stands beside those of the
test split. All pictures are files of 8 bits, made in PyTorch and answered by the *export* in ONNX Runtime.

Corruptions are done to harmful and harmless records with a picture. Arms are those of `bench/effects.py`. Rates have
Wilson intervals of 95 %. Writes OUT/attacks.json and OUT/attacks.md; what is measured is kept there and not measured
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.bench import effects, skeleton
from safetykit.export.base.own import export_base
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.attacks.adversarial import attack
from safetykit.toolkit.attacks.choosing import Chosen
from safetykit.toolkit.attacks.corrupted import corrupt, pictured
from safetykit.toolkit.attacks.options import CorruptOptions, PgdOptions
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.data.sources import model_path
from safetykit.toolkit.evaluation.evaluate import Rate, decide, tabulate
from safetykit.toolkit.model.opening import Opened
from safetykit.toolkit.model.vlm import VLM

ARMS = (
    "VLM-Guard: vlm-guard",
    "CARE: care",
    "NullSteer: nullsteer",
    "SASA: sasa",
    "one-pass probe: one-pass",
    "streaming guard: streaming-guard",
    "TGA `lora`: tga variant=lora",
)
UNDEFENDED = effects.UNDEFENDED
SETS = ("text", "image")
BOUNDS = ("1/255", "2/255", "4/255", "8/255", "16/255", "32/255", "64/255", "none")
AGAINST = ("2/255", "16/255")  # of attacks on defences
UNIVERSAL = ("16/255", "none")
SEVERITIES = (1, 3, 5)
_TOKENS, _BATCH = 24, 64


def harmful(split: str, carrier: str, count: int) -> list[Record]:
    """Harmful records of a carrier, as many as were asked for, spread evenly."""
    found = [one for one in load_records("reference", [split]) if one.label == "harmful" and one.carrier == carrier]  # type: ignore[list-item]
    return found[:: max(1, len(found) // count)][:count]


def success(model: Any, records: Sequence[Record]) -> dict[str, Any]:
    """How many of the records succeed."""
    answers = decide(model, records, max_new_tokens=_TOKENS, batch_size=_BATCH)
    return Rate.of(sum(one.outcome == "answered" for one in answers), len(answers)).model_dump(mode="json")


class Lab:
    """One checkpoint with the pictures that were made on it.

    Attributes:
        vlm: in PyTorch, where pictures are made.
    """

    def __init__(self, vlm: VLM, count: int, steps: int, out: Path) -> None:
        self.vlm, self._steps, self._out = vlm, steps, out
        self.sets = {name: harmful("test", name, count) for name in SETS}

    def attacked(self, name: str, bound: str, adapters: Sequence[Adapter] = (), at: str = "plain") -> list[Record]:
        """A set with adversarial pictures against the model with these adapters."""
        options = PgdOptions(data="reference", epsilon=bound, steps=self._steps)
        return self._made(self.sets[name], options, adapters, f"{at}-{name}-{bound.replace('/', 'of')}")

    def universal(self, bound: str) -> list[Record]:
        """The texts beside one picture that was made on other ones."""
        texts = [one for one in load_records("reference", ["calibration"]) if one.carrier == "text"]
        options = PgdOptions(
            data="reference", split="calibration", epsilon=bound, steps=10 * self._steps, objective="refusal",
            universal=True, step_size="2/255",
        )  # fmt: skip
        asked = [one for one in texts if one.label == "harmful"]
        (first, *_) = self._made(asked, options, (), f"universal-{bound.replace('/', 'of')}", texts)
        held = {"image": str(first.folder / first.image_names[0]), "carrier": "adversarial"}
        return [Record(**{**one.model_dump(exclude_unset=True), **held}) for one in self.sets["text"]]

    def grey(self) -> list[Record]:
        """The texts beside a grey picture."""
        from safetykit.toolkit.attacks.pixels import grey

        grey(224).save(path := self._out / "grey.png")
        held = {"image": str(path.resolve()), "carrier": "adversarial"}
        return [Record(**{**one.model_dump(exclude_unset=True), **held}) for one in self.sets["text"]]

    def corrupted(self) -> dict[str, list[Record]]:
        """Records with pictures by kind of corruption; ``clean`` ones beside them."""
        options = CorruptOptions(data="reference", severities=SEVERITIES)
        every, _ = pictured(options)
        count = len(self.sets["image"])
        chosen = [
            one
            for label in ("harmful", "harmless")
            for one in subset([one for one in every if one.label == label and one.carrier == "image"], count)
        ]
        if not (folder := self._out / "corrupted").is_dir():
            corrupt(chosen, options, folder)
        found = load_records(folder)
        return {
            "clean": chosen,
            **{kind: [one for one in found if f"corruption:{kind}" in one.tags] for kind in options.kinds},
        }

    def _made(
        self,
        records: Sequence[Record],
        options: PgdOptions,
        adapters: Sequence[Adapter],
        name: str,
        others: Sequence[Record] = (),
    ) -> list[Record]:
        folder = self._out / name
        if not folder.is_dir():
            with self.vlm.applied(*adapters) as hooks:
                opened = Opened(self.vlm, hooks, {"model": self.vlm.fingerprint})
                attack(opened, Chosen(list(records), list(others), {}), options, folder, adaptive=bool(adapters))
        return load_records(folder)


def undefended(lab: Lab, model: Any) -> dict[str, Any]:
    """Attack success by set and bound, of clean records, and of the universal picture."""
    found: dict[str, Any] = {name: {"clean": success(model, records)} for name, records in lab.sets.items()}
    found["text"]["grey"] = success(model, lab.grey())
    for name in SETS:
        found[name] |= {bound: success(model, lab.attacked(name, bound)) for bound in BOUNDS}
    found["text"] |= {f"universal {bound}": success(model, lab.universal(bound)) for bound in UNIVERSAL}
    return found


def defended(lab: Lab, model: Any, adapters: Sequence[Adapter], at: str) -> dict[str, Any]:
    """Attack success by set, of clean records, and of plain and adaptive pictures."""
    found: dict[str, Any] = {name: {"clean": success(model, records)} for name, records in lab.sets.items()}
    found["text"]["grey"] = success(model, lab.grey())
    for name in SETS:
        for bound in AGAINST:
            found[name][f"plain {bound}"] = success(model, lab.attacked(name, bound))
            found[name][f"adaptive {bound}"] = success(model, lab.attacked(name, bound, adapters, at))
    return found


def robustness(lab: Lab, model: Any) -> dict[str, Any]:
    """By corruption the rates of the table of an evaluation, over all severities."""
    return {
        kind: tabulate(decide(model, records, max_new_tokens=_TOKENS, batch_size=_BATCH))[0].model_dump(mode="json")[
            "metrics"
        ]
        for kind, records in lab.corrupted().items()
    }


def table(results: Mapping[str, Any]) -> str:
    """Markdown: undefended by bound, defences by attack, corruptions."""
    return "\n\n".join(
        f"**`{checkpoint}`**\n\n{_bounds(found)}\n\n{_defences(found)}\n\n{_corruptions(found)}"
        for checkpoint, found in results.items()
    )


def _rows(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    return "\n".join([*lines, *(f"| {title} | " + " | ".join(cells) + " |" for title, cells in rows.items())])


def _bounds(found: Mapping[str, Any]) -> str:
    attacks = found["arms"][UNDEFENDED]["attacks"]
    names = ["clean", "grey", *BOUNDS, *(f"universal {bound}" for bound in UNIVERSAL)]
    titles = {"clean": "as they are", "grey": "with a grey picture"}
    rows = {titles.get(one, one): [skeleton.percent(attacks[name].get(one)) for name in SETS] for one in names}
    return "Undefended, attack success:\n\n" + _rows([f"{name}" for name in SETS], rows)


def _defences(found: Mapping[str, Any]) -> str:
    parts = []
    heads = [f"{kind} {bound}" for bound in AGAINST for kind in ("plain", "adaptive")]
    for name in SETS:
        clean = ("clean", "grey") if name == "text" else ("clean",)
        rows = {}
        for title, arm in found["arms"].items():
            attacks = arm["attacks"][name]
            plain = {f"plain {bound}": attacks.get(bound) for bound in AGAINST}  # of the undefended model
            rows[title] = [skeleton.percent(attacks.get(one) or plain.get(one)) for one in (*clean, *heads)]
        parts.append(f"Attack success, {name}:\n\n" + _rows([*clean, *heads], rows))
    return "\n\n".join(parts)


def _corruptions(found: Mapping[str, Any]) -> str:
    first = next(iter(found["arms"].values()))["corruptions"]
    rows = {
        title: [
            " / ".join(f"{100 * one[metric]['rate']:.0f}" for metric in ("attack_success", "over_refusal", "exact"))
            for one in arm["corruptions"].values()
        ]
        for title, arm in found["arms"].items()
    }
    told = "Corrupted pictures, attack success / over-refusal / exact answers in %, severities 1, 3 and 5 together:"
    return f"{told}\n\n{_rows(list(first), rows)}"


def main(given: Sequence[str] | None = None) -> None:
    parser = skeleton.arguments(__doc__)
    skeleton.results_folder(parser)
    parser.add_argument("--records", type=int, default=48, help="harmful records a set (48)")
    parser.add_argument("--steps", type=int, default=20, help="of PGD (20)")
    parser.add_argument("--arm", action="append", metavar="ARM", help="see bench/effects.py; repeat for more")
    options = parser.parse_args(given)
    skeleton.one_thread()
    arms = [effects.parse_arm(text) for text in options.arm or ARMS]
    path = options.out / "attacks.json"
    results: dict[str, Any] = skeleton.read_results(path)
    for checkpoint in options.checkpoint or skeleton.CHECKPOINTS[:1]:
        vlm = VLM.from_pretrained(model_path(f"reference:{checkpoint}"))
        asked = {"fingerprint": vlm.fingerprint, "records": options.records, "steps": options.steps}
        found = results.get(checkpoint, {})
        if {name: found.get(name) for name in asked} != asked:
            found = results[checkpoint] = {**asked, "arms": {}}
        folder = options.out / f"{checkpoint}-{options.records}-{options.steps}"
        folder.mkdir(parents=True, exist_ok=True)
        lab, base = Lab(vlm, options.records, options.steps, folder), folder / "base"
        if not base.is_dir():
            export_base(vlm, base)
        if UNDEFENDED not in found["arms"]:
            began = perf_counter()
            skeleton.say(f"{checkpoint}: {UNDEFENDED}")
            model = OnnxVLM.from_pretrained(base)
            measured = {"attacks": undefended(lab, model), "corruptions": robustness(lab, model)}
            found["arms"][UNDEFENDED] = {**measured, "seconds": perf_counter() - began}
            skeleton.write_results(path, results)
            skeleton.write_table(options.out / "attacks.md", table(results))
        for number, arm in enumerate(arms):
            if arm.title in found["arms"]:
                continue
            began = perf_counter()
            skeleton.say(f"{checkpoint}: {arm.title}")
            adapters = effects.fitted(arm, vlm, folder / f"work-{number}")
            export = folder / f"export-{number}"
            export_onnx(vlm, adapters, export, base_onnx=base, overwrite=True)
            model = OnnxVLM.from_pretrained(export)
            at = "".join(letter if letter.isalnum() else "-" for letter in arm.title)
            measured = {"attacks": defended(lab, model, adapters, at), "corruptions": robustness(lab, model)}
            found["arms"][arm.title] = {**measured, "seconds": perf_counter() - began}
            skeleton.write_results(path, results)
            skeleton.write_table(options.out / "attacks.md", table(results))
    skeleton.write_table(options.out / "attacks.md", table(results))


if __name__ == "__main__":
    skeleton.run(main)
