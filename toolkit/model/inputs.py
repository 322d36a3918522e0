"""From requests to model inputs: one path for PyTorch and ONNX Runtime, so both see the same numbers.

Works on NumPy arrays and does not use torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from ...adapters.errors import InvalidArtifact, RequestRefused, SafetykitError, TooLong, UsageError
from ..data.sources import model_path
from ..families import family_or_any
from .kinds import require_decoder
from .placing import Placing
from .plain_text import BREAK, PlainText
from .processors import image_token_of, prepares_otherwise, require_sizes
from .reasons import reason_of
from .requests import Generation, Inputs, Request
from .shape import longest_prompt, require_prompt_tokens
from .turns import in_turn

T = TypeVar("T")
R = TypeVar("R")

_LETTERS = 64  # of a prompt for each token that it may have: more are not even tokenised
_PIECE, _CUT = 2**14, 64  # letters whose tokens are counted at once, and tokens that a cut may add
_KINDS = "mm_token_type_ids"  # of each token: text, of a picture, of a video
_PER_TOKEN = "token_type_ids"  # how the processors' outputs about tokens are called; the others are about pictures


class InputProcessor:
    """A checkpoint's processor, tokenizer and chat template behind one method.

    Attributes:
        config: of the model.
        family: what is special about its inputs.
        image_token_id: the token that stands for each feature of a picture.
        most_tokens: the model's own maximum of a prompt's tokens, those of pictures included; None if it names none.
        max_prompt_tokens: the longest prompt that is accepted, in tokens; :attr:`most_tokens` at first.
        turn: what asks the tokenizer holds it, so that many threads may share a processor.
    """

    def __init__(self, processor: Any, config: Any, eos_token_ids: int | Sequence[int] | None = None) -> None:
        """Use a loaded processor; its tokenizer pads on the left from now on.

        Args:
            processor: of transformers, for pictures and text.
            config: the model's.
            eos_token_ids: what ends an answer; by default the tokenizer's end of sequence.

        Raises:
            UsageError: this is no processor for pictures and text, or it does not prepare pictures by Pillow.
        """
        self.turn = RLock()
        if not hasattr(processor, "tokenizer") or getattr(processor, "image_processor", None) is None:
            raise UsageError(
                f"The model ({config.model_type}) has no processor for text and pictures.",
                "safetykit works on vision-language models; the checkpoint needs the files of their processor.",
            )
        if prepares_otherwise(processor.image_processor):
            raise UsageError(
                f"{type(processor.image_processor).__name__} prepares pictures by torchvision, exports by Pillow: "
                "they would see other pixels.",
                'Load the processor with AutoProcessor.from_pretrained(..., backend="pil").',
            )
        require_sizes(processor)
        self.processor = processor
        self.config, self.family = config, family_or_any(config)
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        if getattr(processor, "chat_template", None) is None:  # which not every processor's class takes
            processor.chat_template = getattr(self.tokenizer, "chat_template", None)
        self.image_token_id = image_token_of(processor, config)
        ends = self.tokenizer.eos_token_id if eos_token_ids is None else eos_token_ids
        self.eos_token_ids: tuple[int, ...] = (ends,) if isinstance(ends, int) else tuple(ends or ())
        if not self.eos_token_ids or any(type(one) is not int or one < 0 for one in self.eos_token_ids):
            raise InvalidArtifact(
                f"What ends an answer is no token: {ends!r}.",
                "Give eos_token_id in generation_config.json, or an eos_token in tokenizer_config.json.",
            )
        pad = self.tokenizer.pad_token_id
        self.pad_token_id: int = self.eos_token_ids[0] if pad is None else pad
        if pad is None:  # rows of other lengths are filled with what ends an answer, and masked
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(self.pad_token_id)
        self.plain_text = PlainText(processor)
        self._placing = Placing(self.family, processor)
        self.most_tokens = longest_prompt(config)
        self.max_prompt_tokens = self.most_tokens

    def limit(self, max_prompt_tokens: int | None) -> None:
        """Accept prompts of at most so many tokens, pictures included; None keeps what is.

        Raises:
            UsageError: it is below 1, or above the model's own maximum.
        """
        require_prompt_tokens(max_prompt_tokens, self.most_tokens)
        if max_prompt_tokens is not None:
            self.max_prompt_tokens = max_prompt_tokens

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> InputProcessor:
        """Read a checkpoint or export folder, or ``reference:mild``; nothing is downloaded.

        Raises:
            UsageError: the folder has no processor for pictures and text, or its model is of a kind that is not run.
            InvalidArtifact: it asks to run code, or is not what its manifest says.
        """
        from .pretrained import config_of, generation_config_of, readable_copy
        from .processors import load_processor

        folder = model_path(folder)
        try:
            config, generation = config_of(folder), generation_config_of(folder)
            require_decoder(config)
            with readable_copy(folder) as copy:
                processor = load_processor(copy, config)
            return cls(processor, config, None if generation is None else generation.eos_token_id)
        except SafetykitError:
            raise
        except Exception as error:  # of a file that is not as it should be, transformers may raise anything
            reason = reason_of(error)
            raise UsageError(
                f"{folder} cannot be read as a vision-language checkpoint: {reason}",
                "It needs config.json, a tokenizer and a processor in the files that transformers reads.",
            ) from error

    @in_turn
    def render(self, request: Request) -> str:
        """The request in the model's chat template, up to where the answer begins or as far as it is given."""
        return self._rendered(self._guarded(request)).replace(BREAK, "")

    @in_turn
    def rendered_ids(self, request: Request) -> list[int]:
        """Tokens of :meth:`render`; those of pictures not yet repeated."""
        guarded = self._guarded(request)
        return list(self._reader([guarded]).tokenizer(self._rendered(guarded))["input_ids"])

    def _rendered(self, request: Request) -> str:
        return self.family.joined(self._prompt(request), self._answer(request))

    def _answer(self, request: Request) -> str:
        return request.answer + (str(self.tokenizer.decode([self.eos_token_ids[0]])) if request.ended else "")

    def _guarded(self, request: Request) -> Request:
        return self.plain_text.guarded(request, self._rendered)

    def _reader(self, requests: Sequence[Request]) -> Any:
        """The processor, or if a request holds breaks the one that drops them."""
        return self.plain_text.reader if any(BREAK in one.said for one in requests) else self.processor

    def _prompt(self, request: Request) -> str:
        messages = request.messages()
        prompt = self.family.render(self.processor, messages)
        self._placing.require(messages, prompt)
        return prompt

    @in_turn
    def prepare(self, requests: Sequence[Request]) -> Inputs:
        """Tokenise, insert picture placeholders, pad on the left. Special tokens in what users write are text.

        Raises:
            UsageError: the batch is empty.
            RequestRefused: a request is too long, or the processor cannot take its picture, such as a very narrow one,
                or the chat template does not take it; it is named.
        """
        if not requests:
            raise UsageError("There is nothing to run: the batch is empty.", "Pass at least one request.")
        guarded = _each(requests, self._accepted)
        try:
            inputs = self._tokenised(guarded)
        except UsageError as error:  # which the processor says of the whole batch
            _each(guarded, lambda one: self._tokenised([one]))
            raise error
        lengths = inputs.attention_mask.sum(axis=1).tolist()
        _each(range(len(requests)), lambda at: self._require_short(lengths[at]), lambda at: requests[at])
        return inputs

    def require(self, request: Request) -> None:
        """Refuse a request of a form that the model does not take, whatever its texts and pictures say.

        Raises:
            UsageError: it shows too many pictures, or the chat template drops or moves something.
        """
        self._require_few(request)
        self.render(request)

    def _require_few(self, request: Request) -> None:
        if not self.family.several and len(request.pictures) > 1:
            raise UsageError("This model takes one picture a prompt.", "Ask about one picture at a time.")

    def _accepted(self, request: Request) -> Request:
        self._require_few(request)
        letters = len(request.said)
        if self.max_prompt_tokens is not None and letters > _LETTERS * self.max_prompt_tokens:
            raise self._too_long(f"{letters:,} characters")
        try:
            return self._guarded(request)
        except SafetykitError:
            raise
        except Exception as error:  # of the tokenizer, whose file may be anything
            raise _faulty(error) from error

    def _require_countable(self, text: str) -> None:
        """Refuse a long text while its tokens are counted piece by piece: all of them at once take much memory.

        Pieces can have some tokens more than the whole, where words are cut, so that a few more are let through here.
        """
        most, inner = self.max_prompt_tokens, getattr(self.tokenizer, "backend_tokenizer", None)
        if most is None or inner is None or len(text) <= _PIECE:
            return
        count = 0
        for number, at in enumerate(range(0, len(text), _PIECE), 1):
            count += len(inner.encode(text[at : at + _PIECE], add_special_tokens=False))
            if count > most + number * _CUT:
                raise self._too_long(f"{count:,} tokens or more")

    def _require_short(self, tokens: int) -> None:
        if self.max_prompt_tokens is not None and tokens > self.max_prompt_tokens:
            raise self._too_long(f"{tokens:,} tokens")

    def _too_long(self, length: str) -> TooLong:
        own, said = self.max_prompt_tokens == self.most_tokens, ""
        if self.most_tokens is not None:
            said = f" ({'as many as' if own else f'of the {self.most_tokens:,} that'} the model takes)"
        return TooLong(
            f"The prompt has {length}, more than the {self.max_prompt_tokens:,} tokens that are accepted{said}.",
            "Shorten it." if own else "Shorten it, or accept more with --max-prompt-tokens.",
        )

    def _tokenised(self, requests: Sequence[Request]) -> Inputs:
        try:
            prompts = [self._prompt(request) for request in requests]
            for prompt in prompts:
                self._require_countable(prompt)
            batch = self.family.tokenised(
                self._reader(requests),
                prompts,
                [self._answer(request) for request in requests],
                [request.pictures for request in requests],
            )
        except ValueError as error:
            raise UsageError(
                f"The model's processor refuses these requests: {str(error).strip().rstrip('.')}.",
                "Pass pictures of another size or shape.",
            ) from None
        except SafetykitError:
            raise
        except Exception as error:  # with settings that are not as they should be, it may raise anything
            raise _faulty(error) from error
        found = {name: _plain(value) for name, value in batch.items()}
        input_ids, attention_mask = found.pop("input_ids"), found.pop("attention_mask")
        tokens = {name: found.pop(name) for name in list(found) if name.endswith(_PER_TOKEN)}
        self._require_known(input_ids)
        if not self.family.name and found and _KINDS not in tokens and hasattr(self.processor, "create_" + _KINDS):
            kinds = self.processor.create_mm_token_type_ids(input_ids.tolist())  # which some classes give if asked
            tokens[_KINDS] = np.asarray(kinds, dtype=np.int64)
        return Inputs(input_ids, attention_mask, input_ids == self.image_token_id, found, tokens)

    def _require_known(self, token_ids: np.ndarray) -> None:
        known = getattr(self.config.get_text_config(), "vocab_size", None)
        if known is None:
            return
        strange = token_ids[(token_ids >= known) & (token_ids != self.image_token_id)]
        if strange.size:
            raise InvalidArtifact(
                f"The tokenizer gives token {int(strange[0])}, and the model knows {known}.",
                "The tokenizer is another model's, or damaged; get the checkpoint or export again from its source.",
            )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, without special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    @in_turn
    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that stands alone, without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def generation(self, token_ids: Sequence[int], scores: dict[str, float], refusal: str | None = None) -> Generation:
        """The generation of one row; with ``refusal``, the fixed answer of a detector whose ``risk`` is positive.

        Raises:
            InvalidArtifact: the risk is no number, so that nobody knows whether to answer.
        """
        if refusal is not None and math.isnan(scores["risk"]):
            raise InvalidArtifact(
                "The detector's risk of a request is not a number, so it is not answered.",
                "States have overflowed; use --precision fp32, or fit the detector for this precision.",
            )
        if refusal is not None and scores["risk"] > 0:
            return Generation(refusal, self.tokens_of(refusal), scores, refused=True)
        return Generation(self.decode(token_ids), tuple(token_ids), scores)


def _faulty(error: Exception) -> InvalidArtifact:
    return InvalidArtifact(
        f"The model's processor fails: {reason_of(error)}.",
        "Its settings or its tokenizer are damaged; get the checkpoint or export again from its source.",
    )


def _each(items: Sequence[T], make: Callable[[T], R], request: Callable[[T], Any] = lambda one: one) -> list[R]:
    """What ``make`` makes of each request; the first that fails is named if there are several."""
    made = []
    for at, item in enumerate(items):
        try:
            made.append(make(item))
        except SafetykitError as error:
            raise RequestRefused(at, len(items), request(item).prompt.replace(BREAK, ""), error) from None
    return made


def _plain(value: Any) -> np.ndarray:
    """Floats in single precision, integers in 64 bits, truth values as they are."""
    array = np.asarray(value)
    return array if array.dtype == bool else array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


# Tokenizers warn about threads on every fork; the setting only silences that.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
