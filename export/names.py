"""Names of graph values: those that other exporters and runtimes share, and those that safetykit adds. Needs no torch.

What safetykit adds to a graph is called ``safetykit.…`` (:func:`own`), but for the outputs and inputs that callers know
by plain names. Interventions count over all adapters of an export; what belongs to intervention k is
``safetykit.<k>.<part>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..toolkit.cache_names import STATES

# --- of every VLM in three graphs ----------------------------------------------------------------------------------

INPUT_IDS, INPUTS_EMBEDS = "input_ids", "inputs_embeds"
ATTENTION_MASK, POSITION_IDS, TOKEN_TYPES = "attention_mask", "position_ids", "token_type_ids"
PIXEL_VALUES, IMAGE_FEATURES = "pixel_values", "image_features"
LOGITS = "logits"
KEPT = "num_logits_to_keep"  # of how many last positions the decoder gives logits, 0 for all
PAST, PRESENT = "past_key_values.", "present."  # what the names of the KV cache's inputs and outputs begin with

_CACHE_INPUT = re.compile(rf"past_key_values\.(\d+)\.({'|'.join(('key', 'value', *STATES))})")


def past(layer: int | str, part: str) -> str:
    """The input for the cached keys (``key``) or values (``value``) of a layer, or for a state of it."""
    return f"{PAST}{layer}.{part}"


def present(layer: int | str, part: str) -> str:
    """The output that follows :func:`past`."""
    return f"{PRESENT}{layer}.{part}"


def cache_names(parts: Iterable[Sequence[str]], prefix: str) -> tuple[str, ...]:
    """``<prefix>0.key, <prefix>0.value, <prefix>1.key, …`` with one of :data:`PAST` and :data:`PRESENT`.

    Args:
        parts: of each layer's cache.
    """
    return tuple(f"{prefix}{layer}.{part}" for layer, names in enumerate(parts) for part in names)


def cached(name: str | None) -> tuple[int, str] | None:
    """The layer and part of a cache input; None for other names."""
    found = _CACHE_INPUT.fullmatch(name or "")
    return (int(found[1]), found[2]) if found else None


def is_state(name: str) -> bool:
    """Whether a cache input or output is a state of its layer, whose size does not grow with the tokens."""
    return name.rpartition(".")[2] in STATES


# --- of safetykit --------------------------------------------------------------------------------------------------

DOMAIN = "safetykit"  # of its functions
VISION_MASK = "vision_mask"  # [batch, sequence] bool, true at tokens of pictures
RISK = "risk_score"  # [batch] float32, NaN past the prefill
RETRIEVED_IDS, RETRIEVED_SCORES, RETRIEVAL_QUERY = "retrieved_ids", "retrieved_scores", "retrieval_query"


def own(part: str) -> str:
    """A name of safetykit's own."""
    return f"{DOMAIN}.{part}"


def is_own(name: str | None) -> bool:
    """Whether a value or node is safetykit's by its name."""
    return (name or "").startswith(f"{DOMAIN}.")


ENABLED = own("enabled")  # float, 1 by default: 0 turns a graph's ops off for one run
THRESHOLD, REFUSAL, TOKEN = own("risk_threshold"), own("refusal"), own("refusal_token")
SITES, TENSORS = own("detector_sites"), own("detector_sha256")
BRANCH, GATES, BIAS, ENFORCE = own("branch"), own("gates"), own("bias"), own("enforce")
OP, HELD, SCORE, STATE, REFERENCE = "op", "held", "score", "state", "reference"  # parts of an intervention


def intervention(index: int, part: str) -> str:
    """A parameter, a result, the node or the per-call tensor of intervention ``index``."""
    return own(f"{index}.{part}")
