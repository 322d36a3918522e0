"""SASA's layers: where harm in text is perceived, and where the meaning of pictures has arrived.

The paper names its layers (13 and 15 of a 7B model) and not how to find them; this is our reading [ours]:

- *readability* of pictures in a layer: accuracy, out of fold, of a linear probe (ridge classifier) that reads the
  category of what is shown off the state at the last prompt position, or off the mean state of the text behind the
  picture. Only text positions are read: the picture's meaning has been fused into the language when it stands there. A
  picture never lies in two folds.
- *safety layer*: the first layer whose probe AUROC for harm in text is within 2 % (relative) of its maximum.
- *fused layer*: the first layer deeper than the safety layer whose readability at the last position is within 2 %
  (relative) of the maximum over those deeper layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .intervals import estimate_mean
from .separation import FOLDS
from .states import LayerStates
from .terms import Curve

NEAR = 0.02


def readability(states: LayerStates, seed: int) -> list[Curve]:
    """Accuracy per layer at both places, or nothing if the records do not tell enough categories.

    Categories with fewer records than folds are left out, and so are records without one.
    """
    counts = Counter(record.category for record in states.records if record.pictured and record.category)
    known = {category for category, count in counts.items() if count >= FOLDS}
    pictures = states.where(lambda record: record.pictured and record.category in known)
    images = [" ".join(record.image_names) for record in pictures.records]
    if len(known) < 2 or len(set(images)) < FOLDS:
        return []
    categories = np.array([record.category for record in pictures.records])
    places = {"last position": pictures.last, "text behind the picture": pictures.after_picture}
    return [_curve(name, x, categories, images, seed) for name, x in places.items()]


def chance(states: LayerStates) -> float:
    """Accuracy of always naming the most frequent category of the picture records; 0 without categories."""
    counts = Counter(record.category for record in states.records if record.pictured and record.category)
    kept = [count for count in counts.values() if count >= FOLDS]
    return max(kept) / sum(kept) if kept else 0.0


def _curve(
    place: str,
    states: Float[np.ndarray, "records layers_and_input d_model"],
    categories: np.ndarray,
    images: list[str],
    seed: int,
) -> Curve:
    estimates = []
    parts = list(GroupKFold(FOLDS, shuffle=True, random_state=seed).split(categories, groups=images))
    for layer in range(1, states.shape[1]):
        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=states.shape[2]))
        read = cross_val_predict(probe, states[:, layer], categories, cv=parts)
        estimates.append(estimate_mean(read == categories, seed))
    return Curve.of("readability", place, estimates)


def first_near_maximum(values: Sequence[float], start: int = 0) -> int | None:
    """The first layer from ``start`` within 2 % (relative) of the maximum from there on; None past the last layer."""
    rest = list(values)[start:]
    if not rest:
        return None
    return start + next(at for at, value in enumerate(rest) if value >= (1 - NEAR) * max(rest))
