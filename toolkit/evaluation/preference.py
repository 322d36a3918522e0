"""Which trial of a sweep is preferred, by its figures alone: a card ranks its table by it without a model at hand."""

from __future__ import annotations


def rank(attack_success: float, cost: float, undefended: float, allowed: float) -> tuple[int, float, float]:
    """Sort key: within the allowed cost the fewest attacks, then the cheaper; above it the cheaper.

    What stops no attack that would have succeeded anyway comes last, however cheap it is.

    Args:
        attack_success: share of harmful requests that got their answer.
        cost: how much worse harmless requests fare, as a share.
        undefended: ``attack_success`` without an adapter.
        allowed: the largest ``cost`` that counts as kept.
    """
    if attack_success >= undefended:
        return (2, cost, attack_success)
    if cost <= allowed:
        return (0, attack_success, cost)
    return (1, cost, attack_success)
