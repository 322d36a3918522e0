"""What a parity check found: a report that is written beside the export, and its gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...adapters.artifact.files import write_atomic
from ...adapters.artifact.manifest import Strict, canonical_json
from ...adapters.errors import InvalidArtifact, ParityFailed, UsageError
from ..manifest import Precision
from .gap import Gap
from .tolerances import EXACT, Tolerance, Tolerances

if TYPE_CHECKING:
    from ...toolkit.evaluation.evaluate import Decision


_NAMED = 3  # flips that an error names


class Check(Strict):
    """One comparison.

    Attributes:
        kind: which of the comparisons above.
        case: what was compared, for a reader.
        count: numbers, probes or records compared.
        error: largest absolute error; for ``op`` and ``invariant`` a share of the hidden state's size; for
            ``decisions`` the number of records that flipped, for ``gates`` that of gates open in one and closed in the
            other.
        scale: largest magnitude of the reference.
        limit: largest error that would have passed.
        furthest: what the error is worked out from: two numbers, and what their difference is a share of.
    """

    kind: Literal[
        "logits",
        "adapter-off",
        "scores",
        "gates",
        "op",
        "invariant",
        "risk",
        "retrieval",
        "fold",
        "swap",
        "layout",
        "drift",
        "decisions",
    ]
    case: str
    count: int
    error: float
    scale: float
    limit: float
    furthest: tuple[float, float, float]
    passed: bool


class Flip(Strict):
    """A decision that differs, with how near the call was.

    Attributes:
        what: ``outcome``, or the name of a gate's score.
        margin: for a gate the smaller distance of the two scores from 0; for an outcome the gap of the
            two best logits where the answers part (None when they do not part on a second run).
        unmodified: the unmodified model flips this record at this precision, too.
    """

    id: str
    what: str
    pytorch: str
    onnx: str
    margin: float | None
    unmodified: bool = False

    def __str__(self) -> str:
        near = "" if self.margin is None else f", {self.margin:.2g} apart"
        return f"{self.id} ({self.what}: {self.pytorch} → {self.onnx}{near})"


class FlipCounts(Strict):
    """Records whose decision differs between PyTorch and ONNX Runtime, where weights are rounded.

    Attributes:
        records: compared.
        unmodified: flipped by the model without adapters.
        all: flipped with them.
        adapters: flipped with them, and not without.
    """

    records: int
    unmodified: int
    all: int
    adapters: int


class Reference(Strict):
    """How PyTorch computed what the export was compared with.

    Attributes:
        device: its kind.
        dtype: in which it computed.
        weights: the type of the checkpoint's weights.
    """

    device: str
    dtype: str
    weights: str

    def __str__(self) -> str:
        return f"PyTorch computed in {self.dtype} on {self.device}, from weights in {self.weights}"


class ParityReport(Strict):
    """The verdict and everything it rests on.

    Attributes:
        reference: what the export was compared with; None in older reports.
        rows: how many prompts were compared at most; None where no budget was set.
        flips: every one with the adapters.
        flipped: how many there are, and how many of them are the unmodified model's; None where nothing is rounded.
        warnings: what a reader must know although it passed.
    """

    schema_version: Literal[1] = 1
    precision: Precision
    reference: Reference | None = None
    providers: tuple[str, ...]
    steps: int
    rows: int | None = None
    tolerances: Tolerances
    checks: tuple[Check, ...]
    flips: tuple[Flip, ...] = ()
    flipped: FlipCounts | None = None
    warnings: tuple[str, ...] = ()
    passed: bool

    def worst(self, kind: str) -> float:
        """Largest error among the checks of a kind; 0 when there are none."""
        return max((check.error for check in self.checks if check.kind == kind), default=0.0)

    def require(self) -> None:
        """The gate.

        Raises:
            ParityFailed: some check failed; the first is named with its figures.
        """
        failed = [check for check in self.checks if not check.passed]
        if failed:
            first = failed[0]
            hint = "The exported model does not do what the PyTorch model does; nothing was written."
            if self.precision == "fp32" and self.warnings:
                hint = f"Nothing was written. {' '.join(self.warnings)}"
            if first.kind == "decisions":  # the last check: all else holds
                own = [flip for flip in self.flips if not flip.unmodified]
                hint = (
                    f"Nothing was written. Flipped: {', '.join(map(str, own[:_NAMED]))}. If you accept calls as "
                    "near as these, pass --max-flips; more records tell how often they are. Where gates or risks "
                    "flipped in rounded weights, a fit --on the base graphs or --recalibrate may bring them back."
                )
            raise ParityFailed(
                f"{len(failed)} of {len(self.checks)} parity checks failed; first {first.kind} ({first.case}): "
                f"error {first.error:.3g}, limit {first.limit:.3g}.{self._types()}",
                hint,
            )

    def inconsistency(self) -> str | None:
        """What of its figures does not follow from the others, if anything."""
        for check in self.checks:
            one, other, unit = check.furthest
            if not unit > 0 or check.error != abs(one - other) / unit:
                return f"the error of {check.kind} ({check.case}) is not that of its numbers"
            limits = (_allowed(check, one) for one in self._tolerances(check.kind))
            if not any(math.isclose(check.limit, limit, rel_tol=1e-12) for limit in limits):
                return f"the limit of {check.kind} ({check.case}) is not that of its tolerance"
            if check.passed != (check.error <= check.limit):
                return f"the verdict of {check.kind} ({check.case}) is not that of its error"
        own = {flip.id for flip in self.flips if not flip.unmodified}
        if any(check.error != len(own) for check in self.checks if check.kind == "decisions"):
            return "the number of flipped decisions is not that of its list"
        if self.flipped and (self.flipped.adapters, self.flipped.all) != (len(own), len({f.id for f in self.flips})):
            return "the counts of flipped decisions are not those of its list"
        if self.passed != all(check.passed for check in self.checks) or not self.checks:
            return "its verdict is not that of its checks"
        return None

    def _tolerances(self, kind: str) -> tuple[Tolerance, ...]:
        """Those by which a kind of check is judged."""
        table = self.tolerances
        known: dict[str, tuple[Tolerance | None, ...]] = {
            "logits": (table.logits,),
            "fold": (table.logits,),
            "layout": (table.logits,),
            "adapter-off": (EXACT, table.logits),
            "risk": (EXACT, table.risk),
            "scores": (table.scores,),
            "gates": (EXACT,),
            "retrieval": (table.scores,),
            "op": (table.op,),
            "invariant": (table.invariant,),
            "drift": (table.drift,),
            "swap": (EXACT,),
            "decisions": (Tolerance(absolute=0, relative=table.flips),),
        }
        return tuple(one for one in known[kind] if one is not None)

    def _types(self) -> str:
        return f" {self.reference}; the graphs are {self.precision}." if self.reference else ""

    def with_layout(self, layout: str, gap: Gap) -> ParityReport:
        """The same with what became of the graphs in another layout."""
        checks = (*self.checks, judged("layout", layout, gap, self.tolerances.logits))
        return self.model_copy(update={"checks": checks, "passed": all(check.passed for check in checks)})

    def with_swap(self, gap: Gap) -> ParityReport:
        """The same with how far the export's own logits are from what they were before a swap: not at all."""
        checks = (*self.checks, judged("swap", "there and back", gap, EXACT))
        return self.model_copy(update={"checks": checks, "passed": all(check.passed for check in checks)})

    def write(self, path: Path) -> None:
        """Write as JSON."""
        write_atomic(path, canonical_json(self.model_dump(mode="json")))

    @classmethod
    def read(cls, path: Path) -> ParityReport:
        """Read what :meth:`write` wrote.

        Raises:
            InvalidArtifact: missing or not a parity report.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidArtifact(f"{path} is no parity report ({type(error).__name__}).", "Export again.") from None


def judged(kind: str, case: str, gap: Gap, tolerance: Tolerance) -> Check:
    """Whether a gap passes.

    Args:
        kind: of the comparison, see :class:`Check`.
        case: what was compared, for a reader.
    """
    # JSON has no NaN or infinity: an error that is not a number is reported as the largest float
    error = gap.error if math.isfinite(gap.error) else 1.7976931348623157e308
    return Check(
        kind=kind,
        case=case,
        count=gap.count,
        error=error,
        scale=gap.scale,
        limit=tolerance.limit(gap.scale),
        furthest=gap.furthest if gap.furthest and error == gap.error else (error, 0.0, 1.0),
        passed=tolerance.passes(error, gap.scale),
    )


def find_flips(pytorch: Sequence[Decision], onnx: Sequence[Decision]) -> list[Flip]:
    """Decisions that differ: outcome of the answer, or a gate's state.

    Raises:
        UsageError: the two are not about the same records.
    """
    if [item.id for item in pytorch] != [item.id for item in onnx]:
        raise UsageError("The two lists of decisions are about different records.", "Decide the same records twice.")
    flips = []
    for ours, theirs in zip(pytorch, onnx, strict=True):
        if ours.outcome != theirs.outcome:
            flips.append(
                Flip(id=ours.id, what="outcome", pytorch=str(ours.outcome), onnx=str(theirs.outcome), margin=None)
            )
        for name in sorted(ours.scores.keys() | theirs.scores.keys()):
            left, right = ours.scores.get(name, math.nan), theirs.scores.get(name, math.nan)
            if math.isnan(left) or math.isnan(right) or (left > 0) != (right > 0):
                margin = min(abs(left), abs(right))
                flips.append(
                    Flip(
                        id=ours.id,
                        what=name,
                        pytorch=_state(left),
                        onnx=_state(right),
                        margin=None if math.isnan(margin) else margin,
                    )
                )
    return flips


def attributed(flips: Sequence[Flip], unmodified: Sequence[Flip], count: int) -> tuple[list[Flip], FlipCounts]:
    """Flips with adapters, marked where the model without them flips the record too; and how many records there are.

    Args:
        count: records compared.
    """
    rounded, found = {flip.id for flip in unmodified}, {flip.id for flip in flips}
    marked = [flip.model_copy(update={"unmodified": flip.id in rounded}) for flip in flips]
    return marked, FlipCounts(records=count, unmodified=len(rounded), all=len(found), adapters=len(found - rounded))


def _allowed(check: Check, tolerance: Tolerance) -> float:
    limit = tolerance.limit(check.scale)
    return math.floor(limit) if check.kind == "decisions" else limit


def judged_flips(flips: Sequence[Flip], count: int, share: float) -> Check:
    """Whether at most a ``share`` of ``count`` records flipped that the unmodified model does not flip."""
    own, allowed = [flip for flip in flips if not flip.unmodified], math.floor(share * count)
    flipped = len({flip.id for flip in own})
    return Check(
        kind="decisions",
        case="evaluation records",
        count=count,
        error=flipped,
        scale=count,
        limit=allowed,
        furthest=(flipped, 0, 1),
        passed=flipped <= allowed,
    )


def _state(score: float) -> str:
    return "missing" if math.isnan(score) else "open" if score > 0 else "closed"
