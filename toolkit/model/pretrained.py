"""The one place where transformers reads a folder: offline, without the folder's code, and only what is known here.

Nobody is asked whether code may run, and none does: see :mod:`safetykit.adapters.artifact.configuration`. Weights are
those that the fingerprint covers: see :mod:`safetykit.adapters.artifact.checkpoint`. Needs no torch, but for models.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...adapters.artifact.configuration import (
    configuration,
    require_no_code,
    require_sane_depth,
    require_small_vocabulary,
)
from ...adapters.artifact.files import CONFIGURATION_FILES
from ...adapters.errors import InvalidArtifact, SafetykitError

OFFLINE = {"local_files_only": True, "trust_remote_code": False}
_CONFIG, _GENERATION, _ADAPTER = "config.json", "generation_config.json", "adapter_config.json"
# What transformers reads of a file without asking whether it is of its type, and what that is.
_GENERATING: tuple[tuple[tuple[str, ...], tuple[type, ...], str], ...] = (
    (("output_hidden_states", "output_attentions", "output_scores", "use_cache"), (bool,), "switch"),
    (("bos_token_id", "decoder_start_token_id"), (int,), "token"),
)


@contextmanager
def readable_copy(folder: Path, *names: str) -> Iterator[Path]:
    """A folder with the configuration of ``folder``, or its files ``names``, and nothing else, while the block runs.

    Raises:
        InvalidArtifact: see :func:`~safetykit.adapters.artifact.configuration.configuration`.
        OSError: what transformers raises in the block, with the name of ``folder``.
    """
    found = configuration(folder, names or CONFIGURATION_FILES)
    with TemporaryDirectory(prefix="safetykit-") as place:
        for name, data in found.items():
            (Path(place) / name).write_bytes(data)
        try:
            yield Path(place)
        except SafetykitError:
            raise
        except Exception as error:  # of a file that is not as it should be, transformers may raise anything
            raise OSError((str(error) or type(error).__name__).replace(place, str(folder))) from error


def config_of(folder: Path) -> Any:
    """The configuration of a checkpoint or an export.

    Raises:
        InvalidArtifact: it asks to run code, or is not what the manifest says.
        OSError: it cannot be read.
    """
    from transformers import AutoConfig

    require_sane_depth(folder)
    with readable_copy(folder, _CONFIG) as copy:
        config = AutoConfig.from_pretrained(copy, **OFFLINE)
    config._name_or_path = str(folder)
    return config


def generation_config_of(folder: Path) -> Any:
    """How the model of a folder generates; None where the folder does not say. Raises as :func:`config_of`."""
    from transformers import GenerationConfig

    with readable_copy(folder, _GENERATION) as copy:
        if not (copy / _GENERATION).is_file():
            return None
        found = GenerationConfig.from_pretrained(copy, local_files_only=True)
    for names, kinds, wanted in _GENERATING:
        for name in names:
            if not isinstance(getattr(found, name, None), (*kinds, type(None))):
                raise InvalidArtifact(
                    f"{folder / _GENERATION} says {name} is {getattr(found, name)!r:.40}, which is no {wanted}.",
                    "Remove the key, or get the file from its source.",
                )
    for name, value in found.to_dict().items():
        numbers = value if isinstance(value, list) else [value]
        if name.endswith("_token_id") and any(isinstance(one, int) and abs(one) >= 2**31 for one in numbers):
            raise InvalidArtifact(
                f"{folder / _GENERATION} says {name} is {value!r:.40}, which is no token.",
                "Remove the key, or get the file from its source.",
            )
    return found


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a text encoder, whose vocabulary may lie in any file.

    Raises:
        InvalidArtifact: it asks to run code.
        ValueError, OSError: as transformers raises them.
    """
    from transformers import AutoTokenizer

    require_no_code(folder)
    require_small_vocabulary(folder)
    return AutoTokenizer.from_pretrained(folder, **OFFLINE)


def model_of(kind: Any, folder: Path, **options: Any) -> Any:
    """A model of class ``kind`` with the weights of a checkpoint folder; ``options`` are of its ``from_pretrained``.

    Raises:
        InvalidArtifact: the folder asks to run code, or other weights than its own would be loaded.
        UsageError: it holds no safetensors weights.
        ValueError, OSError: as transformers raises them.
    """
    from ...adapters.artifact.checkpoint import weight_files

    require_no_code(folder)
    require_sane_depth(folder)
    weight_files(folder)
    if os.path.lexists(folder / _ADAPTER):
        raise InvalidArtifact(
            f"{folder} holds {_ADAPTER}, whose adapter would be loaded on top of its weights.",
            "Merge it, or remove it.",
        )
    return kind.from_pretrained(folder, use_safetensors=True, **OFFLINE, **options)
