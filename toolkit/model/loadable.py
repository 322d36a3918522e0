"""How a VLM comes from a checkpoint folder: whole or spread, without its weights, and in which type it computes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from ...adapters.artifact.manifest import RunInfo
from .batching import BatchSize, rows_beside
from .chat_template import with_chat_template
from .features import FeatureCache
from .inputs import InputProcessor
from .loading import load_model, readable, spread
from .memory import all_memory
from .options import AUTO, LoadOptions
from .parts import Parts
from .peft_folder import checkpoint_path
from .placement import Placement
from .precision import widened
from .quantised import load_plain, quantisation_of, require_packages
from .weights import Weights, empty_model


class Loadable:
    """The part of a VLM that knows its folder.

    Attributes:
        model: the transformers model.
        parts: the modules that sites refer to.
        weights: the values of the parameters.
        features: image features that are known already.
        batch_size: how many rows run through it at once.
    """

    model: Any
    parts: Parts
    weights: Weights
    features: FeatureCache
    batch_size: BatchSize
    _options: LoadOptions
    _stored: str
    _computes: tuple[torch.dtype, ExitStack] | None
    _empty: tuple[Any, Parts, Weights, FeatureCache] | None = None  # what takes the place of weights that are freed

    if TYPE_CHECKING:  # what the other parts of a VLM have

        def __init__(self, model: torch.nn.Module, processor: Any, *, path: Path | str | None = None) -> None: ...

        @property
        def path(self) -> Path: ...

        @property
        def device(self) -> torch.device: ...

        def _run_shortly(self) -> None: ...

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        device: Any = AUTO,
        dtype: Any = AUTO,
        device_map: Any = None,
        max_memory: Any = None,
        batch_size: Any = AUTO,
        chat_template: Path | str | None = None,
    ) -> Self:
        """Load a checkpoint folder, or ``reference:mild``; only safetensors are read and nothing is downloaded.

        Args:
            device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``, or a ``torch.device``; ``auto`` takes the accelerator
                with the most free memory, all of them together where none alone holds the model, or the CPU.
            dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``, or a ``torch.dtype``; ``auto`` is the
                checkpoint's own.
            device_map: spread the model over devices, memory and disk, as accelerate does: ``auto``, ``balanced``,
                ``balanced_low_0``, ``sequential``, or a mapping from modules to devices.
            max_memory: what each device may hold of a spread model: ``{0: "20GiB", "cpu": "30GiB"}``, or as text.
            batch_size: rows that run at once, in the place of the usual numbers; ``auto`` lowers these where memory
                is short.
            chat_template: the file of one (a ``Path``), or its text (a ``str``), in the place of the checkpoint's own;
                the model is then another base, see :mod:`.chat_template`.

        Raises:
            UsageError: the folder is missing, holds no VLM, or a part was not found; there is no such device or type,
                or it does not hold the model; the template does not compile.
        """
        given = {"device": device, "dtype": dtype, "device_map": device_map, "max_memory": max_memory}
        usual = {"device": AUTO, "dtype": AUTO, "device_map": None, "max_memory": None}
        asked = {name: value for name, value in given.items() if value != usual[name]}
        path = checkpoint_path(folder)
        if chat_template is not None:
            path = with_chat_template(path, chat_template)
        return cls._loaded(path, LoadOptions(**asked, batch_size=batch_size))

    @classmethod
    def _loaded(cls, folder: Path, options: LoadOptions) -> Self:
        with readable(folder):
            inputs = InputProcessor.from_pretrained(folder)
            require_packages(inputs.config, folder)
            model, weights = load_model(folder, Placement.of(options, folder))
            vlm = cls(model, inputs, path=folder)
        vlm.weights, vlm._options = weights, options
        vlm.batch_size = BatchSize(options.rows, None if spread(model) else rows_beside(model, all_memory(vlm.device)))
        return vlm

    @classmethod
    def without_weights(cls, folder: Path | str, options: LoadOptions | None = None) -> Self:
        """A checkpoint folder whose weights stay on disk until :meth:`load`: it cannot be run, but exported.

        Args:
            options: how they are loaded then.

        Raises:
            UsageError: the folder is missing, holds no VLM, or a part was not found.
            InvalidArtifact: weights are damaged, or others than the configuration says.
        """
        folder = checkpoint_path(folder)
        with readable(folder):
            inputs = InputProcessor.from_pretrained(folder)
            if (found := quantisation_of(inputs.config)) is not None:  # how to read its weights its quantiser knows
                if found.kind.plain is None:
                    return cls._loaded(folder, options or LoadOptions())
                return cls(load_plain(folder), inputs, path=folder)
            model, weights = empty_model(folder)
            vlm = cls(model, inputs, path=folder)
        vlm.weights, vlm._options = weights, options or LoadOptions()
        vlm._stored = weights.dtype or ""
        return vlm

    @property
    def loaded(self) -> bool:
        """Whether the model holds its weights, or knows where to get them when it runs."""
        return self.device.type != "meta"

    def load(self) -> None:
        """Load the weights of a model :meth:`without_weights`; any other stays as it is."""
        if not self.loaded:
            full = type(self)._loaded(self.path, self._options)
            _share_buffers(self.model, full.model)
            self._empty = (self.model, self.parts, self.weights, self.features)
            self.model, self.parts, self.weights, self.features = full.model, full.parts, full.weights, full.features
            self.parts.branches.run = self._run_shortly
            self.batch_size, self._stored = full.batch_size, full.stored_dtype
            if self._computes is not None:
                dtype, stack = self._computes
                stack.enter_context(widened(self.model, dtype))

    def unload(self) -> None:
        """Free the weights of a model :meth:`without_weights`, which can be loaded again; any other stays as it is."""
        if self._empty is not None:
            if self._computes is not None:
                self._computes[1].close()
            self.model, self.parts, self.weights, self.features = self._empty
            self._empty = None
            gc.collect()  # modules and their hooks refer to each other

    @contextmanager
    def in_memory(self) -> Iterator[None]:
        """Have the weights until the block ends; those that were not loaded before are freed then."""
        before = self.loaded
        self.load()
        try:
            yield
        finally:
            if not before:
                self.unload()

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        dtype: torch.dtype = self._computes[0] if self._computes is not None else self.model.dtype
        return dtype

    @property
    def stored_dtype(self) -> str:
        """The type of the weights that it has, or had before it computed in another."""
        return self._stored or str(self.model.dtype).removeprefix("torch.")

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        """Compute in ``dtype``, from the weights as they are, until the block ends; see :mod:`.precision`.

        Raises:
            UsageError: the model is spread over several devices, and has another type.
        """
        with ExitStack() as stack:
            before, self._computes = self._computes, (dtype, stack)
            self.features.clear()
            try:
                if self.loaded:
                    self._stored = self.stored_dtype
                    stack.enter_context(widened(self.model, dtype))
                yield
            finally:
                self._computes = before
                self.features.clear()

    @property
    def ran(self) -> RunInfo | None:
        """Where and in which type it runs; None without weights."""
        if not self.loaded:
            return None
        dtype = str(self.dtype).removeprefix("torch.")
        return RunInfo(device=self.device.type, dtype=dtype, spread=bool(spread(self.model)))


def _share_buffers(source: torch.nn.Module, model: torch.nn.Module) -> None:
    """Give a loaded model the buffers of the one without weights, made in float32: those of a model that is loaded in a
    narrower type are constants rounded to it."""
    loaded = dict(model.named_buffers())
    for name, buffer in source.named_buffers():
        place, _, leaf = name.rpartition(".")
        model.get_submodule(place)._buffers[leaf] = buffer.to(loaded[name].device)
