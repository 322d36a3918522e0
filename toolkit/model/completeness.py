"""A checkpoint must hold every tensor of its model: transformers fills those that it lacks with random numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...adapters.errors import InvalidArtifact

# For ``from_pretrained``: say what is not as it should be, in the place of raising for some of it.
CHECKED: Mapping[str, bool] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
_NAMED = 3  # tensors that an error names


def require_complete(folder: Path | str, said: Mapping[str, Any], unused: tuple[str, ...] = ()) -> None:
    """Refuse what transformers has filled up or left out.

    Args:
        said: the loading info that ``from_pretrained`` gives for ``output_loading_info``.
        unused: starts of the names of tensors that nothing here reads.

    Raises:
        InvalidArtifact: naming the first tensors that are missing or have another shape, with their number.
    """
    require_shapes(folder, said["mismatched_keys"])
    require_present(folder, [name for name in said["missing_keys"] if not name.startswith(unused)])


def require_shapes(folder: Path | str, misshaped: Iterable[tuple[str, Iterable[int], Iterable[int]]]) -> None:
    """Refuse tensors of another shape than the configuration gives them: names, shapes stored, and shapes wanted."""
    found = sorted((name, tuple(stored), tuple(wanted)) for name, stored, wanted in misshaped)
    if found:
        name, stored, wanted = found[0]
        more = f"; {len(found) - 1} more tensors differ too" if len(found) > 1 else ""
        raise InvalidArtifact(
            f"{name} has shape {wanted} by the configuration and {stored} in {folder}{more}.",
            "Get the checkpoint again: its configuration and its weights do not belong together.",
        )


def require_present(folder: Path | str, missing: Collection[str]) -> None:
    """Refuse a checkpoint without these tensors."""
    if missing:
        named = ", ".join(sorted(missing)[:_NAMED])
        rest = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise InvalidArtifact(
            f"{folder} has no weights for {len(missing)} of its model's tensors: {named}{rest}.",
            "Get the checkpoint again, or save the model again: they may be missing, or have other names.",
        )


def missing_weights(model: nn.Module, stored: Collection[str]) -> list[str]:
    """Parameters and buffers of a transformers model that none of the names in ``stored`` gives a value to."""
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    patterns = list(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())
    missing = [names[0] for names in groups.values() if not any(name in stored for name in names)]
    return [name for name in missing if not any(re.search(pattern, name) for pattern in patterns)]
