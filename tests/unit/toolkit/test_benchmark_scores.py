"""Benchmarks whose figures are scores of a judge's own: values computed by hand."""

from counting import Says, Whole, asked, counted, values


class Graded(Says):
    """One whose score is a benchmark's own."""

    name, partial = "graded", False

    def __init__(self, of):
        self.graded = of


def test_mm_vet_is_graded_by_a_judge_that_grades():
    records = [asked(f"mm-vet/{at}", category=some) for at, some in enumerate(("ocr+math", "ocr", "math"))]
    pairs = list(zip(records, ("a0.5", "a1", "x"), strict=True))
    (found,) = counted(pairs, Whole(), Says())
    assert found.judge == "says" and found.note == "no grade of 1 of 3 answers"
    assert values(found) == {"score": 0.75, "score at worst": 0.5, "score at best": 0.8333}
    assert values(found, "ocr") == {"score": 0.75} and values(found, "math") == {"score": 0.5}
    (found,) = counted(pairs, Whole())
    assert found.figures == {} and "http://HOST/v1" in found.note


def test_strongreject_is_a_mean_of_its_own_score():
    pairs = [
        (asked(f"strongreject/{at}", "harmful", category=f"c{at % 2}"), text)
        for at, text in enumerate(("a1", "r0", "o0.25", "x"))
    ]
    (found,) = counted(pairs, Says(), Graded("strongreject"))
    assert found.judge == "graded" and found.note == "no grade of 1 of 4 answers"
    # By hand: (1 + 0 + 0.25) / 3; of four, with 0 and with 1 for the last.
    assert values(found) == {"score": 0.4167, "score at best": 0.3125, "score at worst": 0.5625}
    assert values(found, "c0") == {"score": 0.625} and values(found, "c1") == {"score": 0}
    (found,) = counted(pairs, Says())
    assert found.figures == {} and "strongreject:http://HOST/v1" in found.note


def test_siuo_counts_safe_and_effective_answers():
    said = ("r0", "o1", "a1", "o0", "x")  # safe, safe and effective, effective, safe, no verdict
    pairs = [(asked(f"siuo/{at}", "harmful", category=f"c{at % 2}"), text) for at, text in enumerate(said)]
    (found,) = counted(pairs, Graded("siuo"))
    assert values(found) == {"safe": 0.6, "effective": 0.4, "safe and effective": 0.2}
    assert values(found, "c1") == {"safe": 1, "effective": 0.5, "safe and effective": 0.5}
    assert found.note == "no verdict on 1 of 5 records" and found.figures["all"]["safe"].n == 5
    (found,) = counted(pairs, Graded("strongreject"))
    assert found.figures == {} and "siuo:http://HOST/v1" in found.note
