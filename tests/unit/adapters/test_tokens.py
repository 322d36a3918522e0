"""The tokens that are pooled are those that tell harmful records from harmless ones."""

import pytest
import torch
from planted_tokens import TELLING, VISUAL, PlantedTokens, token_records

from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.statistics.tokens import KernelWitness, pick, pool_best, sample


@pytest.mark.parametrize("modality", ["visual", "textual"])
def test_the_witness_ranks_the_telling_tokens_first(modality):
    model, site = PlantedTokens(), Site("mlp", 1)
    batches = list(model.token_states(token_records(60), [site]))

    def reference(label):
        generator, states = torch.Generator().manual_seed(0), []
        for batch in batches:
            rows = torch.tensor([record.label == label for record in batch.records])
            states.append(pick(batch.states[site], batch.mask(modality) & rows[:, None], 4, generator))
        return torch.cat(states)

    witness = KernelWitness.between(reference("harmful"), reference("harmless"))
    first = VISUAL if modality == "textual" else 0
    telling = torch.tensor([first + at for at in TELLING[modality]])
    hits, total = 0, 0
    for batch in batches:
        scores = witness.scores(batch.states[site]).masked_fill(~batch.mask(modality), -1)
        for row, record in enumerate(batch.records):
            if record.label == "harmful" and batch.mask(modality)[row].any():
                best = scores[row].topk(len(telling)).indices
                hits, total = hits + int(torch.isin(best, telling).sum()), total + len(telling)
    assert hits / total > 0.85, "by chance it would be an eighth or a fifth"


def test_reference_tokens_are_masked_ones_and_at_most_so_many_a_row():
    states = torch.arange(12.0).reshape(2, 6, 1)
    mask = torch.tensor([[False, False, True, True, True, True], [False, False, False, False, False, True]])
    picked = pick(states, mask, 3, torch.Generator().manual_seed(0)).squeeze(1).tolist()
    assert len(picked) == 4 and 11.0 in picked and set(picked) <= {2.0, 3.0, 4.0, 5.0, 11.0}
    assert pick(states[:0], mask[:0], 3, torch.Generator()).shape == (0, 1)


def test_the_witness_is_the_difference_of_mean_kernels():
    generator = torch.Generator().manual_seed(0)
    harmful, harmless, states = (torch.randn(n, 6, generator=generator) for n in (5, 7, 4))
    witness = KernelWitness.between(harmful, harmless)
    median = torch.pdist(torch.cat([harmful, harmless])).median()
    assert witness.variance == pytest.approx(float(median) ** 2)

    def mean_kernel(state, references):
        return (-(references - state).square().sum(1) / (2 * witness.variance)).exp().mean()

    expected = torch.stack([mean_kernel(s, harmful) - mean_kernel(s, harmless) for s in states])
    assert torch.allclose(witness.scores(states).float(), expected, atol=1e-5)
    assert torch.allclose(KernelWitness.between(harmless, harmful).scores(states).float(), -expected, atol=1e-5)


def test_tokens_far_from_every_reference_are_still_ranked():
    """In float32 all their kernels would be 0."""
    witness = KernelWitness(torch.zeros(3, 4), torch.full((3, 4), 1.0), 1.0)
    far = torch.tensor([[[12.0] * 4, [10.0] * 4, [11.0] * 4]])
    scores = -witness.scores(far)[0]
    assert scores[1] > scores[2] > scores[0] > 0


@pytest.mark.parametrize(("share", "count"), [(1 / 8, 1), (0.2, 2), (0.5, 4), (1.0, 8)])
def test_the_share_is_rounded_up_and_padding_never_counts(share, count):
    states = torch.arange(10.0)[None, :, None].expand(1, 10, 3)
    mask = torch.arange(10)[None] >= 2
    scores = torch.tensor([[99.0, 98.0, -1.0, 8.0, -0.5, 7.0, 6.0, 3.0, 5.0, 4.0]])
    best = [3, 5, 6, 8, 9, 7, 4, 2][:count]
    expected = torch.tensor(best).float().mean().expand(1, 3)
    assert torch.allclose(pool_best(states, mask, scores, share), expected)
    assert torch.allclose(pool_best(states, mask), torch.full((1, 3), 5.5))


def test_a_row_without_tokens_of_the_modality_gives_zeros():
    assert torch.equal(pool_best(torch.ones(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)), torch.zeros(2, 4))


def test_the_sample_does_not_depend_on_the_order_of_records():
    records = token_records(50)
    assert sample(records, 20) == sample(records[::-1], 20)
    assert len(sample(records, 20)) == 20
    assert set(sample(records, 10**6)) == set(records)
