"""Canaries: a few requests with what an export gave for them when it was made, to be asked again where it runs.

Parity was measured on one machine. Another runtime, provider or driver may drop an op or compute with fewer bits, and
files may have been exchanged; a server that asks the canaries at its start knows that the effect is still there. It
needs no torch.

Compared are the decision and the risk of a detector, the logits of the best next tokens, and the tokens of a greedy
answer as far as each of them led by more than the tolerance. The tolerance is that of half precision for exports of all
precisions: providers are free to multiply with fewer bits than a float has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, ValidationError

from ...adapters.artifact.files import read_inside
from ...adapters.artifact.manifest import DetectorInfo, Strict
from ...adapters.errors import InvalidArtifact, ParityFailed, UsageError
from ...toolkit.data.pictures import as_picture, as_url
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.model.requests import Request
from ..manifest import LAYOUT, ExportManifest
from .decoding import Decoding

TOKENS, _BEST = 8, 4
_LIMIT = 128 * 2**20


class Export(Protocol):
    """What of :class:`OnnxVLM` canaries are asked by."""

    path: Path
    manifest: ExportManifest
    inputs: InputProcessor
    providers: tuple[str, ...]
    detector: DetectorInfo | None

    @property
    def swapped(self) -> object: ...
    def prefill_requests(self, requests: Sequence[Request]) -> Decoding: ...
    def step(self, state: Decoding, token_ids: Int[np.ndarray, " batch"]) -> Decoding: ...


class Canary(Strict):
    """A request, and what the export gave for it.

    Attributes:
        image: its picture as a PNG in a data URL; None without.
        refused: whether the detector refused it; nothing is then said about logits and tokens.
        risk: a detector's log-odds of harm; None without a detector.
        risk_within: how far another may be from it.
        best: the best next tokens after the prompt, each with its logit.
        within: how far another may be from these.
        tokens: how the answer begins.
    """

    prompt: str
    image: str | None = None
    refused: bool = False
    risk: float | None = None
    risk_within: float = 0.0
    best: tuple[tuple[int, float], ...] = ()
    within: float = 0.0
    tokens: tuple[int, ...] = ()

    def request(self) -> Request:
        """What is asked."""
        return Request(self.prompt, self.image and as_picture(self.image))


class Canaries(Strict):
    """``canary.json``.

    Attributes:
        telling: how many the unmodified model fails: these show that the adapters act.
    """

    schema_version: Literal[1] = 1
    telling: int
    canaries: Annotated[tuple[Canary, ...], Field(min_length=1, max_length=64)]


@dataclass(frozen=True)
class _Seen:
    """What a model gave: the detector's risk, and the logits of the prompt and of each token after it."""

    risk: float | None
    logits: Sequence[Float[np.ndarray, " vocab"]]


def _ask(model: Export, request: Request, tokens: int) -> _Seen:
    """Greedily, until the answer ends or has ``tokens`` tokens."""
    state = model.prefill_requests([request])
    found, risk = [state.logits[0, -1]], state.extras.get("risk")
    while len(found) < tokens and (best := int(found[-1].argmax())) not in model.inputs.eos_token_ids:
        state = model.step(state, np.array([best]))
        found.append(state.logits[0, -1])
    return _Seen(None if risk is None else float(risk[0]), found)


def record_canary(model: Export, request: Request, logits: tuple[float, float], risk: tuple[float, float]) -> Canary:
    """What ``model`` gives for a request with at most one picture.

    Args:
        logits, risk: how far another may be from it, ``absolute, relative``; relative to the largest logit, and to the
            risk or 1.
    """
    seen = _ask(model, request, TOKENS)
    image = as_url(request.pictures[0]) if request.pictures else None
    made = Canary(prompt=request.prompt, image=image)
    if seen.risk is not None:
        near = risk[0] + risk[1] * max(1.0, abs(seen.risk))
        made = made.model_copy(update={"risk": seen.risk, "risk_within": near})
        if _refused(model, seen):
            return made.model_copy(update={"refused": True})
    within = [logits[0] + logits[1] * float(np.abs(row).max()) for row in seen.logits]
    order = np.argsort(-seen.logits[0], kind="stable")[:_BEST]
    tokens = []
    for row, allowed in zip(seen.logits, within, strict=True):
        second, best = np.sort(row)[-2:]
        if not best - second > 2 * allowed:
            break
        tokens.append(int(row.argmax()))
    best_tokens = tuple((int(at), float(seen.logits[0][at])) for at in order)
    return made.model_copy(update={"best": best_tokens, "within": within[0], "tokens": tuple(tokens)})


