"""Judges that are models in a folder of transformers: where they run, and how they are read.

Settings, tokenizer and chat template are read at once, weights when the first answer is judged. Nothing is downloaded
and no code of the folder runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ....adapters.artifact.hub import located
from ....adapters.errors import InvalidArtifact, SafetykitError, UsageError
from ....adapters.extras import missing
from ...model.options import AUTO, LoadOptions

_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<|user|>", "<|assistant|>")  # of frames, where they are words


@dataclass(frozen=True)
class Place:
    """Where judges that are models run: as ``--device`` and ``--dtype`` of models."""

    device: str = AUTO
    dtype: str = AUTO


class Folder:
    """A folder with a model that judges.

    Args:
        path: of the folder, or the id of a checkpoint in the local cache.
        kind: what the judge is called, for errors.
        loads: which of transformers' automatic classes reads it.
        architecture: how the name of its class ends.

    Raises:
        UsageError: there is none, it holds a model of another kind or no weights, or there is no such device.
        InvalidArtifact: it asks to run code.
        MissingExtra: torch is not installed.
    """

    def __init__(self, path: str, kind: str, place: Place, loads: str, architecture: tuple[str, ...]) -> None:
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError:
            raise missing("torch", "A judge that is a model") from None
        from ...model.pretrained import config_of

        self.path, self._place, self._loads = Path(located(path)), place, loads
        if not (self.path / "config.json").is_file():
            raise UsageError(
                f"The judge {kind}:{path} names no folder of a model.",
                "Give the folder as it was published, config.json in it.",
            )
        with told(self.path):
            self.config = config_of(self.path)
        names = list(getattr(self.config, "architectures", None) or ["none"])
        if not any(name.endswith(architecture) for name in names):
            raise UsageError(
                f"{self.path} holds {', '.join(names)}, and a judge {kind} is a …{' or …'.join(architecture)}.",
                "Give another folder, or another kind of judge.",
            )
        self._placement()  # a device that is not there, or no weights, is told now

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, which pads on the left."""
        from ...model.pretrained import tokenizer_of

        with told(self.path):
            found = tokenizer_of(self.path)
        found.padding_side = "left"
        if found.pad_token is None:
            found.pad_token = found.eos_token or found.unk_token
        return found

    @cached_property
    def model(self) -> Any:
        """Its model with weights."""
        from ...model.loading import load_model

        return load_model(self.path, self._placement(), self._loads)[0].eval()

    def _placement(self) -> Any:
        from ...model.placement import Placement

        return Placement.of(LoadOptions(device=self._place.device, dtype=self._place.dtype), self.path)

    def release(self) -> None:
        """Free the memory of the weights; they are loaded again if they are needed."""
        import torch

        self.__dict__.pop("model", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def longest(self) -> int:
        """Tokens that it reads at most."""
        text = getattr(self.config, "text_config", None) or self.config
        return int(getattr(text, "max_position_embeddings", None) or 2**31)

    def plain(self, text: str) -> str:
        """A text in which nothing is a special token or a mark of a frame: whoever was judged wrote it."""
        marks = {*self.tokenizer.all_special_tokens, *_MARKS}
        marks |= {one.content for one in self.tokenizer.added_tokens_decoder.values() if one.special}
        for mark in sorted((one for one in marks if len(one) > 1), key=len, reverse=True):
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Say of a folder that transformers cannot read what is wrong with it."""
    try:
        yield
    except SafetykitError:
        raise
    except Exception as error:  # of a file that is not as it should be, transformers may raise anything
        first = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise InvalidArtifact(f"{folder} cannot be read: {first}.", "Give the folder as it was published.") from None
