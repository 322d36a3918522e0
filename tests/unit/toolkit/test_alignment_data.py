"""Batches, retrieved texts and the closed form: planted truths."""

from __future__ import annotations

import pytest
import torch

from safetykit.adapters.errors import UsageError
from safetykit.toolkit.alignment.batches import Batches, Draw, caption_mask
from safetykit.toolkit.alignment.closed_form import AffineCorrection, ridge
from safetykit.toolkit.alignment.forward import PictureFeatures, caption_states, run
from safetykit.toolkit.alignment.neighbours import NearestPictures
from safetykit.toolkit.data.captions import CaptionedPicture, captions_path, load_captions
from safetykit.toolkit.model.requests import RETRIEVED


@pytest.fixture(scope="module")
def captions():
    return load_captions(captions_path("reference"))[::60]


def made(vlm, captions, **changes):
    options = {"size": 6, "seed": 0, "shuffled": 0.5, "prefixed": 0.5} | changes
    return Batches(vlm.inputs, captions, [f"a picture of a {at} thing." for at in range(len(captions))], **options)


def test_answers_and_requests_are_where_the_masks_say(random_vlm, captions):
    decode = random_vlm.inputs.tokenizer.decode
    rows = [
        Draw(0, "what is this?", "this is a dagger."),
        Draw(3, "how do i use the thing shown here?"),
        Draw(5, "is this risky?", "yes, it is risky.", retrieved="a picture of a red apple."),
    ]
    batch = made(random_vlm, captions).encode(rows)
    for row, drawn in enumerate(rows):
        answer = batch.pictured.input_ids[row][batch.answer[row].numpy()]
        assert decode(answer).replace(" </s>", "</s>") == (f"{drawn.answer}</s>" if drawn.answer else "")
        mask = batch.request[row].numpy()
        width = mask.shape[0]
        ours, theirs = (side.input_ids[row][-width:][mask] for side in (batch.pictured, batch.twin))
        assert (ours == theirs).all()
        prefix = f"{RETRIEVED}{drawn.retrieved}\n" if drawn.retrieved else ""
        wanted = random_vlm.inputs.tokenizer(f"{prefix}{drawn.instruction} assistant:")["input_ids"]
        assert ours.tolist() == wanted
        assert captions[drawn.item].caption in decode(batch.twin.input_ids[row])


def test_rows_drawn_from_other_pictures_have_no_answer(random_vlm, captions):
    batches = made(random_vlm, captions, shuffled=1.0, prefixed=0.0)
    assert not any(row.answer or row.retrieved for step in range(5) for row in batches.draw(step))
    assert all(row.answer for step in range(5) for row in made(random_vlm, captions, shuffled=0.0).draw(step))


def test_a_draw_depends_on_seed_and_step_alone(random_vlm, captions):
    one, other = made(random_vlm, captions), made(random_vlm, captions)
    other.draw(7)
    assert one.draw(3) == other.draw(3)
    assert one.draw(3) != one.draw(4)
    assert one.draw(3) != made(random_vlm, captions, seed=1).draw(3)


def test_captions_without_turns_are_refused(random_vlm, captions):
    with pytest.raises(UsageError, match="No captioned picture has a turn"):
        made(random_vlm, [item.model_copy(update={"turns": ()}) for item in captions])


def test_the_caption_mask_holds_the_captions_words_and_no_markup(random_vlm):
    texts = ["a picture of a red apple.", "user user", "dagger"]
    inputs, mask = caption_mask(random_vlm.inputs, texts)
    kept = [ids[row] for ids, row in zip(inputs.input_ids, mask.numpy(), strict=True)]
    assert [random_vlm.inputs.tokenizer.decode(ids) for ids in kept] == texts
    with pytest.raises(UsageError, match="has no token of its own"):
        caption_mask(random_vlm.inputs, [" "])


def test_caption_states_do_not_depend_on_what_stands_beside(random_vlm):
    texts = ["a picture of a red apple.", "a dagger."]
    together = caption_states(random_vlm, texts, (2, 6))
    for at, text in enumerate(texts):
        alone = caption_states(random_vlm, [text], (2, 6))
        for layer in (2, 6):
            assert torch.allclose(together[layer][at], alone[layer][0], atol=1e-5)


