"""Runs whose large tensors stay on the device: the KV cache, and parameters that are fed on every call.

On the CPU a run takes arrays and gives arrays. On a device every array crosses the bus twice per token, the cache
among them, so there runs are bound instead (ONNX Runtime's ``IOBinding``): ``present.*`` stays on the device as an
``OrtValue``, to be handed back as it is, overrides are put there once, and only the rest is copied back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ...adapters.errors import InvalidArtifact
from ..names import PRESENT
from .sessions import DEVICES

if TYPE_CHECKING:
    import onnxruntime

    Carried: TypeAlias = np.ndarray | onnxruntime.OrtValue

_STAYING = PRESENT
_NO_MEMORY = "Failed to allocate memory"  # as ONNX Runtime says it, whatever the provider


class Session:
    """One graph, run with arrays or with what earlier runs left on the device.

    Attributes:
        device: where bound tensors live, such as ``("cuda", 0)``; None when runs are not bound.
    """

    def __init__(self, session: onnxruntime.InferenceSession, *, device: tuple[str, int] | None = None) -> None:
        """``device`` binds runs to it; by default the first provider decides."""
        self._session = session
        self.device = device or device_of(session)
        self._overrides: dict[str, Carried] = {}
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.get_optional_inputs, self.get_modelmeta = session.get_overridable_initializers, session.get_modelmeta

    def override(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Feed these on every run from now on, instead of the ones before; none gives the graph's own values back."""
        self._overrides = {name: self._placed(array) for name, array in arrays.items()}

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, Carried]) -> list[Carried]:
        """Like ``InferenceSession.run``; bound outputs that stay on the device are ``OrtValue``.

        Raises:
            InvalidArtifact: ONNX Runtime cannot run the graph.
            MemoryError: it has not memory enough for these feeds.
        """
        try:
            return self._run(outputs, {**self._overrides, **feeds})
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            if not type(error).__module__.startswith("onnxruntime."):
                raise
            if _NO_MEMORY in str(error):
                raise MemoryError(str(error)) from None
            raise InvalidArtifact(
                f"ONNX Runtime cannot run the graph: {error}",
                "It is damaged, or does not suit this provider; run `safetykit verify` on the export.",
            ) from None

    def _run(self, outputs: Sequence[str] | None, feeds: Mapping[str, Carried]) -> list[Carried]:
        if self.device is None:
            return self._session.run(outputs, feeds)
        names = list(outputs or (value.name for value in self.get_outputs()))
        binding = self._session.io_binding()
        for name, value in feeds.items():  # not by bind_cpu_input, which does not know inputs that have defaults
            binding.bind_ortvalue_input(name, on_device(value, ("cpu", 0)) if isinstance(value, np.ndarray) else value)
        for name in names:
            binding.bind_output(name, *(self.device if name.startswith(_STAYING) else ("cpu", 0)))
        self._session.run_with_iobinding(binding)
        results = binding.get_outputs()
        return [
            value if name.startswith(_STAYING) else value.numpy() for name, value in zip(names, results, strict=True)
        ]

    def _placed(self, array: np.ndarray) -> Carried:
        return array if self.device is None else on_device(array, self.device)


def on_device(array: np.ndarray, device: tuple[str, int]) -> onnxruntime.OrtValue:
    """A copy of ``array`` on a device such as ``("cuda", 0)``."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), *device)


def device_of(session: onnxruntime.InferenceSession) -> tuple[str, int] | None:
    """The device of a session's first provider; None for the CPU and for providers that are not bound."""
    first = session.get_providers()[0]
    if first not in DEVICES:
        return None
    return DEVICES[first], int(session.get_provider_options().get(first, {}).get("device_id", 0))


def as_array(value: Carried) -> np.ndarray:
    """A copy on the CPU of what a run gave."""
    return value if isinstance(value, np.ndarray) else value.numpy()
