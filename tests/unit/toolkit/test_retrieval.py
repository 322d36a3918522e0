"""The query that finds a picture's caption, and the prefix that its texts become."""

import numpy as np
import pytest
import torch
from PIL import Image
from planted_captions import PlantedEmbedder, planted_index

from safetykit.adapters import UsageError, WrongBase
from safetykit.adapters.retrieval.fit import QueryHead, accuracy
from safetykit.adapters.retrieval.retrieval import picture_query
from safetykit.toolkit.data.captions import CaptionedPicture
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.retriever import retriever_of
from safetykit.toolkit.retrieval.fit import (
    fit_retrieval,
    image_states,
    picture_query_of,
    picture_states,
    text_values,
)

COLOURS = ["red", "green", "blue", "white", "black", "orange", "gold", "pink", "brown", "cyan"]
CAPTIONS = [f"a picture of a {colour} thing." for colour in COLOURS]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three noisy tiles of each colour, captioned with it."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for number, (colour, caption) in enumerate(zip(COLOURS, CAPTIONS, strict=True)):
        for take in range(3):
            pixels = np.asarray(Image.new("RGB", (48, 48), colour)).astype(int)
            pixels = pixels + np.random.default_rng(100 * number + take).integers(-12, 12, pixels.shape)
            name = f"{colour}{take}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            item = CaptionedPicture(id=name, caption=caption, image=name)
            item._folder = folder
            found.append(item)
    return found


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return planted_index(tmp_path_factory.mktemp("index") / "index", [*CAPTIONS, "something else."])


def request(item, prompt="what is this ?"):
    return Request(prompt, item.picture())


def test_a_planted_query_is_recovered():
    random = np.random.default_rng(0)
    weight, bias = random.standard_normal((6, 10)), random.standard_normal(6)
    states = 3 + random.standard_normal((200, 10))
    keys = states @ weight.T + bias + 0.01 * random.standard_normal((200, 6))
    head = QueryHead.fit(states, keys)
    assert np.allclose(head.weight, weight, atol=0.01) and np.allclose(head.bias, bias, atol=0.05)


def test_the_penalty_grows_with_the_noise():
    random = np.random.default_rng(0)
    states, weight = random.standard_normal((60, 40)), random.standard_normal((5, 40))
    clean = QueryHead.fit(states, states @ weight.T)
    noisy = QueryHead.fit(states, states @ weight.T + 20 * random.standard_normal((60, 5)))
    assert noisy.alpha > 10 * clean.alpha
    assert noisy.weight.norm() < np.linalg.norm(weight)


def test_pictures_find_their_captions(random_vlm, pictures, index):
    adapter = fit_retrieval(random_vlm, index, pictures, k=2)
    with random_vlm.applied(adapter) as hooks:
        random_vlm.prefill([request(item) for item in pictures])
        ids = next(value for name, value in hooks.extras.items() if name.endswith("retrieved_ids"))
    wanted = [CAPTIONS.index(item.caption) for item in pictures]
    assert ids.shape == (len(pictures), 2)
    assert (ids[:, 0].numpy() == wanted).mean() > 0.9


def test_the_applied_op_finds_what_numpy_and_faiss_find(random_vlm, pictures, index):
    adapter = fit_retrieval(random_vlm, index, pictures, k=4)
    queries = np.concatenate([picture_query_of(random_vlm, adapter, item.picture()) for item in pictures])
    with random_vlm.applied(adapter) as hooks:
        random_vlm.prefill([request(item) for item in pictures])
        extras = {name.rpartition(".")[2]: value.numpy() for name, value in hooks.extras.items()}
    for search in (index.search, index.faiss().search):
        ids, scores = search(queries, 4)
        assert np.array_equal(extras["retrieved_ids"], ids)
        assert np.allclose(extras["retrieved_scores"], scores, atol=1e-5)


