"""A language model behind an OpenAI-compatible address as a judge, asked by a rubric (:mod:`.rubrics`).

A reply that does not keep to the rubric's grammar, and a failure of the server, is no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ....adapters.errors import SafetykitError, ServerFailed
from ...model.endpoint import Endpoint
from ...model.requests import Request
from .rubrics import GENERAL, Rubric
from .verdict import HarmJudge, Item, Verdict

KEY_VARIABLE = "SAFETYKIT_JUDGE_API_KEY"
_TOKENS = 512  # of the reply; some models think before they say the verdict
_AT_ONCE = 8  # requests
_GONE = "the server answers no more"


class Served(HarmJudge):
    """One model of a server.

    Args:
        address: ``http://HOST/v1``, with ``#MODEL`` if the server has several.
        waiting: told why it is asked again, and an empty text once it answers.
        rubric: what it is asked; ``name``: what people type for it, the address by default.

    Raises:
        UsageError: no address, or no such model.
        ServerFailed: nothing answers there.
        MissingExtra: OpenAI's client is not installed.
    """

    def __init__(
        self,
        address: str,
        waiting: Callable[[str], None] | None = None,
        *,
        rubric: Rubric = GENERAL,
        name: str = "",
    ) -> None:
        self.name, self._rubric = name or address, rubric
        self.sees, self.graded, self.partial = rubric.sees, rubric.graded, rubric.partial
        url, _, model = address.partition("#")
        self._endpoint = Endpoint(url, model or None, waiting=waiting, key_variable=KEY_VARIABLE)

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See :meth:`.verdict.Judge.judge`."""
        return super().judge(items) if self._rubric.harm else self.harm(items)

    def harm(self, items: Sequence[Item]) -> list[Verdict]:
        """See :meth:`.verdict.HarmJudge.harm`. A server that answers none of several at once is asked no more."""
        found: list[Verdict] = []
        with ThreadPoolExecutor(_AT_ONCE, "judging") as pool:
            for start in range(0, len(items), _AT_ONCE):
                some = list(pool.map(self._one, items[start : start + _AT_ONCE]))
                found += [verdict for verdict, _ in some]
                if len(some) > 1 and all(gone for _, gone in some):
                    break
        return found + [Verdict(None, said=_GONE)] * (len(items) - len(found))

    def _one(self, item: Item) -> tuple[Verdict, bool]:
        """A verdict, and whether the server failed."""
        record, text = item
        try:
            shown = list(record.pictures()) if self.sees else []
            reply = self._endpoint.generate([Request(self._rubric.asks(record, text), shown or None)], _TOKENS)[0].text
        except SafetykitError as error:
            return Verdict(None, said=error.message), isinstance(error, ServerFailed)
        return self._rubric.read(reply, item), False
