"""Writing ``io.json``, worked out from manifest, graphs and the checkpoint's own processor. It says nothing that these
do not say: ``safetykit verify`` works it out again and compares.

``run_ort.py`` beside it is a program of NumPy, ONNX Runtime, Pillow and the tokenizers package. It is put into folders
whose graphs are those of the layout ``onnx`` and that it can run; for others ``no_program`` says what it cannot do.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...adapters.artifact.files import write_atomic
from ...adapters.artifact.manifest import canonical_json
from ...adapters.errors import InvalidArtifact
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.model.requests import RETRIEVED
from ..base.reading import loaded
from ..manifest import GRAPHS, LAYOUT, ExportManifest, Graph
from ..names import (
    ATTENTION_MASK,
    ENABLED,
    HELD,
    INPUT_IDS,
    INPUTS_EMBEDS,
    KEPT,
    LOGITS,
    PAST,
    PIXEL_VALUES,
    POSITION_IDS,
    PRESENT,
    REFERENCE,
    RETRIEVAL_QUERY,
    RETRIEVED_IDS,
    RETRIEVED_SCORES,
    RISK,
    SCORE,
    STATE,
    TOKEN_TYPES,
    VISION_MASK,
    intervention,
    is_own,
)
from ..runtime.chunks import why_whole
from ..surgery.adapter_file import base_version, signature_version
from ..surgery.capture import capture_obstacles
from .interface import (
    MEANINGS,
    DetectorIO,
    FeaturesIO,
    GatesIO,
    GraphIO,
    Interface,
    RetrievalIO,
    Role,
    SwapIO,
    Value,
    read_interface,
)
from .prepare import PROGRAM, SOURCE, difference, prepared
from .registry import get_layout


def write_interface(folder: Path, manifest: ExportManifest, inputs: InputProcessor) -> Interface:
    """Write ``io.json``, ``run_ort.py`` where it can run the folder, and what else the layout makes of these."""
    found = interface_of(folder, manifest, inputs)
    write_atomic(folder / LAYOUT.interface, canonical_json(found.model_dump(mode="json")))
    if found.program:
        write_atomic(folder / PROGRAM, SOURCE.read_bytes())
    for name, data in get_layout(manifest.layout).beside(folder, found).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, data)
    return found


def check_interface(folder: Path, manifest: ExportManifest) -> bool:
    """Whether the folder has an ``io.json``, which then says what manifest and graphs say.

    Raises:
        InvalidArtifact: it says something else.
    """
    found = read_interface(folder)
    if found is None:
        return False
    wanted = interface_of(folder, manifest, InputProcessor.from_pretrained(folder))
    ours, theirs = found.model_dump(), wanted.model_dump()
    if wrong := [name for name in ours if name in found.model_fields_set and ours[name] != theirs[name]]:
        raise InvalidArtifact(
            f"{folder / LAYOUT.interface} does not say what the export says: {wrong[0]}.",
            "It was edited, or written by another version; export the model again.",
        )
    return True


def interface_of(folder: Path, manifest: ExportManifest, inputs: InputProcessor) -> Interface:
    """What ``io.json`` has to say about the export in ``folder``."""
    prompt, picture, why = prepared(inputs)
    graphs = {name: _graph(folder, manifest, inputs, name, manifest.graph_file(name)) for name in GRAPHS}
    bases = {
        name: _graph(folder, manifest, inputs, name, LAYOUT.base_graph(name))
        for name in GRAPHS
        if (folder / LAYOUT.base_graph(name)).exists()
    }
    answering = (folder / LAYOUT.answering).exists()
    found = Interface(
        graphs=graphs,
        answering=_graph(folder, manifest, inputs, "decoder", LAYOUT.answering) if answering else None,
        base_graphs=bases,
        features=FeaturesIO(token=manifest.image_token_id),
        first_position=inputs.family.first_position,
        end=tuple(inputs.eos_token_ids),
        prompt=prompt,
        picture=picture,
        gates=_gates(manifest),
        detector=_detector(manifest),
        retrieval=_retrieval(manifest),
        swap=_swap(manifest),
        whole_prompt=why_whole(manifest, inputs.family),
        program=PROGRAM,
        no_program=None,
    )
    reason = why or _unfit(found, manifest) or difference(folder, found, inputs)
    return found.model_copy(update={"program": None, "no_program": reason}) if reason else found


def _graph(folder: Path, manifest: ExportManifest, inputs: InputProcessor, name: Graph, file: str) -> GraphIO:
    model = loaded(folder / file)
    graph = model.graph
    tensors = [value.const_value for value in graph.initializers.values()]
    weights = {str(one.location) for one in tensors if isinstance(one, ir.ExternalTensor)}
    parent = Path(file).parent
    parameters = {one.name for one in manifest.parameters}

    def described(value: ir.Value) -> Value:
        role = _role(str(value.name), inputs, parameters)
        return Value(
            name=str(value.name),
            dtype=str(value.dtype.numpy())
            if value.dtype is not None and value.dtype.name != "BFLOAT16"
            else "bfloat16",
            shape=tuple(size if isinstance(size, int) else str(size) for size in value.shape or ()),
            role=role,
            meaning=MEANINGS[role],
        )

    return GraphIO(
        file=file,
        capture=capture_obstacles(model),
        weights=tuple(sorted((parent / one).as_posix() for one in weights)),
        inputs=tuple(map(described, graph.inputs)),
        outputs=tuple(map(described, graph.outputs)),
    )


_ROLES: dict[str, Role] = {
    INPUT_IDS: "tokens",
    PIXEL_VALUES: "pixels",
    INPUTS_EMBEDS: "embeddings",
    ATTENTION_MASK: "mask",
    POSITION_IDS: "positions",
    VISION_MASK: "pictures",
    ENABLED: "switch",
    KEPT: "kept",
    LOGITS: "logits",
    RISK: "risk",
    RETRIEVED_SCORES: "retrieved",
    RETRIEVAL_QUERY: "retrieved",
    RETRIEVED_IDS: "retrieved",
}


def _role(name: str, inputs: InputProcessor, parameters: set[str]) -> Role:
    if name in parameters:
        return "parameter"
    if name == TOKEN_TYPES:
        return "phase" if inputs.family.token_types == "phases" else "pictures"
    if name in inputs.family.vision_outputs:
        return "features"
    if name.startswith((PAST, PRESENT)):
        return "cache"
    if is_own(name) and name not in _ROLES:
        part = name.rpartition(".")[2]
        return "gate" if part == HELD else "reference" if part == REFERENCE else "score"
    return _ROLES.get(name, "other")


def _gates(manifest: ExportManifest) -> GatesIO:
    decoder = [one for one in manifest.interventions if one.graph == "decoder"]
    held = [one.index for one in decoder if one.holds and manifest.gate_state == "inputs"]
    reference = [one.index for one in decoder if REFERENCE in one.runtime_inputs]
    return GatesIO(
        held={intervention(index, HELD): intervention(index, SCORE) for index in held},
        reference={intervention(index, REFERENCE): intervention(index, STATE) for index in reference},
        off=ENABLED if ENABLED in manifest.graphs["decoder"].inputs else None,
    )


def _detector(manifest: ExportManifest) -> DetectorIO | None:
    found = manifest.detector
    return None if found is None else DetectorIO(**found.model_dump(), enforced=manifest.enforce)


def _retrieval(manifest: ExportManifest) -> RetrievalIO | None:
    found = manifest.retrieval
    if found is None or found.external or not found.prefix:
        return None
    return RetrievalIO(texts=LAYOUT.captions, before=RETRIEVED, after="\n")


def _swap(manifest: ExportManifest) -> SwapIO | None:
    if manifest.mode != "hot-swap":
        return None
    mine = [name for name in GRAPHS if any(one.graph == name for one in manifest.parameters)]
    places = {name: Path(manifest.graph_file(name)).parent for name in mine}
    return SwapIO(
        files={name: (places[name] / LAYOUT.adapter_file(name)).as_posix() for name in mine},
        parameters=tuple(one.name for one in manifest.parameters),
        base=base_version(manifest),
        signature=signature_version(manifest),
    )


def _unfit(found: Interface, manifest: ExportManifest) -> str | None:
    """Why the program does not fit the graphs."""
    if not get_layout(manifest.layout).plain_graphs:
        return f"it is for the layout onnx, and this one is {manifest.layout}"
    if manifest.retrieval and manifest.retrieval.external:
        return "texts are retrieved from an index outside the folder"
    for name, graph in found.graphs.items():
        for one in graph.inputs:
            if one.role == "other":
                return f"the {name} graph reads {one.name}, which this family prepares in a way of its own"
            if one.role == "positions" and len(one.shape) != 2:
                return f"{one.name} has several positions for each token"
            if one.dtype == "bfloat16":
                return f"{one.name} is bfloat16, which NumPy does not know"
    return None
