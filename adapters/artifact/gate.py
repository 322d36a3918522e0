"""Correctors opened by a detector: the probe of one adapter becomes the gate of every op of another.

The probe of a detector on the prompt (one or more blocks of the normal pass) is read at the last position of the
prompt; what it decides holds while the answer is written. That of the streaming guard was fitted on every token, and
decides at every token. The op is :mod:`..ops.probed`: a row whose gate is closed stays bit for bit what it was.

The probe has to be read before anything is pushed, or the ops would judge their own work: its last block lies before
the first one that is pushed, or is the only one. There, what acts in the answer alone comes first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from ..errors import UsageError
from ..ops.op import get_op
from ..ops.probed import SUFFIX, ProbeGate, by_probe
from .adapter import Adapter
from .deciding import ALLOWED, gate_at
from .intervention import Intervention
from .sites import Gating, Site
from .stack import CORRECTED_BY, describe_corrector
from .store import require_base, require_weights

GATED_BY = "gated_by"  # the hyperparameter that names what opens the gates
_LINEAR = "LinearProbe"


@dataclass(frozen=True)
class Gate:
    """A probe of the normal pass that opens what another adapter does.

    Attributes:
        adapter: whose probe it is.
        layers: blocks that it reads, ascending.
        weight: [layers · d_model], block by block. ``bias``: a scalar.
        threshold: log-odds of harm above which it is open.
        gating: for how long a decision stands.
        calibration: its row of the attachment ``calibration``. ``promise``: the attachment ``budget``, if there is one.
    """

    adapter: Adapter
    layers: tuple[int, ...]
    weight: Float[Tensor, " width"]
    bias: Float[Tensor, ""]
    threshold: float
    gating: Gating
    calibration: Mapping[str, JsonValue]
    promise: JsonValue = None

    @classmethod
    def of(cls, adapter: Adapter, name: str = "") -> Gate:
        """The probe of a fitted detector, or of a streaming guard.

        Args:
            name: what the user calls the adapter, such as its folder.

        Raises:
            UsageError: it has no probe of the normal pass, or one of states that correctors have changed.
        """
        called = name or adapter.info.method
        item = adapter.interventions[0] if len(adapter.interventions) == 1 and adapter.branch is None else None
        op = item.make_op() if item is not None else None
        if item is None or not (item.op == _LINEAR or isinstance(op, ProbeGate)) or item.op.endswith(SUFFIX):
            raise UsageError(
                f"{called} ({adapter.info.method}) has no linear probe of the normal pass that could open a gate.",
                "Take one of `safetykit fit one-pass`, with one layer or with several, or of `streaming-guard`.",
            )
        if adapter.info.hyperparameters.get(CORRECTED_BY):
            raise UsageError(
                f"{called} ({adapter.info.method}) judges states that correctors have changed, and a gate is read "
                "before anything is.",
                "Fit it without --with.",
            )
        detector = adapter.detector
        threshold = float(item.tensors["threshold"]) if detector is None else detector.threshold
        rows = adapter.attachments.get("calibration")
        seen = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], Mapping) else {}
        layers = tuple(site.layer for site in (*item.reads, item.site) if site.layer is not None)
        gating: Gating = "per-token" if detector is None else "held"
        weight, bias, promise = item.tensors["weight"], item.tensors["bias"], adapter.attachments.get("budget")
        return cls(adapter, layers, weight, bias, threshold, gating, seen, promise)

    def require_prompt(self) -> None:
        """Refuse to set the threshold of a probe that is read at every token by what it says of prompts.

        Raises:
            UsageError: it is one.
        """
        if self.gating != "held":
            raise UsageError(
                f"The probe of {self.adapter.info.method} is read at every token, and prompts alone set no threshold "
                "for it.",
                "Fit it under the budget, and leave the budget out here.",
            )

    def require_before(self, pushed: Iterable[Site]) -> None:
        """Refuse sites at which, or before which, the probe could not be read.

        Raises:
            UsageError: naming both.
        """
        sites, last = sorted(set(pushed)), self.layers[-1]
        if others := [site for site in sites if site.kind != "block"]:
            raise UsageError(
                f"A probe opens what is done to the output of a block, and {others[0]} is none.", "Push at the block."
            )
        first = min(site.layer for site in sites if site.layer is not None)
        if last > first or (last == first and len(sites) > 1):
            raise UsageError(
                f"The gate reads layer {last}, and the first layer that is pushed is {first}: a gate has to be read "
                "before anything is pushed.",
                f"Push at {'later layers' if len(sites) > 1 else f'layer {last} or later'}, or fit a probe of earlier "
                "layers.",
            )

    def put(self, adapter: Adapter, own: Collection[str] = ()) -> Adapter:
        """A corrector that acts where the gate is open, and nowhere else.

        Args:
            own: hyperparameters of the gate that it had itself.

        Raises:
            UsageError: an op cannot be gated, or acts before the probe is read.
            WrongBase: they belong to different models.
        """
        info, base = adapter.info, self.adapter.info.base
        require_base(self.adapter, info.base.fingerprint, "the corrector's model")
        if base.on != info.base.on:
            require_weights(self.adapter, info.base.on, "the corrector's model")
            require_weights(adapter, base.on, "the probe's model")
        if adapter.branch or adapter.updates or adapter.detector or not adapter.interventions:
            raise UsageError(f"{info.method} pushes no states that a gate could open.", "Leave the gate out.")
        self.require_before(item.site for item in adapter.interventions)
        self._require_unpushed(adapter.interventions)
        ordered = sorted(adapter.interventions, key=lambda item: (item.site, item.phase != "decode"))
        described = {**describe_corrector(self.adapter), "layers": list(self.layers), "threshold": self.threshold}
        kept = {name: value for name, value in info.hyperparameters.items() if name not in own}
        rows: list[JsonValue] = [
            {**self.calibration, "what": gate_at(site)} for site in sorted({item.site for item in ordered})
        ]
        attachments: dict[str, JsonValue] = {
            **{name: value for name, value in adapter.attachments.items() if name != "calibration"},
            **({"calibration": rows} if self.calibration else {}),
            **({"budget": self.promise} if self.promise is not None else {}),
        }
        return replace(
            adapter,
            info=info.model_copy(update={"hyperparameters": {**kept, GATED_BY: described}}),
            interventions=tuple(map(self._gated, ordered)),
            attachments=attachments,
        )

    def risks(self, states: Sequence[Float[Tensor, "batch d_model"]]) -> Float[Tensor, " batch"]:
        """Log-odds of harm, from the last positions of :attr:`layers`."""
        return torch.cat([state.float() for state in states], dim=1) @ self.weight + self.bias

    def _require_unpushed(self, items: Sequence[Intervention]) -> None:
        """Refuse two ops at the block that the probe reads last, both of which act on the prompt."""
        read = [item for item in items if item.site.layer == self.layers[-1] and item.phase != "decode"]
        if len(read) > 1:
            raise UsageError(
                f"{len(read)} ops act on the prompt at {read[0].site}, where the gate is read: the second would be "
                "opened by what the first has done.",
                "Push at a later layer, or fit a probe of earlier layers.",
            )

    def _gated(self, item: Intervention) -> Intervention:
        made = by_probe(type(get_op(item.op)))
        if made is None:
            raise UsageError(f"A probe cannot open {item.op}: it needs more than the state.", "Leave the gate out.")
        reads = tuple(Site.block(layer) for layer in self.layers if layer != item.site.layer)
        blank = torch.zeros(len(self.weight) // len(self.layers) * (len(reads) == len(self.layers)))
        probe = {
            "weight": torch.cat([self.weight, blank]),
            "bias": self.bias.clone(),
            "threshold": torch.tensor(self.threshold, dtype=torch.float32),
        }
        own = {name: tensor for name, tensor in item.tensors.items() if name in made.params}
        gating: Gating = "per-token" if item.phase == "prefill" else self.gating
        return replace(item, op=made.name, tensors={**own, **probe}, gate=gating, reads=reads)


def gated_by(adapter: Adapter, probe: Adapter) -> Adapter:
    """A fitted corrector that acts where the probe of a fitted detector, or of a streaming guard, opens it.

    Raises:
        UsageError: see :meth:`Gate.of` and :meth:`Gate.put`.
        WrongBase: they belong to different models.
    """
    return Gate.of(probe).put(adapter, (ALLOWED,))