def is_decided(model: Export, canary: Canary) -> bool:
    """Whether the detector decides it the same way anywhere within the tolerance."""
    if canary.risk is None or model.detector is None:
        return True
    return abs(canary.risk - model.detector.threshold) > canary.risk_within


def differs(model: Export, canary: Canary) -> str | None:
    """What ``model`` gives otherwise for a canary; None if it is the same within the tolerance."""
    seen = _ask(model, canary.request(), max(1, len(canary.tokens)))
    if canary.risk is not None:
        if seen.risk is None:
            return "there is no risk"
        if not abs(seen.risk - canary.risk) <= canary.risk_within:
            return f"the risk is {seen.risk:.4g}, not {canary.risk:.4g}"
        if _refused(model, seen) != canary.refused:
            return "it is not refused" if canary.refused else "it is refused"
    for token, logit in canary.best:
        if not (token < len(seen.logits[0]) and abs(float(seen.logits[0][token]) - logit) <= canary.within):
            return f"the logit of token {token} is not {logit:.4g}"
    found = [int(row.argmax()) for row in seen.logits][: len(canary.tokens)]
    return None if found == list(canary.tokens) else f"the answer begins {found}, not {list(canary.tokens)}"


def _refused(model: Export, seen: _Seen) -> bool:
    """As :class:`OnnxVLM` decides; what is no number is not answered either."""
    if seen.risk is None or model.detector is None:
        return False
    return not seen.risk <= np.float32(model.detector.threshold)


def require_recorded(folder: Path, files: Mapping[str, str]) -> None:
    """Refuse an export without canaries.

    Args:
        files: what its manifest names.

    Raises:
        UsageError: it has none.
    """
    if LAYOUT.canary not in files:
        raise UsageError(
            f"{folder} holds no canaries.", "Export the model again, with an adapter and without --canaries 0."
        )


def read_canaries(folder: Path, files: Mapping[str, str]) -> Canaries:
    """The canaries of an export folder.

    Args:
        files: what its manifest names.

    Raises:
        UsageError: it has none.
        InvalidArtifact: they are damaged.
    """
    require_recorded(folder, files)
    try:
        return Canaries.model_validate(json.loads(read_inside(folder, LAYOUT.canary, _LIMIT)))
    except (ValueError, RecursionError) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is not JSON"
        raise InvalidArtifact(f"{folder / LAYOUT.canary} is not valid: {detail}.", "Export the model again.") from None


def require_canaries(model: Export) -> Canaries:
    """Ask an export's canaries, and refuse it where it does not do what it did when it was made.

    Raises:
        UsageError: it has none, or runs with a swapped adapter.
        ParityFailed: naming every canary that differs.
    """
    if model.swapped is not None:
        raise UsageError("The canaries are the export's own adapters', and others are swapped in.", "Call reset first.")
    found = read_canaries(model.path, model.manifest.files)
    refused = {at: why for at, one in enumerate(found.canaries, 1) if (why := differs(model, one))}
    if refused:
        said = "; ".join(f"{at}: {why}" for at, why in refused.items())
        raise ParityFailed(
            f"{len(refused)} of {len(found.canaries)} canaries of {model.path} differ under "
            f"{' + '.join(model.providers)}: {said}.",
            "Do not serve it so: the adapters may not act. `safetykit doctor` shows versions and providers; try "
            "--provider CPUExecutionProvider, and `safetykit verify` with --model.",
        )
    return found
