"""How near pictures lie to their captions, before and after: the adapter's attachment ``alignment``.

Per aligned layer, as text keys, cosines of mean-pooled states averaged over the captioned pictures::

    {"4": {"before": {"caption": 0.33, "unrelated": 0.31, "centred_caption": 0.25, "centred_unrelated": -0.01},
           "after": {…}}, …}

``unrelated`` pairs each picture with the captions of all pictures with another text. ``centred`` subtracts the means of
pictures and of captions first: what remains is what tells one caption from another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def nearness(
    pictures: Float[Tensor, "pictures d_model"], texts: Float[Tensor, "pictures d_model"], words: Sequence[str]
) -> dict[str, float]:
    """The four cosines of one layer.

    Args:
        texts: caption states in the order of ``pictures``.
        words: the captions, to tell which are the same.
    """
    number = {text: at for at, text in enumerate(dict.fromkeys(words))}
    mine = torch.tensor([number[text] for text in words])
    first = torch.tensor([words.index(text) for text in number])
    other = mine[:, None] != torch.arange(len(number))[None]
    found = {}
    for prefix, ours, theirs in (
        ("", pictures, texts),
        ("centred_", pictures - pictures.mean(0), texts - texts.mean(0)),
    ):
        near = F.normalize(ours, dim=-1) @ F.normalize(theirs[first], dim=-1).T
        found[f"{prefix}caption"] = near[~other].mean().item()
        found[f"{prefix}unrelated"] = near[other].mean().item() if other.any() else 0.0
    return found
