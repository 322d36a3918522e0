"""What a record asks of a model: the one place where records become requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ...adapters.errors import SafetykitError, UsageError
from ..data.ahead import PicturesAhead
from ..data.record import Record
from ..data.sources import is_export
from .chat import as_request
from .chat_template import require_chat_template
from .inputs import InputProcessor
from .requests import Request


def request_of(record: Record, ahead: PicturesAhead | None = None, answer: str = "") -> Request:
    """A record as a request: its prompt with its pictures before it, or its conversation.

    Args:
        ahead: decodes its pictures beside the model; by default they are decoded now.
        answer: how the model's answer begins.

    Raises:
        UsageError: a picture cannot be read.
    """
    return _request(record, record.pictures() if ahead is None else ahead.of(record), answer)


def require_answerable(model: Path | str, records: Iterable[Record], inputs: InputProcessor | None = None) -> None:
    """Refuse a model without a chat template, and conversations and prompts with several pictures of forms that it does
    not take.

    No picture is read, and no weights are.

    Args:
        model: a checkpoint or an export.
        inputs: what makes its inputs; by default read from the folder, where some record needs it.

    Raises:
        UsageError: naming the first record of such a form, and what the model does not take of it.
    """
    if inputs is None:
        require_chat_template(model)
    known: set[tuple[object, ...]] = set()
    for record in records:
        if record.plain:
            continue
        parts = ((message.role, *(part.type for part in message.content)) for message in record.messages)
        if (form := (len(record.image_names), *parts)) in known:
            continue
        known.add(form)
        inputs = inputs or _inputs_of(model)
        try:
            inputs.require(_request(record, [Image.new("RGB", (32, 32))] * len(record.image_names)))
        except SafetykitError as error:
            raise UsageError(f"{record.place}: {error.message}", error.next_step) from None


def _inputs_of(model: Path | str) -> InputProcessor:
    if is_export(Path(model)):
        return InputProcessor.from_pretrained(model)
    from .peft_folder import checkpoint_path  # needs torch, which answering with an export does without

    return InputProcessor.from_pretrained(checkpoint_path(model))


def _request(record: Record, shown: Sequence[Image.Image], answer: str = "") -> Request:
    if not record.messages:
        return Request(record.prompt, shown[0] if len(shown) == 1 else tuple(shown), answer)
    left = iter(shown)
    turns = [
        {
            "role": message.role,
            "content": [
                {"type": "image", "image": next(left)} if part.type == "image" else {"type": "text", "text": part.text}
                for part in message.content
            ],
        }
        for message in record.messages
    ]
    return as_request([*turns, {"role": "assistant", "content": answer}] if answer else turns)
