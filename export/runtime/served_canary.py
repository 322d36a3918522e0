"""Canaries of an export asked at a server: whether what answers there is the export that lies here.

A server tells no logits. Compared are the decision and the risk, the text of the answer as far as its tokens led by
more than the tolerance, and how far the best next tokens' log-probabilities lie apart, which is as far as their logits
do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...adapters.errors import ParityFailed, UsageError
from ...toolkit.model.endpoint import Endpoint, verdict_of
from ...toolkit.model.inputs import InputProcessor
from .canary import Canaries, Canary, read_canaries

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

_TOP = 20  # the most that the interface gives


def require_served_canaries(folder: Path, files: Mapping[str, str], endpoint: Endpoint) -> Canaries:
    """Ask a server an export's canaries, and refuse it where it does not do what the export did when it was made.

    Args:
        folder: the export; ``files``: what its manifest names.

    Raises:
        UsageError: the export has no canaries, or the server is none of safetykit's.
        ParityFailed: naming every canary that differs.
    """
    found, inputs = read_canaries(folder, files), InputProcessor.from_pretrained(folder)
    refused = {at: why for at, one in enumerate(found.canaries, 1) if (why := _differs(endpoint, inputs, one))}
    if refused:
        said = "; ".join(f"{at}: {why}" for at, why in refused.items())
        raise ParityFailed(
            f"{len(refused)} of {len(found.canaries)} canaries of {folder} differ at {endpoint.url}: {said}.",
            "It serves another export, swapped adapters, or graphs whose adapters do not act there; start it with "
            "--canary to see which.",
        )
    return found


def _differs(endpoint: Endpoint, inputs: InputProcessor, canary: Canary) -> str | None:
    """What the server gives otherwise; None if it is the same within the tolerance."""
    asked = endpoint.ask(canary.request(), max(1, len(canary.tokens)), logprobs=True, top_logprobs=_TOP)
    verdict = verdict_of(asked)
    if "refused" not in verdict:
        raise UsageError(
            f"The server at {endpoint.url} tells no verdict: it is none of safetykit's.",
            "Start it with `safetykit serve`; `safetykit eval` asks any server.",
        )
    if canary.risk is not None:
        risk = verdict.get("risk")
        if not isinstance(risk, (int, float)):
            return "there is no risk"
        if not abs(risk - canary.risk) <= canary.risk_within:
            return f"the risk is {risk:.4g}, not {canary.risk:.4g}"
    if bool(verdict["refused"]) != canary.refused:
        return "it is not refused" if canary.refused else "it is refused"
    if canary.refused:
        return None
    text = asked.choices[0].message.content or ""
    expected = inputs.decode([token for token in canary.tokens if token not in inputs.eos_token_ids])
    if canary.tokens and text != expected:
        return f"the answer begins {text!r}, not {expected!r}"
    if canary.tokens and canary.tokens[-1] in inputs.eos_token_ids and asked.choices[0].finish_reason != "stop":
        return f"the answer {text!r} does not end there"
    return _other_tokens(asked, inputs, canary)


def _other_tokens(asked: ChatCompletion, inputs: InputProcessor, canary: Canary) -> str | None:
    """How the best next tokens differ; nothing is said of an answer that ends at once, whose token is not told."""
    logprobs = asked.choices[0].logprobs
    if not canary.best or logprobs is None or not logprobs.content:
        return None
    told = logprobs.content[0].top_logprobs
    known = {one.token: one.logprob for one in told}
    texts = [inputs.tokenizer.decode([token]) for token, _ in canary.best]
    often = Counter(one.token for one in told) + Counter(texts)
    if texts[0] not in known:
        return f"{texts[0]!r} is not among the best {_TOP} tokens"
    for text, (_, logit) in zip(texts[1:], canary.best[1:], strict=True):
        if often[text] > 2:
            continue  # several tokens are written so
        if text not in known:
            return f"{text!r} is not among the best {_TOP} tokens"
        apart = (known[text] - known[texts[0]]) - (logit - canary.best[0][1])
        if not abs(apart) <= 2 * canary.within:
            return f"the logit of {text!r} lies {apart:+.4g} from where it lay beside that of {texts[0]!r}"
    return None
