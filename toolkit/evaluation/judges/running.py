"""Guards that run here: asked by their template, their replies read as their cards say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ....adapters.artifact.files import CONFIGURATION_FILES
from ....adapters.errors import SafetykitError, UsageError
from .folder import Folder, Place, told
from .guards import TEMPLATE, GuardKind
from .verdict import HarmJudge, Item, Verdict, asked_of

_BATCH = 8
_REQUEST, _ANSWER = "the request of a probe", "the answer of a probe"  # words by which a template is tried
_MOST = 2**20  # bytes of a template


class Guard(HarmJudge):
    """A guard model of a known kind.

    Raises:
        UsageError: the folder is none, holds another kind of model, or has no template that shows request and answer.
        InvalidArtifact: it asks to run code.
    """

    placed = True

    def __init__(self, kind: GuardKind, path: str, place: Place) -> None:
        self.name, self._kind, self.sees, self.graded = f"{kind.name}:{path}", kind, kind.sees, kind.graded
        loads, ends = ("AutoModelForCausalLM", ("ForCausalLM",))
        if kind.sees:
            loads, ends = ("AutoModelForImageTextToText", ("ForConditionalGeneration",))
        self._folder = Folder(path, kind.name, place, loads, ends)
        own = self._folder.path / TEMPLATE
        if own.is_file() and kind.sees:
            raise UsageError(f"A {kind.name} is asked by its chat template, not by {own}.", "Take the file out.")
        self._asked = _template(own) if own.is_file() else kind.asked
        self._parts = kind.sees
        self._require_template()
        if kind.first and not all(word in self._folder.tokenizer.get_vocab() for word in kind.first):
            raise UsageError(
                f"The tokenizer of {self._folder.path} has no token for {' and '.join(kind.first)}.",
                "Give the folder as it was published.",
            )

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See :meth:`.verdict.Judge.judge`."""
        return self.harm(items) if self._kind.refusals else super().judge(items)

    def release(self) -> None:
        """See :meth:`.verdict.Judge.release`."""
        self._folder.release()

    def harm(self, items: Sequence[Item]) -> list[Verdict]:
        """See :meth:`.verdict.HarmJudge.harm`."""
        found: list[Verdict] = []
        step = 1 if self._kind.sees else _BATCH
        for start in range(0, len(items), step):
            found += self._some(items[start : start + step])
        return found

    def _some(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts on a batch; one whose prompt is too long has none."""
        prepared = [self._inputs(item) for item in items]
        length = self._folder.longest - self._kind.tokens
        short = [at for at, inputs in enumerate(prepared) if len(inputs["input_ids"][0]) <= length]
        found = [Verdict(None, said="request and answer are longer than the judge reads")] * len(items)
        if short:
            for at, verdict in zip(
                short, self._replies([items[at] for at in short], [prepared[at] for at in short]), strict=True
            ):
                found[at] = verdict
        return found

    def _replies(self, items: Sequence[Item], prepared: Sequence[Any]) -> list[Verdict]:
        import torch

        tokenizer, model = self._folder.tokenizer, self._folder.model
        if len(prepared) > 1:
            ids = [{"input_ids": one["input_ids"][0]} for one in prepared]
            inputs = tokenizer.pad(ids, return_tensors="pt")
        else:
            inputs = prepared[0]
        inputs = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        width = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            if self._kind.first:
                return list(map(self._likelier, items, model(**inputs).logits[:, -1]))
            made = model.generate(
                **inputs,
                max_new_tokens=self._kind.tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        replies = [tokenizer.decode(row[width:], skip_special_tokens=True) for row in made]
        return [self._kind.read(reply, item) for reply, item in zip(replies, items, strict=True)]

    def _likelier(self, item: Item, logits: Any) -> Verdict:
        """The likelier of two first tokens, or the mean of several that are numbers, unless another one is likelier."""
        vocabulary = self._folder.tokenizer.get_vocab()
        known = [vocabulary[word] for word in self._kind.first]
        if (best := int(logits.argmax())) not in known:
            return Verdict(None, said=self._folder.tokenizer.decode([best]))
        shares = logits[known].float().softmax(0).tolist()
        if self._kind.rated:
            mean = sum(share * int(word) for share, word in zip(shares, self._kind.first, strict=True))
            return self._kind.read(f"{mean:.4f}", item)
        score = shares[0]
        said = self._kind.first[0 if score > 0.5 else 1]
        verdict = self._kind.read(said, item)
        return Verdict(verdict.outcome, score, said)

    def _inputs(self, item: Item) -> Any:
        record, text = item
        request, answer = self._folder.plain(asked_of(record)), self._folder.plain(text)
        if not self._kind.sees:
            prompt = self._prompt(request, answer)
            begins = self._asked and not prompt.startswith(self._folder.tokenizer.bos_token or "\0")
            return self._folder.tokenizer([prompt], add_special_tokens=bool(begins), return_tensors="pt")
        pictures = record.pictures()
        prompt = self._prompt(request, answer, len(pictures))
        return self._processor(
            text=[prompt], images=list(pictures) or None, add_special_tokens=False, return_tensors="pt"
        )

    def _prompt(self, request: str, answer: str, pictures: int = 0) -> str:
        if self._asked:
            return _rendered(self._asked, request, answer)
        shown = [{"type": "image"}] * pictures
        turns = (("user", request), ("assistant", answer))
        messages = [
            {"role": role, "content": [*(shown if role == "user" else []), {"type": "text", "text": said}]}
            if self._parts
            else {"role": role, "content": said}
            for role, said in turns
        ]
        rendering = self._processor if self._kind.sees else self._folder.tokenizer
        found: str = rendering.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._kind.told
        )
        return found

    @cached_property
    def _processor(self) -> Any:
        from ...model.pretrained import readable_copy
        from ...model.processors import load_processor

        with told(self._folder.path), readable_copy(self._folder.path, *CONFIGURATION_FILES) as copy:
            return load_processor(copy, self._folder.config)

    def _require_template(self) -> None:
        """Refuse a template that leaves out the request or the answer; some take texts, some lists of parts.

        Raises:
            UsageError: there is none, or it does so.
        """
        for parts in dict.fromkeys((self._parts, True)):
            self._parts = parts
            try:
                prompt = self._prompt(_REQUEST, _ANSWER)
            except SafetykitError:
                raise
            except Exception:  # whatever a template may raise of what it does not take
                continue
            more = [] if self._asked else list(self._kind.told.values())
            if all(one in prompt for one in (_REQUEST, _ANSWER, *more)):
                return
        raise UsageError(
            f"{self._folder.path} has no template that shows a {self._kind.name} "
            f"{' and '.join(['request', 'answer', *self._kind.told])}.",
            f"Give the folder as it was published, or put a template into it as {TEMPLATE}.",
        )


def _template(path: Path) -> str:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if path.stat().st_size > _MOST:
        raise UsageError(f"{path} is larger than {_MOST} bytes.", "A template is a page of text.")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        ImmutableSandboxedEnvironment().from_string(text)
    except TemplateError as error:
        raise UsageError(f"{path} is no template of Jinja: {error}.", "Correct it.") from None
    return text


def _rendered(template: str, request: str, answer: str) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(keep_trailing_newline=True).from_string(template)
    return made.render(request=request, answer=answer)
