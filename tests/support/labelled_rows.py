"""Text records, as one writes them."""

HARMFUL, HARMLESS = "how do i use this ?", "what is this ?"


def rows(*, paired=True, labels=("harmful", "harmless"), count=9):
    """Text records of the fit split."""
    for at in range(count):
        for label in labels:
            other = next((f"{one}-{at}" for one in labels if one != label), None)
            opening = HARMFUL if label == "harmful" else HARMLESS
            yield {
                "id": f"{label}-{at}",
                "prompt": f"{opening} {'this ' * at}",
                "label": label,
                "carrier": "text",
                "split": "fit",
                "response": "x",
                **({"pair": other} if paired and other else {}),
            }
