"""The words of ``io.json``, which says all that a program must know to run an export without safetykit.

Every input and output of the graphs with its meaning, how a request becomes tokens and pixels, where features go, how
gates and caches are handed on, when to refuse, and what may be overridden.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ...adapters.artifact.files import read_inside
from ...adapters.artifact.manifest import Strict
from ...adapters.errors import InvalidArtifact
from ..manifest import LAYOUT, Graph

_LIMIT = 16 * 2**20

Role = Literal[
    "tokens",
    "pixels",
    "features",
    "retrieved",
    "embeddings",
    "mask",
    "positions",
    "pictures",
    "phase",
    "cache",
    "gate",
    "reference",
    "switch",
    "kept",
    "parameter",
    "logits",
    "risk",
    "score",
    "other",
]
MEANINGS: dict[Role, str] = {
    "tokens": "token ids",
    "pixels": "prepared pictures, see picture",
    "features": "what replaces the embeddings of image tokens, in their order",
    "retrieved": "what was found for each picture, best first",
    "embeddings": "embeddings of the tokens of this call",
    "mask": "1 at tokens, 0 at padding on the left; over everything fed so far",
    "positions": "place of each token among those of its row, counted from first_position",
    "pictures": "1 at image tokens",
    "phase": "0 at tokens of the prompt, 1 at those of the answer",
    "cache": "keys, values or a state of a layer: what the call before gave; for a prompt nothing, or a state of zeros",
    "gate": "what the gate decided before, see gates.held; 0 with a prompt",
    "reference": "the state of the same prompt without its picture, see gates.reference; 0 after the prompt",
    "switch": "optional: 0 turns the ops off for this call",
    "kept": "optional: of how many last positions logits are wanted, 0 for all; 1 if it is not fed",
    "parameter": "optional: an adapter's parameter, see swap",
    "logits": "of the next token, at each position of this call or at the last",
    "risk": "log-odds of harm of a prompt, NaN after it, infinite in a part of one that cannot be judged, see detector",
    "score": "a gate's margin or another result of an op, for logs and gates",
    "other": "an input of this family's own; safetykit's runtime feeds it",
}


class Value(Strict):
    """An input or output of a graph; sizes that vary have names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    role: Role
    meaning: str


class GraphIO(Strict):
    """A graph: its file, the files of its weights, and its interface.

    Attributes:
        capture: what would break the capture of a CUDA graph, as far as the graph shows it.
    """

    file: str
    weights: tuple[str, ...]
    capture: tuple[str, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


class PictureTextIO(Strict):
    """The text that a picture becomes: ``count`` times ``token``, between how it opens and closes."""

    opening: str
    token: str
    count: int
    closing: str


class PromptIO(Strict):
    """How a prompt becomes text: ``{prompt}`` stands for what the user says, ``{picture}`` for ``picture``.

    Attributes:
        strip: blanks around the prompt are dropped.
        special_tokens: the tokenizer adds its own, such as the begin token.
        most_tokens: how many a prompt may have, those of its picture included; None if the model names no number.

    Special tokens in what the user says are text: they are broken before, and never read as tokens.
    """

    text: str
    with_picture: str
    picture: PictureTextIO
    strip: bool
    special_tokens: bool
    most_tokens: int | None = None


Edge = Annotated[int, Field(gt=0, le=4096)]  # pixels


class PictureIO(Strict):
    """How a picture in RGB becomes pixel values: resized, cropped at its centre, scaled, normalised, channels first.

    Attributes:
        shortest_edge: resize to this edge, keeping the shape; or
        size: resize to this width and height.
        resample: Pillow's number of the filter.
        crop: width and height.
    """

    shortest_edge: Edge | None
    size: tuple[Edge, Edge] | None
    resample: Annotated[int, Field(ge=0, le=5)]
    crop: tuple[Edge, Edge] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class FeaturesIO(Strict):
    """Features replace the embeddings of this token, row by row in order."""

    token: int


class GatesIO(Strict):
    """What a caller hands from call to call beside the cache.

    Attributes:
        held: decoder input ← output of the call before; fed on every call of the answer.
        reference: input of the prompt's call ← output of a call on the same prompt without its picture, with ``off``
            fed 0.
    """

    held: dict[str, str]
    reference: dict[str, str]
    off: str | None


class DetectorIO(Strict):
    """A request whose ``risk_score`` exceeds the threshold gets the refusal, and nothing is generated.

    Attributes:
        enforced: the graph forces the refusal's first token, ``refusal_token``, too.
    """

    threshold: float
    refusal: str
    refusal_token: int
    enforced: bool


class RetrievalIO(Strict):
    """Texts by ``retrieved_ids``: an object ``{"caption": …}`` a line of the file ``texts``. The prompt becomes
    ``before``, the texts joined by blanks, ``after`` and the prompt."""

    texts: str
    before: str
    after: str


class SwapIO(Strict):
    """What may be overridden: inputs of role parameter, by name; all of a graph at once.

    Attributes:
        files: graph → its defaults as an ``.onnx_adapter`` file.
        base, signature: model version and adapter version of files that fit.
    """

    files: dict[Graph, str]
    parameters: tuple[str, ...]
    base: int
    signature: int


class Interface(Strict):
    """``io.json``.

    Attributes:
        answering: a decoder for the calls after the prompt, with the same inputs and outputs and without the branch of
            a detector, for programs that capture CUDA graphs; None where the decoder itself will do.
        base_graphs: graphs of the unmodified model that share the weights; a graph that is not here has no adapter.
        end: tokens that end an answer.
        prompt, picture: None where they cannot be said in these words.
        whole_prompt: why a prompt is to be fed in one call; None if it may be fed in several, each of two tokens or
            more, of which the last one decides.
        program: ``run_ort.py``, or None.
        no_program: why there is none.
    """

    schema_version: Literal[1] = 1
    graphs: dict[Graph, GraphIO]
    answering: GraphIO | None
    base_graphs: dict[Graph, GraphIO]
    features: FeaturesIO
    first_position: int
    end: tuple[int, ...]
    prompt: PromptIO | None
    picture: PictureIO | None
    gates: GatesIO
    detector: DetectorIO | None
    retrieval: RetrievalIO | None
    swap: SwapIO | None
    whole_prompt: str | None = None  # not in files of earlier versions
    program: str | None
    no_program: str | None


def read_interface(folder: Path) -> Interface | None:
    """``io.json`` of an export folder; None where an older version of safetykit wrote none.

    Raises:
        InvalidArtifact: it is damaged.
    """
    path = folder / LAYOUT.interface
    if not path.exists():
        return None
    try:
        return Interface.model_validate(json.loads(read_inside(folder, LAYOUT.interface, _LIMIT)))
    except (ValueError, RecursionError, ValidationError) as error:
        raise InvalidArtifact(
            f"{path} is not valid: {str(error).splitlines()[0]}.", "Export the model again."
        ) from None
