"""What a method asks of a model and of its records, so that the mathematics needs neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import JsonValue

from .artifact.examples import Example
from .artifact.sites import Site
from .budget import Budget

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from .artifact.manifest import BaseInfo
T = TypeVar("T")
R = TypeVar("R")

Pool = Literal["last", "mean", "vision", "text"]


@dataclass(frozen=True)
class Blocks:
    """Outputs of several blocks in the normal pass, beside each other.

    Attributes:
        layers: two or more, ascending.
    """

    layers: tuple[int, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The blocks' outputs."""
        return tuple(map(Site.block, self.layers))


# (s, f): the final-norm state of the second pass between these blocks; a site: its state in the normal pass.
Place = Site | Blocks | tuple[int, int]

__all__ = [
    "Blocks",
    "BranchSource",
    "ChannelLayers",
    "Example",
    "HeadSource",
    "Place",
    "Pool",
    "Refusal",
    "StateSource",
    "Trajectories",
    "TrajectorySource",
    "Workbench",
]


class StateSource(Protocol):
    """A model whose hidden states can be streamed (``toolkit.model.vlm.VLM``)."""

    @property
    def base(self) -> BaseInfo: ...

    def states(
        self, units: Sequence[Sequence[Example]], sites: Sequence[Site], pool: Pool = "last"
    ) -> Iterator[tuple[list[Example], dict[Site, Float[Tensor, "batch d_model"]]]]:
        """Run the records and yield pooled hidden states batch by batch.

        Records of one unit (a pair) always arrive in the same batch.
        """
        ...


@dataclass(frozen=True)
class Trajectories:
    """States of the last position while a batch is answered greedily.

    Attributes:
        states: those of several sites beside each other, in float32; the first call is that of the prompt, and each
            later one has read one more token of the answer.
        lengths: calls of each row. Unless the answer was cut off, its last one has read the whole answer and ends it.
        texts: the answers.
    """

    states: Float[Tensor, "batch calls width"]
    lengths: Int[Tensor, " batch"]
    texts: tuple[str, ...]


class TrajectorySource(Protocol):
    """A model whose answers can be followed state by state (``toolkit.model.vlm.VLM``)."""

    @property
    def base(self) -> BaseInfo: ...

    def trajectories(
        self, records: Sequence[Example], sites: Sequence[Site], tokens: int
    ) -> Iterator[tuple[list[Example], Trajectories]]:
        """Answer the records, with at most ``tokens`` calls each, and yield what was seen batch by batch."""
        ...


class BranchSource(Protocol):
    """A model whose second passes can be streamed (``toolkit.second_pass.SecondPass``)."""

    @property
    def base(self) -> BaseInfo: ...

    def branch_states(
        self, records: Sequence[Example], places: Sequence[Place]
    ) -> Iterator[tuple[list[Example], dict[Place, Float[Tensor, "batch d_model"]]]]:
        """Run the records and yield last-position states batch by batch."""
        ...

    def deal(self, items: Iterable[T], compute: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        """Each item with what ``compute`` makes of it, in order; several processes may share the work.

        Results must depend on the item alone, and are sent from one process to the others.
        """
        ...

    def head(self) -> tuple[Float[Tensor, "vocab d_model"], Float[Tensor, " vocab"] | None]:
        """Weight and bias of the LM head."""
        ...


class HeadSource(BranchSource, Protocol):
    """A model that also shows how it reads states as words (``toolkit.second_pass.SecondPass``)."""

    def gain(self) -> Float[Tensor, " d_model"]:
        """What the final norm multiplies each component by, beside the scale of the whole state."""
        ...


@dataclass(frozen=True)
class Refusal:
    """What a detector answers.

    Attributes:
        text: the fixed refusal.
        token: its first token in the base's vocabulary.
    """

    text: str
    token: int


class ChannelLayers(Protocol):
    """What a diagnosis found, as far as it names layers (``toolkit.diagnosis.channel_map.ChannelMap``)."""

    @property
    def safety_layer(self) -> int: ...
    @property
    def fused_layer(self) -> int: ...
    @property
    def align_layers(self) -> tuple[int, ...]: ...

    def layers_for(self, modality: Any, count: int) -> tuple[int, ...]:
        """The ``count`` layers that matter most for ``visual`` or ``textual`` input."""
        ...


class Workbench(Protocol):
    """All that a fit can ask for (``toolkit.workbench.Workbench``).

    What costs work is a method and done when it is asked for.

    Attributes:
        model: the VLM, with the correctors applied that the adapter will be stacked with.
        records: of the fit and the calibration split; empty for methods that are fitted on captions.
        corrected_by: which correctors are applied, as a manifest says it.
        budget: what the fit's threshold has to keep, if there is one.
        gate: a detector's probe that opens what the fit does, if there is one.
    """

    @property
    def model(self) -> Any: ...
    @property
    def records(self) -> Sequence[Any]: ...
    @property
    def corrected_by(self) -> Sequence[Mapping[str, JsonValue]]: ...
    @property
    def budget(self) -> Budget | None: ...
    @property
    def gate(self) -> Any: ...

    def of(self, records: Sequence[Any]) -> Workbench:
        """The same with other records, and nothing yet learnt from any."""
        ...

    def phase(self, name: str) -> None:
        """Say what is done from now on, so that long work is seen to move."""
        ...

    def outcomes(self) -> Mapping[str, str]:
        """What the model does with harmful records of the fit split, by id: ``answered``, ``refused`` or ``other``."""
        ...

    def second_pass(self) -> BranchSource:
        """Last-position states of normal and second passes."""
        ...

    def refuses(self, text: str) -> bool:
        """Whether an answer is a refusal."""
        ...

    def refusal(self) -> Refusal:
        """What a detector answers: what was asked for, or the model's own most frequent refusal."""
        ...

    def text_model(self) -> StateSource | None:
        """A separate language model to take directions from; None: the VLM's own."""
        ...

    def aligner(self) -> Any:
        """The model with captioned pictures."""
        ...

    def pictures(self) -> Any:
        """Captioned pictures and a caption index, for retrieval."""
        ...
