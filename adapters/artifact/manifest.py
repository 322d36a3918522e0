"""The adapter's manifest: what the tensors mean, what they were fitted on and what they may change.

The file is canonical JSON (sorted keys, two spaces, final newline) and carries its own SHA-256, so
that a changed byte is noticed wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from ..errors import InvalidArtifact
from .examples import Example
from .names import apart, portable
from .sites import Gating, Phase, Scope

SCHEMA_VERSION: Final = 1
M = TypeVar("M", bound=BaseModel)

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Plain names only: no separators, no drive letters, no leading dot, nothing a shell could read twice.
FileName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9A-Z_][a-zA-Z0-9_-]*(\.[a-zA-Z0-9_-]+)*$", max_length=80),
    AfterValidator(portable),
]
Files = Annotated[dict[FileName, Sha256], AfterValidator(apart)]  # digests by names that all file systems tell apart


class Strict(BaseModel):
    """Unknown keys are errors: a manifest says nothing that is silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class TensorSpec(Strict):
    """Where a parameter lies in ``adapter.safetensors`` and what it must look like."""

    name: str
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: Literal["float32", "float64", "float16", "bfloat16", "int64"]


class InterventionSpec(Strict):
    """One op at one site."""

    op: str
    site: str
    index_base: Literal[0] = 0
    scope: Scope
    phase: Phase
    gate: Gating = "per-token"
    reads: tuple[str, ...] = ()
    tensors: dict[str, TensorSpec]


class BranchSpec(Strict):
    """A second run through the blocks after ``safety``, started from the states of both sites."""

    op: str
    safety: str
    fused: str
    index_base: Literal[0] = 0
    tensors: dict[str, TensorSpec]


class UpdateSpec(Strict):
    """A weight of the base that gets a new value."""

    parameter: str
    tensors: dict[str, TensorSpec]


class DetectorInfo(Strict):
    """When a request is refused before generation, and with which words.

    Attributes:
        threshold: log-odds of harm above which it is.
        refusal: the fixed answer.
        refusal_token: its first token in the base's vocabulary.
    """

    threshold: float
    refusal: str
    refusal_token: Annotated[int, Field(ge=0)]


class DetectorState(Strict):
    """What a detector's risk comes from.

    Attributes:
        sites: that it is read off; two for a branch, which fuses them.
        tensors: SHA-256 of its parameters as a file of safetensors.
    """

    sites: tuple[str, ...]
    tensors: Sha256


class RetrievalInfo(Strict):
    """How an adapter retrieves; its attachment ``retrieval``, and a part of an export's manifest.

    Attributes:
        k: texts per picture.
        prefix: the texts stand before the prompt, as ``Retrieved Text: …``.
        external: the graph gives the query only, and the runtime searches the index.
        count: texts in the index.
        index: SHA-256 of the index's data file.
    """

    k: Annotated[int, Field(ge=1)]
    prefix: bool
    external: bool
    count: Annotated[int, Field(ge=1)]
    index: Sha256


class GraphWeights(Strict):
    """The rounded weights of a graph that an adapter was fitted on, in the place of its base's own.

    Attributes:
        precision: of the graph.
        sha256: of the file that holds its decoder's weights.
    """

    precision: str
    sha256: Sha256


class RunInfo(Strict):
    """How a model ran while an adapter was fitted on it.

    Attributes:
        device: its kind: ``cpu``, ``cuda`` or ``mps``.
        dtype: of its floats.
        spread: over several devices, memory and disk.
    """

    device: str
    dtype: str
    spread: bool = False


class BaseInfo(Strict):
    """The model an adapter belongs to.

    Attributes:
        on: the graph's weights that it ran with while the adapter was fitted; None for its own.
        ran: how it ran then; None where that was not noted.
    """

    fingerprint: Sha256
    architecture: str
    n_layers: int
    d_model: int
    on: GraphWeights | None = None
    ran: RunInfo | None = None


