"""Which graphs an adapter belongs to that was fitted on the rounded weights of one, see :mod:`..parity.graph_base`."""

from __future__ import annotations

from collections.abc import Sequence

from ...adapters.artifact.manifest import AdapterInfo, GraphWeights
from ...adapters.errors import WrongBase
from ..manifest import ExportManifest


def weights_of(adapters: Sequence[AdapterInfo]) -> GraphWeights | None:
    """The graph's weights that some of the adapters were fitted on; None if none was.

    Raises:
        WrongBase: they were fitted on several.
    """
    found = {on.sha256: on for adapter in adapters if (on := adapter.base.on) is not None}
    if len(found) > 1:
        raise WrongBase(
            f"The adapters were fitted on the weights of several graphs: {' and '.join(name[:12] for name in found)}.",
            "Fit them all with --on the same base.",
        )
    return next(iter(found.values()), None)


def require_graph_weights(adapters: Sequence[AdapterInfo], manifest: ExportManifest, called: str) -> None:
    """Refuse adapters that were fitted on other quantised weights than an export holds.

    Raises:
        WrongBase: as said.
    """
    wanted = weights_of(adapters)
    if wanted is not None and wanted.sha256 not in manifest.files.values():
        raise WrongBase(
            f"An adapter was fitted on the {wanted.precision} weights {wanted.sha256[:12]}, which {called} "
            f"({manifest.precision}) does not hold.",
            "Pass --base-onnx with the folder that it was fitted on (fit --on), or --allow-wrong-base.",
        )
