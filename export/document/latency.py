"""What the adapter costs in time: baked over unmodified, beside a control that compares like with like.

Three arms — baked, unmodified, unmodified again (the A/A control) — run once per round in random
order, so that drift of the machine hits all of them. Every round gives one ratio per pair; reported
is the median ratio with a bootstrap 95 % interval over rounds. A cost is stated only where the whole
interval lies above the control's. A ratio below the control is noise and is never called a speed-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from ...adapters.artifact.manifest import Strict
from ...adapters.errors import UsageError
from ...toolkit.model.requests import Request
from ..runtime.sessions import cores

if TYPE_CHECKING:
    from ..runtime.decoding import Decoding
    from ..runtime.onnx_vlm import OnnxVLM

Verdict = Literal["no cost detected", "cost detected"]
Times = Mapping[str, Float[np.ndarray, " rounds"]]
BAKED, UNMODIFIED, CONTROL = "baked", "unmodified", "control"
_RESAMPLES = 2000
_PAUSE = 0.02  # seconds; ONNX Runtime's threads go on spinning after a run, and would take the next arm's cores


class Ratio(Strict):
    """A median ratio of times with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float


class PhaseLatency(Strict):
    """One phase.

    Attributes:
        baked_ms, unmodified_ms, control_ms: median times; they describe the machine, not the adapter.
        ratio: baked over unmodified.
        control: unmodified over unmodified; what the ratio would be if nothing had changed.
        noise: the largest ratio that the control's interval does not tell from 1; a cost below it stays hidden.
    """

    baked_ms: float
    unmodified_ms: float
    control_ms: float
    ratio: Ratio
    control: Ratio
    noise: float
    verdict: Verdict


class Latency(Strict):
    """``latency.json``.

    Attributes:
        prefill: the whole prompt through all three graphs.
        decode: one token per row with the KV cache, median over ``decode_steps`` steps of a round.
        prompt_tokens: padded length of the batch.
        separate_control: whether the control ran in ONNX Runtime sessions of its own.
        cpus: CPUs this process may use; ONNX Runtime was left to choose its threads.
    """

    schema_version: Literal[1] = 1
    prefill: PhaseLatency
    decode: PhaseLatency
    batch: int
    pictures: int
    prompt_tokens: int
    rounds: int
    warmup_rounds: int
    decode_steps: int
    seed: int
    separate_control: bool
    providers: tuple[str, ...]
    cpus: int
    precision: str


def measure_latency(
    baked: OnnxVLM,
    unmodified: OnnxVLM,
    requests: Sequence[Request],
    *,
    control: OnnxVLM | None = None,
    providers: Sequence[str],
    rounds: int = 40,
    warmup_rounds: int = 3,
    decode_steps: int = 16,
    seed: int = 0,
) -> Latency:
    """Time both models on one batch of requests.

    Args:
        baked: the export with its adapters.
        unmodified: the same base and precision without them.
        requests: run as one batch; the same inputs go to every arm.
        control: ``unmodified`` opened a second time; without it the same sessions serve twice.
        providers: what the models were opened with.

    Raises:
        UsageError: no request, too few rounds for an interval, or the models are of different bases
            or precisions.
    """
    if rounds < 5 or decode_steps < 1:
        raise UsageError(
            f"{rounds} rounds of {decode_steps} steps give no interval.", "Take at least 5 rounds of 1 step."
        )
    ours, theirs = baked.manifest, unmodified.manifest
    if (ours.base.fingerprint, ours.precision) != (theirs.base.fingerprint, theirs.precision):
        raise UsageError(
            f"The two exports cannot be compared: {ours.precision} of model {ours.base.fingerprint[:12]} and "
            f"{theirs.precision} of {theirs.base.fingerprint[:12]}.",
            "Pass the unmodified export of the same base and precision.",
        )
    if theirs.interventions or theirs.detector:
        raise UsageError("The unmodified export holds adapters.", "Pass an export of the base without any.")
    inputs = baked.inputs.prepare(requests)
    text_only = None
    if baked.needs_reference:
        text_only = baked.inputs.prepare([request.without_pictures() for request in requests])
    token = np.full(len(requests), baked.inputs.pad_token_id)

    def timed(model: OnnxVLM) -> tuple[float, float]:
        sleep(_PAUSE)
        start = perf_counter()
        state: Decoding = model.prefill(inputs, text_only)
        prefill = perf_counter() - start
        steps = []
        for _ in range(decode_steps):
            start = perf_counter()
            state = model.step(state, token)
            steps.append(perf_counter() - start)
        return prefill, float(np.median(steps))

    arms = {
        BAKED: lambda: timed(baked),
        UNMODIFIED: lambda: timed(unmodified),
        CONTROL: lambda: timed(control or unmodified),
    }
    times = interleave(arms, rounds, warmup_rounds, seed)
    return Latency(
        prefill=compare({name: values[:, 0] for name, values in times.items()}, seed),
        decode=compare({name: values[:, 1] for name, values in times.items()}, seed),
        batch=len(requests),
        pictures=sum(len(request.pictures) for request in requests),
        prompt_tokens=inputs.input_ids.shape[1],
        rounds=rounds,
        warmup_rounds=warmup_rounds,
        decode_steps=decode_steps,
        seed=seed,
        separate_control=control is not None,
        providers=tuple(providers),
        cpus=cores(),
        precision=ours.precision,
    )


def interleave(
    arms: Mapping[str, Callable[[], tuple[float, ...]]], rounds: int, warmup_rounds: int, seed: int
) -> dict[str, Float[np.ndarray, "rounds figures"]]:
    """Run every arm once per round, in an order drawn anew each round; warm-up rounds are dropped."""
    order, names = np.random.default_rng(seed), sorted(arms)
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    for _ in range(warmup_rounds + rounds):
        for at in order.permutation(len(names)):
            found[names[at]].append(arms[names[at]]())
    return {name: np.array(values[warmup_rounds:]) for name, values in found.items()}


def compare(times: Times, seed: int) -> PhaseLatency:
    """Ratios, intervals and verdict from the times of the three arms, in seconds."""
    ratio = median_ratio(times[BAKED], times[UNMODIFIED], seed)
    control = median_ratio(times[CONTROL], times[UNMODIFIED], seed)
    medians = {f"{name}_ms": 1000 * float(np.median(times[name])) for name in (BAKED, UNMODIFIED, CONTROL)}
    # The control differs from 1 only by noise, in either direction: it bounds the noise on both sides.
    noise = max(control.high, 1 / control.low)
    verdict: Verdict = "cost detected" if ratio.low > noise else "no cost detected"
    return PhaseLatency(**medians, ratio=ratio, control=control, noise=noise, verdict=verdict)


def median_ratio(above: Float[np.ndarray, " rounds"], below: Float[np.ndarray, " rounds"], seed: int) -> Ratio:
    """Median over rounds of ``above / below``; rounds are resampled for the interval."""
    ratios = above / below
    draws = np.random.default_rng(seed).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return Ratio(value=float(np.median(ratios)), low=float(low), high=float(high))