class DataInfo(Strict):
    """The records an adapter was fitted on.

    ``counts`` is keyed ``split/carrier/label``.
    """

    sha256: Sha256
    counts: dict[str, int]


class AdapterInfo(Strict):
    """What a fit states about its result, before it is written anywhere."""

    method: str
    variant: str
    sign_convention: str
    hyperparameters: dict[str, JsonValue]
    seed: int | None
    base: BaseInfo
    data: DataInfo
    versions: dict[str, str]


class AdapterManifest(Strict):
    """``manifest.json`` of an adapter folder."""

    schema_version: Literal[1] = SCHEMA_VERSION
    info: AdapterInfo
    interventions: tuple[InterventionSpec, ...]
    branch: BranchSpec | None = None
    detector: DetectorInfo | None = None
    updates: tuple[UpdateSpec, ...] = ()
    files: Files


def canonical_json(value: Any) -> bytes:
    """One spelling per value: sorted keys, two spaces, final newline, no NaN."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def dump_sealed(model: BaseModel) -> bytes:
    """Canonical JSON of ``model`` with its own digest in the key ``sha256``."""
    return sealed(model.model_dump(mode="json"))


def sealed(body: Mapping[str, JsonValue]) -> bytes:
    """Canonical JSON of an object with its own digest in the key ``sha256``."""
    return canonical_json({**body, "sha256": hashlib.sha256(canonical_json(body)).hexdigest()})


def is_sealed(data: bytes, body: dict[str, Any]) -> bool:
    """Whether ``data``, the JSON object ``body``, is as :func:`dump_sealed` writes it: canonical, with its digest."""
    inner = {name: value for name, value in body.items() if name != "sha256"}
    try:
        return body.get("sha256") == hashlib.sha256(canonical_json(inner)).hexdigest() and canonical_json(body) == data
    except (ValueError, RecursionError):
        return False


def load_sealed(kind: type[M], data: bytes, where: str) -> M:
    """Read what :func:`dump_sealed` wrote; ``where`` names the file in errors.

    Raises:
        InvalidArtifact: not JSON, not canonical, digest or schema do not match.
    """
    advice = "The file was changed or is damaged; get it again from its source."
    try:
        body = json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InvalidArtifact(f"{where} is not JSON ({type(error).__name__}).", advice) from None
    if not isinstance(body, dict):
        raise InvalidArtifact(f"{where} does not hold a JSON object.", advice)
    version = body.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InvalidArtifact(
            f"{where} has schema version {version}; this safetykit reads up to {SCHEMA_VERSION}.", "Update safetykit."
        )
    if not is_sealed(data, body):
        raise InvalidArtifact(f"{where} does not match its own checksum.", advice)
    try:
        body.pop("sha256")
        return kind.model_validate(body)
    except (ValidationError, RecursionError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "nested too deeply"}
        place = ".".join(map(str, detail["loc"]))
        if detail.get("type") == "extra_forbidden":
            raise InvalidArtifact(
                f"{where} says {place}, which this version of safetykit does not know.",
                "Another version wrote it: install that one, or get the file again from its source.",
            ) from None
        raise InvalidArtifact(f"{where} is not valid at {place or 'the top'}: {detail['msg']}.", advice) from None


def library_versions() -> dict[str, str]:
    """Installed versions of what a fit depends on."""
    names = ("safetykit", "torch", "transformers", "safetensors")
    return {name: version(name) for name in names}


def describe_data(records: Iterable[Example]) -> DataInfo:
    """Hash and count the records a fit has seen; their order does not matter."""
    records = list(records)  # whose pictures are read in the order in which they lie
    found = sorted((record.id, bytes.fromhex(record.digest())) for record in records)
    digest = hashlib.sha256()
    for at, (_, one) in enumerate(found):
        digest.update(b"\n" * bool(at) + one.hex().encode())
    counts = Counter(f"{record.split}/{record.carrier}/{record.label}" for record in records)
    return DataInfo(sha256=digest.hexdigest(), counts=dict(sorted(counts.items())))
