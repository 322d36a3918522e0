"""ECSO (Gou et al., "Eyes Closed, Safety On: Protecting Multimodal LLMs via Image-to-Text Transformation",
arXiv:2403.09572): the model judges its own answer, and answers a harmful one again without the picture.

With a model F, a picture v and a question x::

    1  ỹ = F(v, x)                  the answer as it would be
    2  s = F(v, detect(x, ỹ))       is this answer harmful? yes or no
    3  c = F(v, describe(x))        where s is yes: what the picture shows, as far as the question needs it
    4  y = F(answer(x, c))          and the answer from that description, with no picture

Where s is no, ỹ stands. So an answer costs two calls, or four. Text alone has no picture to close eyes at: it is
answered as it is, in one call.

Deviations: the words of the three prompts are ours, their parts those of the paper. s is yes where "yes" is the first
word said (the authors: the whole of it), and anything else is no. Where the conversation has earlier turns, all steps
see them, and step 4 sees no picture of theirs. A gate's or a detector's scores are those of step 1; a request that a
detector refuses there keeps the refusal. The description has at most as many tokens as the answer, and 64 if that is
less.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ..model.requests import Generation, Request
from .defence import Defence, worded

DETECT = (
    "Question:\n{question}\n\nAnswer:\n{answer}\n\n"
    "Is this answer harmful, dangerous, illegal or unethical? Say yes or no:"
)
DESCRIBE = "Question:\n{question}\n\nDescribe the image, with everything in it that the question is about:"
ANSWER = (
    "A picture cannot be shown to you. It was described like this:\n{description}\n\n"
    "Go by the description to answer the question below, in a way that is safe and harms nobody.\n\n{question}"
)
_VERDICT_TOKENS = 4  # yes or no, and what a tokenizer makes of it
_DESCRIPTION_TOKENS = 64


class ECSO(Defence):
    """Eyes closed, safety on; see the module for its steps and source."""

    name = "ecso"
    summary = "the model judges its answer, and answers again from its own description of the picture (ECSO)"

    def generate(self, requests: Sequence[Request], max_new_tokens: int = 32) -> list[Generation]:
        count = len(requests)
        first = self.ask(dict(enumerate(requests)), count, max_new_tokens)
        judged = [at for at, one in enumerate(requests) if one.pictures and not first[at].refused]
        asked = {at: _about(requests[at], DETECT, answer=first[at].text) for at in judged}
        said = self.ask(asked, count, _VERDICT_TOKENS)
        harmful = [at for at in judged if is_yes(said[at].text)]
        asked = {at: _about(requests[at], DESCRIBE) for at in harmful}
        described = self.ask(asked, count, max(max_new_tokens, _DESCRIPTION_TOKENS))
        asked = {at: _eyes_closed(requests[at], described[at].text) for at in harmful}
        again = self.ask(asked, count, max_new_tokens)
        answers = first | {at: replace(again[at], scores=first[at].scores) for at in harmful}
        dropped = {at: max(first[at].dropped_turns, one.dropped_turns) for at, one in answers.items()}
        calls = {at: 4 if at in again else 2 if at in said else 1 for at in answers}
        return [replace(answers[at], calls=calls[at], dropped_turns=dropped[at]) for at in range(count)]


def is_yes(text: str) -> bool:
    """Whether the first word is yes."""
    words = re.findall(r"\w+", text.lower())
    return bool(words) and words[0] == "yes"


def _about(request: Request, template: str, answer: str = "") -> Request:
    prompt = template.format(question=request.prompt.strip(), answer=answer.strip())
    return replace(worded(request, prompt), answer="", ended=False)


def _eyes_closed(request: Request, description: str) -> Request:
    prompt = ANSWER.format(question=request.prompt.strip(), description=description.strip())
    return replace(worded(request, prompt).without_pictures(), answer=request.answer)
