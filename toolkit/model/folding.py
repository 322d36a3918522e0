"""Folding: affine interventions written into the weights they follow, so that they cost no op at run time.

The output of an attention or MLP branch is that of its last linear layer, the *writer*: h = W x + b. An intervention
that is the affine map h' = h + U(D h) + s at every token and in every phase makes of it

    h' = W'x + b',   W' = W + U(D W),   b' = b + U(D b) + s

exactly. Several interventions at one site compose before folding. Everything is computed in float64 and kept in
low-rank form, U [d, rank] and D W [rank, inputs], so that the result is also a LoRA adapter.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.intervention import Intervention
from ...adapters.artifact.sites import Site
from ...adapters.artifact.updates import WeightUpdate
from ...adapters.errors import UsageError
from ...adapters.ops.affine import AffineMap
from ...adapters.ops.op import Corrector, Op
from .outputs import hidden_of
from .updates import applied_updates

if TYPE_CHECKING:
    from .vlm import VLM

FOLDED = "folded_sites"


def fold(vlm: VLM, adapter: Adapter) -> Adapter:
    """The same change of the model, made by weight updates alone; see :func:`fold_all`.

    Raises:
        UsageError: there is no intervention, or some cannot be folded; each is named with the reason.
        InvalidArtifact: the adapter's own updates do not fit the model.
    """
    if not adapter.interventions:
        raise UsageError("There is nothing to fold: the adapter has no intervention.", "Export it with --mode bake.")
    (folded,) = fold_all(vlm, [adapter])
    return folded


def fold_all(vlm: VLM, adapters: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """Each adapter with its interventions folded into weight updates that follow its own.

    Together they do what the given ones do together: the updates of all come first, then the interventions in order.
    Branches stay, and so do adapters without interventions. The sites are noted in the hyperparameter
    ``folded_sites``.

    Raises:
        UsageError: some intervention cannot be folded; each is named with the reason. Or a later adapter puts a new
            value in the place of a weight that an earlier one is folded into.
        InvalidArtifact: an adapter's own updates do not fit the model.
    """
    maps = [affine_maps(adapter) for adapter in adapters]
    folded: list[Adapter] = []
    for index, adapter in enumerate(adapters):
        if not maps[index]:
            folded.append(adapter)
            continue
        earlier = [update for one in folded for update in one.updates]
        later = [update for one in adapters[index:] for update in one.updates]
        with applied_updates(vlm.model, [*earlier, *later], vlm.weights, vlm.dtype):
            writers = find_writers(vlm, list(maps[index]))
            updates = [
                update
                for site, change in maps[index].items()
                for update in _fold_into(
                    writers[site], vlm.model.get_submodule(writers[site]), _before(change, vlm.parts.tap(site).factor)
                )
            ]
        _require_kept(updates, adapters[index + 1 :])
        hyperparameters = {**adapter.info.hyperparameters, FOLDED: [str(site) for site in maps[index]]}
        info = adapter.info.model_copy(update={"hyperparameters": hyperparameters})
        folded.append(replace(adapter, info=info, interventions=(), updates=(*adapter.updates, *updates)))
    return tuple(folded)


def _require_kept(updates: Sequence[WeightUpdate], later: Sequence[Adapter]) -> None:
    names = {update.parameter for update in updates}
    for adapter in later:
        for update in adapter.updates:
            if update.parameter in names and not update.low_rank:
                raise UsageError(
                    f"{adapter.info.method} gives {update.parameter} a new value, but an earlier adapter is folded "
                    "into it.",
                    f"Give {adapter.info.method} first.",
                )


def affine_maps(adapter: Adapter) -> dict[Site, AffineMap]:
    """What an adapter's interventions are, one affine map per site, in float64; needs no model.

    Raises:
        UsageError: some intervention cannot be folded; each is named with the reason.
    """
    refused, maps = [], {}
    for index, item in enumerate(adapter.interventions):
        op = item.make_op()
        tensors = {name: tensor.double() for name, tensor in item.tensors.items()}
        change = op.affine(**tensors) if isinstance(op, Corrector) else None
        if reason := _obstacle(item, op, change):
            refused.append(f"intervention {index} ({item.op} at {item.site}) {reason}")
            continue
        assert change is not None
        maps[item.site] = maps[item.site].then(change.double()) if item.site in maps else change.double()
    if refused:
        raise UsageError(
            f"{len(refused)} of {len(adapter.interventions)} interventions cannot be folded: {'; '.join(refused)}.",
            "Export with --mode bake, or fit a variant that is affine at .mlp or .attn with scope all and phase both.",
        )
    return maps


def _obstacle(item: Intervention, op: Op, change: AffineMap | None) -> str | None:
    """Why an intervention cannot be folded; None if it can."""
    if change is None:
        return "is not affine: what it does depends on the state through a gate, a norm or a second input"
    if op.extras or op.outputs:
        return f"yields {', '.join((*op.extras, *op.outputs))}, which weights cannot"
    if item.site.kind not in ("mlp", "attn"):
        return "acts on a sum of several layers' outputs: only .mlp and .attn have one layer that writes them"
    if item.scope != "all":
        return f"touches the tokens of scope {item.scope} only, but weights serve every token"
    if item.phase != "both":
        return f"acts in phase {item.phase} only, but weights serve both"
    return None


def _before(change: AffineMap, factor: float) -> AffineMap:
    """What changes h as ``change`` does factor · h."""
    return change if factor == 1 else replace(change, shift=change.shift / factor)


def _fold_into(layer: str, module: nn.Linear, change: AffineMap) -> list[WeightUpdate]:
    down = change.down @ module.weight.detach().double().cpu()
    updates = [WeightUpdate(f"{layer}.weight", {"up": _single(change.up), "down": _single(down)})]
    if module.bias is not None:
        old = module.bias.detach().double().cpu()
        updates.append(WeightUpdate(f"{layer}.bias", {"value": _single(change(old))}))
    elif change.shift.any():
        updates.append(WeightUpdate(f"{layer}.bias", {"value": _single(change.shift)}))
    return updates


def _single(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).contiguous()


@torch.inference_mode()
def find_writers(vlm: VLM, sites: Sequence[Site]) -> dict[Site, str]:
    """Name of the linear layer whose output *is* each branch's output: seen in one short run, not guessed by name.

    Raises:
        UsageError: a site does not exist, or its branch ends in something else than one linear layer.
    """
    from .requests import Request

    branches = {site: vlm.parts.tap(site).module for site in sites}
    ends: dict[Site, Tensor] = {}
    made: list[tuple[str, nn.Linear, Tensor]] = []
    names = {module: name for name, module in vlm.model.named_modules()}

    def note_linear(module: nn.Linear, _: Any, output: Tensor) -> None:
        made.append((names[module], module, output))

    def note_end(site: Site, _module: nn.Module, _args: Any, output: Any) -> None:
        ends[site] = hidden_of(output)

    with ExitStack() as stack:
        for site, branch in branches.items():
            for module in branch.modules():
                if isinstance(module, nn.Linear):
                    stack.callback(module.register_forward_hook(note_linear).remove)
            # Hooks of one module run in the order of registration: a branch that is itself linear is noted first.
            stack.callback(branch.register_forward_hook(functools.partial(note_end, site)).remove)
        vlm.model(**vlm.arguments(vlm.inputs.prepare([Request("?")])), use_cache=False)
    found = {}
    for site in sites:
        inside = set(branches[site].modules())
        writers = {name for name, module, output in made if module in inside and output is ends[site]}
        if len(writers) != 1:
            raise UsageError(
                f"The output of {site} ({type(branches[site]).__name__}) is not that of one linear layer.",
                "Nothing can be folded there; export with --mode bake.",
            )
        (found[site],) = writers
    return found
