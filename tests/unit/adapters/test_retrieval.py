"""Retrieval ops: the k nearest keys, ties to the lower row, and a correction that keeps differences."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from safetykit.adapters import Adapter, InvalidArtifact, Site, UsageError, get_op
from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.manifest import AdapterInfo, BaseInfo, DataInfo
from safetykit.adapters.retrieval.retrieval import picture_query, retrieval_of, top_keys
from safetykit.adapters.retrieval.settings import Retrieval

D_MODEL, D_KEY, COUNT, TOKENS = 12, 6, 40, 5


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(seed=1):
    return drawn(D_KEY, D_MODEL, seed=seed), drawn(D_KEY, seed=seed + 1)


def info():
    return AdapterInfo(
        method="test",
        variant="test",
        sign_convention="",
        hyperparameters={},
        seed=None,
        base=BaseInfo(fingerprint="0" * 64, architecture="A", n_layers=1, d_model=D_MODEL),
        data=DataInfo(sha256="0" * 64, counts={}),
        versions={},
    )


def stated(count=2, *, external=False, texts=("a", "b")):
    settings = {"k": 1, "prefix": True, "external": external, "count": count, "index": "0" * 64}
    return Adapter(info(), attachments={"retrieval": settings, "captions": list(texts)})


def test_the_best_keys_are_those_of_a_full_sort():
    query, keys = normalize(drawn(7, D_KEY)), normalize(drawn(COUNT, D_KEY, seed=3))
    ids, scores = top_keys(query, keys, 4)
    exact = query.double() @ keys.double().T
    assert torch.equal(ids, exact.argsort(1, descending=True)[:, :4])
    assert torch.allclose(scores.double(), exact.gather(1, ids), atol=1e-6)


def test_equal_scores_go_to_the_lower_row():
    keys = normalize(drawn(COUNT, D_KEY))
    keys[[3, 17, 31, 39]] = keys[8].clone()
    ids, _ = top_keys(keys[8:9], keys, 5)
    assert ids[0].tolist()[:5] == [3, 8, 17, 31, 39]


def test_a_query_has_length_one_and_ignores_the_states_size_of_half_precision():
    weight, bias = head()
    hidden = 900 * drawn(2, TOKENS, D_MODEL)
    query = picture_query(hidden.half(), torch.ones(2, TOKENS, 1), weight, bias)
    assert query.dtype == torch.float32
    assert torch.allclose(query.norm(dim=1), torch.ones(2))
    assert torch.allclose(query, picture_query(hidden, torch.ones(2, TOKENS, 1), weight, bias), atol=1e-3)


def test_a_query_reads_the_tokens_in_its_scope_only():
    weight, bias = head()
    hidden, scope = drawn(1, TOKENS, D_MODEL), torch.ones(1, TOKENS, 1)
    scope[:, 3:] = 0
    changed = hidden.clone()
    changed[:, 3:] += 100
    assert torch.equal(picture_query(hidden, scope, weight, bias), picture_query(changed, scope, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_retrieval_leaves_the_hidden_state_alone(dtype):
    hidden, keys = drawn(3, TOKENS, D_MODEL).to(dtype), normalize(drawn(COUNT, D_KEY)).to(dtype)
    weight, bias = head()
    scope, tensors = torch.ones(3, TOKENS, 1), {"query_weight": weight, "query_bias": bias}
    ids, scores = get_op("RetrieveTopK")(hidden, scope, **tensors, keys=keys, ranks=torch.arange(2))
    assert ids.shape == scores.shape == (3, 2) and ids.dtype == torch.int64 and scores.dtype == torch.float32
    (query,) = get_op("RetrievalQuery")(hidden, scope, **tensors)
    assert torch.equal(top_keys(query, keys, 2)[0], ids)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_a_correction_moves_the_mean_towards_the_retrieved_texts_and_keeps_differences(strength):
    op = get_op("RetrievalCorrection")
    hidden, scope = drawn(2, TOKENS, D_MODEL), torch.ones(2, TOKENS, 1)
    keys, values = normalize(drawn(COUNT, D_KEY)), drawn(COUNT, D_MODEL, seed=9)
    given = (*head(), keys, torch.arange(3), values, torch.tensor(strength))
    tensors = dict(zip(op.params, given, strict=True))
    after, ids, _ = op(hidden, scope, **tensors)
    target = torch.stack([values[row].mean(0) for row in ids])
    assert torch.allclose(after.mean(1), (1 - strength) * hidden.mean(1) + strength * target, atol=1e-5)
    assert torch.allclose(after - after.mean(1, keepdim=True), hidden - hidden.mean(1, keepdim=True), atol=1e-5)
    assert op.invariant(hidden, after, scope, **tensors) < 1e-6
    broken = after.clone()
    broken[0, 0] += 1
    assert op.invariant(hidden, broken, scope, **tensors) > 0.1


def test_a_correction_outside_its_scope_changes_nothing():
    keys, values = normalize(drawn(COUNT, D_KEY)), drawn(COUNT, D_MODEL)
    hidden, scope = drawn(1, TOKENS, D_MODEL), torch.ones(1, TOKENS, 1)
    scope[:, 2:] = 0
    op, given = get_op("RetrievalCorrection"), (*head(), keys, torch.arange(1), values, torch.tensor(1.0))
    after, *_ = op(hidden, scope, **dict(zip(op.params, given, strict=True)))
    assert torch.equal(after[:, 2:], hidden[:, 2:]) and not torch.allclose(after[:, :2], hidden[:, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_adapter_with_an_index_survives_the_disk(tmp_path, dtype):
    weight, bias = head()
    tensors = {
        "query_weight": weight,
        "query_bias": bias,
        "keys": normalize(drawn(COUNT, D_KEY)).to(dtype),
        "ranks": torch.arange(3),
    }
    item = Intervention("RetrieveTopK", Site("projector"), "all", "prefill", tensors)
    texts = [f"text {at}" for at in range(COUNT)]
    settings = {"k": 3, "prefix": False, "external": False, "count": COUNT, "index": "a" * 64}
    Adapter(info(), (item,), {"retrieval": settings, "captions": texts}).save(tmp_path / "adapter")
    loaded = Adapter.load(tmp_path / "adapter")
    assert all(torch.equal(loaded.interventions[0].tensors[name], value) for name, value in tensors.items())
    found, captions = retrieval_of([loaded])
    assert found.k == 3 and captions == tuple(texts)


def test_two_retrievals_are_refused():
    with pytest.raises(UsageError, match="Two adapters retrieve.*at most one"):
        retrieval_of([stated(), stated()])


def test_texts_that_do_not_fit_the_index_are_refused():
    with pytest.raises(InvalidArtifact, match="does not hold the 3 texts"):
        retrieval_of([stated(count=3)])
    with pytest.raises(InvalidArtifact, match="does not hold"):
        retrieval_of([stated(external=True)])
    assert retrieval_of([stated()])[1] == ("a", "b")
    assert retrieval_of([Adapter(info())]) is None


class PlantedIndex:
    """Texts with drawn keys."""

    digest = "0" * 64
    keys = normalize(drawn(COUNT, D_KEY, seed=4)).numpy()

    def __len__(self):
        return COUNT

    def __getitem__(self, at):
        return f"text {at}"

    def ids_of(self, texts):
        return {text: int(text.split()[1]) for text in texts}

    def search(self, queries, k):
        scores = queries @ self.keys.T
        found = np.argsort(-scores, axis=1)[:, :k]
        return found, np.take_along_axis(scores, found, 1)


class PlantedPictures:
    """Two pictures a text, whose states tell it."""

    base, data, index = info().base, info().data, PlantedIndex()

    def __init__(self):
        self.embedder = {"name": "planted"}
        self.captions = [f"text {at % COUNT}" for at in range(2 * COUNT)]

    def keys(self):
        return np.concatenate([self.index.keys, self.index.keys])

    def states(self):
        return (torch.from_numpy(self.keys()) @ drawn(D_KEY, D_MODEL, seed=5)).numpy()

    def values(self):
        return drawn(COUNT, D_MODEL, seed=6)


def does(adapter):
    (item,) = adapter.interventions
    return item.op, {name: value.tolist() for name, value in item.tensors.items()}, adapter.attachments["retrieval"]


@pytest.mark.parametrize(("field", "other"), [("k", 5), ("correction", 0.5), ("prefix", True), ("external", True)])
def test_a_setting_of_retrieval_that_is_accepted_changes_the_adapter(field, other):
    plain, changed = (Retrieval(**given).fit(PlantedPictures()) for given in ({}, {field: other}))
    assert does(plain) != does(changed)


def test_an_index_over_the_limit_of_a_graph_is_refused():
    with pytest.raises(UsageError, match=f"holds {COUNT} texts; a graph takes {COUNT - 1}"):
        Retrieval(in_graph_limit=COUNT - 1).fit(PlantedPictures())
    assert set(Retrieval.model_fields) == {"k", "correction", "prefix", "external", "in_graph_limit"}, "all are tested"