def test_accuracy_is_counted_on_pictures_left_out(random_vlm, pictures, index):
    states = picture_states(random_vlm, pictures)
    keys = np.stack([index.keys[CAPTIONS.index(item.caption)] for item in pictures])
    found = accuracy(index, [item.caption for item in pictures], states, keys, 1e-3)
    assert found["among"] == 11 and found["unseen_picture"]["n"] == 30
    assert found["unseen_picture"]["top1"] > 20
    # the keys are drawn at random: nothing about a caption never seen can be known
    assert found["unseen_caption"]["top1"] < 10
    shuffled = keys[np.random.default_rng(0).permutation(len(keys))]
    assert accuracy(index, [item.caption for item in pictures], states, shuffled, 1e-3)["unseen_picture"]["top1"] < 15


def test_image_states_are_those_of_single_pictures(random_vlm, pictures):
    together = image_states(random_vlm, [item.picture() for item in pictures[:3]])
    alone = image_states(random_vlm, [pictures[2].picture()])[0]
    assert together[2].shape == (16, 128) and torch.allclose(together[2], alone, atol=1e-5)


def test_values_are_mean_token_embeddings(random_vlm):
    texts = ["a bow", "a picture of a grey sword."]
    ids = random_vlm.inputs.tokenizer(texts[1])["input_ids"]
    wanted = random_vlm.parts.embed_tokens.weight[ids].mean(0)
    assert torch.allclose(text_values(random_vlm, texts)[1], wanted, atol=1e-6)


def test_a_correction_changes_the_answer_and_retrieval_alone_does_not(random_vlm, pictures, index):
    requests = [request(pictures[0]), Request("tell me")]
    plain, inputs = random_vlm.prefill(requests)
    real = torch.from_numpy(inputs.attention_mask).bool()
    with random_vlm.applied(fit_retrieval(random_vlm, index, pictures)):
        same, _ = random_vlm.prefill(requests)
    with random_vlm.applied(fit_retrieval(random_vlm, index, pictures, correction=0.5)):
        moved, _ = random_vlm.prefill(requests)
    assert torch.allclose(plain[real], same[real], atol=1e-5)
    assert (plain[0] - moved[0])[real[0]].abs().max() > 1e-3
    assert torch.allclose(plain[1][real[1]], moved[1][real[1]], atol=1e-5)  # a text alone has no picture


def test_a_prefix_is_what_writing_the_texts_into_the_prompt_gives(random_vlm, pictures, index):
    adapter = fit_retrieval(random_vlm, index, pictures, k=2, prefix=True)
    item = pictures[4]
    ids, _ = index.search(picture_query_of(random_vlm, adapter, item.picture()), 2)
    texts = " ".join(index[at] for at in ids[0])
    written = Request(f"Retrieved Text: {texts}\nwhat is this ?", item.picture())
    plain, _ = random_vlm.prefill([written])
    with random_vlm.applied(adapter):
        found, inputs = random_vlm.prefill([request(item)])
        answer = random_vlm.generate([request(item), Request("tell me")], 4)
    assert texts in random_vlm.inputs.tokenizer.decode(inputs.input_ids[0])
    assert torch.allclose(found, plain, atol=1e-5)
    assert [one.token_ids for one in answer] == [
        one.token_ids for one in random_vlm.generate([written, Request("tell me")], 4)
    ]


def test_texts_that_a_request_brings_along_are_not_retrieved_again(random_vlm, pictures, index):
    adapter = fit_retrieval(random_vlm, index, pictures, k=1, prefix=True)
    given = Request("what is this ?", pictures[0].picture(), retrieved=("my own text.",))
    none = Request("what is this ?", pictures[0].picture(), retrieved=())
    with random_vlm.applied(adapter):
        assert "my own text" in random_vlm.inputs.render(given)
        assert np.array_equal(random_vlm.prepare([given]).input_ids, random_vlm.inputs.prepare([given]).input_ids)
        assert np.array_equal(random_vlm.prepare([none]).input_ids, random_vlm.inputs.prepare([none]).input_ids)


