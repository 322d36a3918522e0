"""A detector in a decoder's ``metadata_props``, for runtimes that know the graph alone; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from ..adapters.artifact.manifest import DetectorInfo, DetectorState
from ..adapters.errors import InvalidArtifact
from .names import REFUSAL, SITES, TENSORS, THRESHOLD, TOKEN


def write_metadata(detector: DetectorInfo) -> dict[str, str]:
    """What goes into the graph."""
    return {
        THRESHOLD: repr(detector.threshold),
        REFUSAL: detector.refusal,
        TOKEN: str(detector.refusal_token),
    }


def read_metadata(metadata: Mapping[str, str]) -> DetectorInfo | None:
    """What :func:`write_metadata` wrote; None without a detector.

    Raises:
        InvalidArtifact: half of one is missing or is no number.
    """
    if THRESHOLD not in metadata:
        return None
    try:
        return DetectorInfo(
            threshold=float(metadata[THRESHOLD]), refusal=metadata[REFUSAL], refusal_token=int(metadata[TOKEN])
        )
    except (KeyError, ValueError) as error:
        raise InvalidArtifact(
            f"The decoder does not state its detector ({error}).", "Export the model again."
        ) from None


def write_state(state: DetectorState) -> dict[str, str]:
    """What goes into the graph about what the risk comes from."""
    return {SITES: " ".join(state.sites), TENSORS: state.tensors}


def read_state(metadata: Mapping[str, str]) -> DetectorState | None:
    """What :func:`write_state` wrote; None where the graph does not say.

    Raises:
        InvalidArtifact: half of it is missing, or is none.
    """
    if not {SITES, TENSORS} & set(metadata):
        return None
    try:
        return DetectorState(sites=tuple(metadata[SITES].split()), tensors=metadata[TENSORS])
    except (KeyError, ValidationError):
        raise InvalidArtifact("The decoder does not state its detector's tensors.", "Export the model again.") from None
