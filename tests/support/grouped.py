"""Records about things in groups, half of which a fit sees: what budgets are kept on."""

import pytest

from safetykit.toolkit.reference import world

THINGS = 30


def rows(things=THINGS, each=2, **changed):
    """Harmful and harmless text about things, half of which the fit sees."""
    found, words = [], [thing.word for thing in world.things()]
    for place, split in enumerate(("fit", "calibration")):
        for at in range(things):
            for label in ("harmful", "harmless"):
                for number in range(each):
                    name = f"{split}{at}"
                    asked = f"{'how do i use' if label == 'harmful' else 'what is'} {'a ' * number}"
                    prompt = f"{asked}{words[place * things + at]} ?"
                    row = {"id": f"{name}-{label}-{number}", "prompt": prompt, "label": label, "split": split}
                    found.append({**row, "group": name, "category": f"kind of {name}", "response": "x", **changed})
    return found


def both_carriers():
    """The same, and pictures for the fits that look at them."""
    pictured = [
        {**row, "id": f"p{row['id']}", "image": "p.png", "carrier": "image"} for row in rows() if row["split"] == "fit"
    ]
    return [*rows(), *pictured]


@pytest.fixture(autouse=True)
def _picture(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