def test_an_external_index_gives_the_same_prefix(random_vlm, pictures, index):
    inside = fit_retrieval(random_vlm, index, pictures, k=2, prefix=True)
    outside = fit_retrieval(random_vlm, index, pictures, k=2, prefix=True, external=True)
    assert "keys" not in outside.interventions[0].tensors and "captions" not in outside.attachments
    with random_vlm.applied(inside):
        wanted = random_vlm.prepare([request(item) for item in pictures]).input_ids
    with pytest.raises(UsageError, match="needs its index of 11 texts.*--external-index"), random_vlm.applied(outside):
        pass
    random_vlm.index = index
    try:
        with random_vlm.applied(outside):
            assert np.array_equal(random_vlm.prepare([request(item) for item in pictures]).input_ids, wanted)
    finally:
        random_vlm.index = None


def test_another_index_is_refused(tmp_path, random_vlm, pictures, index):
    outside = fit_retrieval(random_vlm, index, pictures, external=True)
    other = planted_index(tmp_path / "other", CAPTIONS)
    with pytest.raises(UsageError, match="is not the one the query was fitted on"):
        retriever_of([outside], other)
    assert retriever_of([outside]).info.external


def test_captions_outside_the_index_need_its_embedder(tmp_path, random_vlm, pictures):
    small = planted_index(tmp_path / "small", CAPTIONS[:6])
    with pytest.raises(UsageError, match="4 of 10 captions are not in the index.*--encoder"):
        fit_retrieval(random_vlm, small, pictures)
    adapter = fit_retrieval(random_vlm, small, pictures, embedder=PlantedEmbedder())
    assert adapter.attachments["retrieval_accuracy"]["unseen_picture"]["n"] == 18


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 12}, "12 texts cannot be retrieved from 11"),
        ({"correction": 0.0}, "correction cannot be 0.0"),
        ({"correction": 0.5, "external": True}, "correction does nothing with external on"),
        ({"in_graph_limit": 10}, "holds 11 texts; a graph takes 10. Pass --external-index"),
    ],
)
def test_options_that_cannot_be_are_refused(random_vlm, pictures, index, options, message):
    with pytest.raises(UsageError, match=message):
        fit_retrieval(random_vlm, index, pictures, **options)


def test_one_caption_teaches_no_query(random_vlm, pictures, index):
    with pytest.raises(UsageError, match="fewer than two captions"):
        fit_retrieval(random_vlm, index, pictures[:3])


def test_a_query_of_another_model_is_refused(random_vlm, pictures, index, tmp_path):
    adapter = fit_retrieval(random_vlm, index, pictures)
    other = type(adapter)(
        adapter.info.model_copy(update={"base": adapter.info.base.model_copy(update={"fingerprint": "1" * 64})}),
        adapter.interventions,
        adapter.attachments,
    )
    with pytest.raises(WrongBase):
        picture_query_of(random_vlm, other, pictures[0].picture())


def test_fitting_twice_gives_the_same_bytes(random_vlm, pictures, index, tmp_path):
    for name in ("a", "b"):
        fit_retrieval(random_vlm, index, pictures, correction=0.3).save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_op_in_the_graph_order_reads_the_state_before_itself(random_vlm, pictures, index):
    """A correction does not feed on its own result: the query is that of the picture as it came."""
    adapter = fit_retrieval(random_vlm, index, pictures, correction=1.0)
    tensors = adapter.interventions[0].tensors
    (states,) = image_states(random_vlm, [pictures[0].picture()])
    query = picture_query(states[None], torch.ones(1, 16, 1), tensors["query_weight"], tensors["query_bias"])
    with random_vlm.applied(adapter) as hooks:
        random_vlm.prefill([request(pictures[0])])
        ids = next(value for name, value in hooks.extras.items() if name.endswith("retrieved_ids"))
    assert np.array_equal(ids.numpy(), index.search(query.numpy(), 3)[0])
