"""What a family of VLMs says about itself: its parts, its graphs' inputs, and what computes them.

Everything here but :meth:`Family.vision` and :meth:`Family.decoder` works on NumPy arrays and configurations: the
ONNX runtime asks the same object that the export asked, and must not need torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ...adapters.errors import UsageError
from .templates import rendered
from .windows import require_known_layers, sees_windows, window_mask

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.requests import Inputs

Arrays = dict[str, np.ndarray]
DType = Literal["float32", "weights", "int64", "bool"]
# Example sizes for tracing: of two or more and distinct, since a size of 1, or two equal ones, would become fixed.
SIZES = {"batch": 2, "sequence": 5, "past_sequence": 3, "total": 8}

_HEAD_MULTIPLE = 8  # of which ONNX Runtime's GroupQueryAttention wants the width of a head to be


@dataclass(frozen=True)
class GraphInput:
    """One input of a graph.

    Attributes:
        dtype: ``weights`` is the precision of the graph's weights.
        shape: sizes, and names of those that vary.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]

    def example(self, weights: np.dtype | type = np.float32, past: int = SIZES["past_sequence"]) -> np.ndarray:
        """A plausible value for a decoder of :data:`SIZES`: positions count up, masks are causal, the rest is zero."""
        sizes = {**SIZES, "past_sequence": past, "total": past + SIZES["sequence"]}
        return self.plausible(sizes, weights)

    def plausible(self, sizes: Mapping[str, int], weights: np.dtype | type = np.float32) -> np.ndarray:
        """A plausible value for other sizes; ``past_sequence`` tokens come before."""
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)
        dtype = np.dtype(weights if self.dtype == "weights" else self.dtype)
        if self.name == "position_ids":
            return np.broadcast_to(np.arange(shape[-1]) + sizes["past_sequence"], shape).astype(dtype)
        if dtype.kind == "b" and self.shape[-2:] == ("sequence", "total"):
            return np.broadcast_to(np.tri(shape[-2], shape[-1], sizes["past_sequence"], dtype=bool), shape).copy()
        return np.zeros(shape, dtype)