def test_cached_features_give_the_states_that_the_model_gives(random_vlm, captions):
    features = PictureFeatures(random_vlm, captions)
    batch = made(random_vlm, captions).encode([Draw(2, "what is this?", "this is a dagger.")])
    with torch.no_grad():
        mine = run(random_vlm, batch.pictured, (0, 7), features.given([2], batch.pictured), tail=3)
        arguments = random_vlm.arguments(batch.pictured, cached_features=False)
        whole = random_vlm.model(**arguments, output_hidden_states=True)
    assert torch.allclose(mine.states[0], whole.hidden_states[1], atol=1e-5)
    assert torch.allclose(mine.logits, whole.logits[:, -3:], atol=1e-5)


def test_features_on_disk_are_read_back(random_vlm, captions, tmp_path):
    path = tmp_path / "work" / "features.safetensors"
    first = PictureFeatures(random_vlm, captions, path)
    again = PictureFeatures(random_vlm, captions, path)
    assert path.is_file() and torch.equal(first.table, again.table)


def test_the_nearest_other_caption_is_found_and_never_the_own():
    shapes = {"dog": (1.0, 0.0, 0.1), "wolf": (0.9, 0.1, 0.1), "apple": (-1.0, 0.2, 0.0), "pear": (-0.9, 0.4, 0.0)}
    words = [name for name in shapes for _ in range(2)]  # two pictures of each
    items = [CaptionedPicture(id=str(at), caption=name) for at, name in enumerate(words)]
    means = torch.tensor([shapes[name] for name in words])
    found = NearestPictures().texts(items, means)
    assert found == ["wolf", "wolf", "dog", "dog", "pear", "pear", "apple", "apple"]
    with pytest.raises(UsageError, match="All captions are the same"):
        NearestPictures().texts(items[:2], means[:2])


def planted(n=400, d=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64), generator


def test_ridge_recovers_a_planted_map_and_shrinks_with_the_penalty():
    x, generator = planted()
    weight = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    y = x @ weight + 1e-3 * torch.randn(400, 5, generator=generator, dtype=torch.float64)
    found = ridge(x, y)
    assert torch.allclose(found.weight, weight, atol=1e-3)
    norms = [ridge(x, y, penalty).weight.norm() for penalty in (0.0, 1e2, 1e4, 1e12)]
    assert norms == sorted(norms, reverse=True) and norms[-1] < 1e-6


def test_cross_validation_prefers_a_large_penalty_for_noise():
    x, generator = planted(n=30)
    noise = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    assert ridge(x, noise).penalty > 100 * ridge(x, x[:, :5]).penalty


def test_generalised_cross_validation_is_its_definition():
    x, generator = planted(n=25)
    y = torch.randn(25, 3, generator=generator, dtype=torch.float64)
    hat = x @ torch.linalg.solve(x.T @ x + 7 * torch.eye(12, dtype=torch.float64), x.T)
    wanted = 25 * (y - hat @ y).square().sum() / (25 - hat.trace()) ** 2
    assert ridge(x, y, 7.0).error * y.square().sum().item() / 25 == pytest.approx(wanted.item())


def test_the_closed_form_finds_a_planted_rotation():
    p, generator = planted()
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
    response = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    p = p + 3.0
    states = p @ response.T + 5.0
    captions = 0.25 * (p @ rotation.T @ response.T) - 2.0  # another mean and another spread
    found = AffineCorrection.fit(p, states, captions, damping=1e-6)
    error = (torch.eye(12) + found.map - rotation).norm() / rotation.norm()
    assert error < 0.03
    moved = p + (p - found.mean) @ found.map.T
    near = torch.nn.functional.cosine_similarity(
        (moved - moved.mean(0)) @ response.T, captions - captions.mean(0), dim=-1
    )
    assert near.min() > 0.99


def test_an_infinite_penalty_leaves_the_base_as_it_is():
    p, generator = planted()
    other = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    found = AffineCorrection.fit(p, p, other, penalty=1e30)
    weight, bias = torch.randn(12, 7), torch.randn(12)
    new_weight, new_bias = found.folded(weight, bias)
    assert torch.allclose(new_weight.float(), weight) and torch.allclose(new_bias.float(), bias)


def test_folding_is_the_map_after_the_layer():
    p, generator = planted()
    found = AffineCorrection.fit(p, p, torch.randn(400, 12, generator=generator, dtype=torch.float64), penalty=10.0)
    assert found.map.norm() > 1e-3
    weight, x = torch.randn(12, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    for bias in (None, torch.randn(12, dtype=torch.float64)):
        out = torch.nn.functional.linear(x, weight, bias)
        new_weight, new_bias = found.folded(weight, bias)
        wanted = out + (out - found.mean) @ found.map.T
        assert torch.allclose(torch.nn.functional.linear(x, new_weight, new_bias), wanted)