class Family:
    """One architecture; subclasses override what is special about theirs.

    Attributes:
        name: ``model_type`` of its configuration.
        title: how people call its models.
        relatives: titles of models that share the type, by the names that tests and tables give them.
        obstacle: why its graphs cannot be exported; None if they can.
        runs_in: what a layout's runtime must know of it, by the layout's name; a layout may be made only for families
            that state something.
        token_types: what the decoder's ``token_type_ids`` say, if it has any: which tokens are a picture's
            (``pictures``), or which are of the prompt (0) and of the answer (1) (``phases``).
        tower, projector: dotted paths from the model, where :class:`~safetykit.toolkit.model.parts.Parts` cannot know
        them;
            a projector of None says that there is none.
        attention, mlp: the module of a decoder layer whose output is added to the residual stream, where names do not
            tell; it is checked by numbers.
        vision_outputs: outputs of the vision graph; the first are the image features, [pictures, tokens, d_model] or
            [tokens, d_model].
        taps: inner values of the vision graph that :meth:`vision` returns after its outputs: ``vision``, what the
            projector reads, and ``projector``, what it gives, where that is not the first output. Of rank 3.
        several: whether a prompt may hold more than one picture.
        repacks: whether features are rearranged after the projector, so that its tokens are not the decoder's.
        scattered: outputs of the vision graph that go to the image tokens of further decoder inputs, by name.
        first_position: of the first token of a prompt.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    relatives: ClassVar[Mapping[str, str]] = {}
    obstacle: ClassVar[str | None] = None
    runs_in: ClassVar[Mapping[str, Any]] = {}
    token_types: ClassVar[Literal["pictures", "phases"] | None] = None
    tower: ClassVar[str | None] = None
    projector: ClassVar[str | None] = ""
    attention: ClassVar[str | None] = None
    mlp: ClassVar[str | None] = None
    vision_outputs: ClassVar[tuple[str, ...]] = ("image_features",)
    taps: ClassVar[tuple[str, ...]] = ("vision",)
    several: ClassVar[bool] = True
    repacks: ClassVar[bool] = False
    scattered: ClassVar[Mapping[str, str]] = {}
    first_position: ClassVar[int] = 0

    # --- requests -----------------------------------------------------------------------------------------------

    def images(self, pictures: Sequence[Sequence[Any]]) -> Any:
        """Pictures of each row, in the nesting that the processor wants; None when there are none."""
        return [picture for row in pictures for picture in row] or None

    def render(self, processor: Any, turns: Sequence[Mapping[str, Any]]) -> str:
        """A conversation as the model's text, up to where the answer begins."""
        return rendered(processor, turns)

    def picture_text(self, processor: Any) -> tuple[str, str, str, str]:
        """A picture in a prompt: its placeholder in what :meth:`render` gives, and what the processor puts there: how
        it opens, the token that stands once for each feature, how it closes."""
        token = str(processor.image_token)
        return token, "", token, ""

    def joined(self, prompt: str, answer: str) -> str:
        """A rendered prompt and how its answer begins, or nothing.

        A template that ends in a new line lets the answer begin on it; after anything else a space does.
        """
        if not answer or prompt.endswith("\n"):
            return prompt + answer
        return f"{prompt.rstrip()} {answer}"

    def tokenised(
        self, processor: Any, prompts: Sequence[str], answers: Sequence[str], pictures: Sequence[Sequence[Any]]
    ) -> Mapping[str, Any]:
        """Arrays for rows of rendered prompts and how their answers begin, padded."""
        text = [self.joined(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        flat = self.images(pictures)
        made: Mapping[str, Any]
        try:
            made = processor(text=text, images=flat, padding=True, return_tensors="np")
            return made
        except ValueError:
            if flat is None or (self.name and self.obstacle is None):
                raise
        # Some processors of families that are not known want the pictures of each row in a list of its own.
        made = processor(text=text, images=[list(row) for row in pictures], padding=True, return_tensors="np")
        return made

    # --- export -------------------------------------------------------------------------------------------------

    def check(self, config: Any) -> None:
        """Refuse a configuration that cannot be exported.

        Raises:
            UsageError: with the reason.
        """
        require_known_layers(config.get_text_config())

    def obstacles(self, config: Any) -> Mapping[str, str]:
        """Why graphs cannot be exported, by their names; none for those that can."""
        try:
            self.check(config)
        except UsageError as error:
            reason = error.message[:1].lower() + error.message[1:].rstrip(".")
            return dict.fromkeys(("vision_encoder", "decoder"), reason)
        return {}

    def attention_obstacle(self, config: Any) -> str | None:
        """Why the attention of a decoder layer cannot be one node of the graph; None if it can."""
        if self.token_types is not None:
            return "some tokens see later ones, and the operator is causal"
        if all(one.name != "position_ids" for one in self.decoder_inputs(config)):
            return "its graph takes no positions"
        text = config.get_text_config()
        if sees_windows(text):
            return "some of its layers see a window of the past, and the operator sees all of it"
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        if width % _HEAD_MULTIPLE:
            return f"its heads are {width} wide, and the operator takes multiples of {_HEAD_MULTIPLE}"
        return None

    def vision_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        """Inputs of the vision graph."""
        size = config.vision_config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return (GraphInput("pixel_values", "float32", ("images", 3, height, width)),)

    def vision_example(self, config: Any) -> Arrays:
        """Valid inputs of the vision graph, for tracing it and probing it; sizes that vary are 2 or more, distinct."""
        (pixels,) = self.vision_inputs(config)
        return {pixels.name: np.zeros(tuple(2 if isinstance(size, str) else size for size in pixels.shape), np.float32)}

    def taps_of(self, model: Any) -> tuple[str, ...]:
        """Its :attr:`taps`."""
        return self.taps

    def vision(self, model: Any, **inputs: Tensor) -> tuple[Tensor, ...]:
        """The vision graph: its outputs, then its taps. ``pixel_values`` is float32 whatever the weights are."""
        raise NotImplementedError

    def decoder_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        """Inputs of the decoder beside ``inputs_embeds``, ``attention_mask`` and the cache."""
        return (GraphInput("position_ids", "int64", ("batch", "sequence")),)

    def decoder(
        self, model: Any, inputs_embeds: Tensor, attention_mask: Tensor, cache: Any, **inputs: Tensor
    ) -> Tensor:
        """The decoder graph: logits [batch, sequence, vocab]. ``cache`` is a filled transformers cache."""
        decoder = model.get_decoder()
        mask = window_mask(decoder.config, attention_mask, inputs_embeds)
        states = decoder(
            inputs_embeds=inputs_embeds, attention_mask=mask, past_key_values=cache, use_cache=True, **inputs
        ).last_hidden_state
        return model.get_output_embeddings()(states)

    # --- running ------------------------------------------------------------------------------------------------

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        """What the vision graph is fed, from what the processor gave."""
        return {"pixel_values": pictures["pixel_values"]}

    def vision_calls(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Iterator[Arrays]:
        """The inputs of each call of the graph, in order; the features of the calls are joined in this order."""
        yield self.vision_feeds(config, pictures)

    def prefill(self, config: Any, inputs: Inputs) -> Arrays:
        """What the decoder is fed for a prompt, by the names of :meth:`decoder_inputs`, but for ``scattered`` ones."""
        return {"position_ids": inputs.position_ids + self.first_position}

    def step(self, config: Any, before: Mapping[str, np.ndarray], mask: np.ndarray) -> Arrays:
        """What the decoder is fed for one more token per row.

        Args:
            before: what the decoder was fed the last time.
            mask: [batch, total], the new token included.
        """
        return {"position_ids": np.maximum(mask.sum(axis=1, keepdims=True) - 1, 0) + self.first_position}


def kv_shape(config: Any) -> tuple[int, int]:
    """Number of key/value heads and their width, from a text configuration."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
