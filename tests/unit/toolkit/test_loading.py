"""How checkpoints are loaded: device, type, spread, batch size."""

import pytest
import torch

from safetykit.adapters.errors import UsageError
from safetykit.toolkit.model import placement
from safetykit.toolkit.model.batching import BatchSize, fitting, rows_beside
from safetykit.toolkit.model.options import LoadOptions
from safetykit.toolkit.model.placement import Placement
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "cdua"}, "device cannot be 'cdua'. It is auto, cpu, cuda, cuda:N or mps. Did you mean 'cuda'?"),
        ({"dtype": "bf16"}, "dtype cannot be 'bf16'. It is auto, float32, bfloat16, float16 or float64."),
        ({"dtype": torch.int8}, "dtype cannot be 'int8'"),
        ({"device_map": "autp"}, "device_map cannot be 'autp'"),
        ({"device_map": "auto", "max_memory": "30GiB"}, "max_memory cannot be '30GiB'. Name devices with"),
        ({"device_map": "auto", "max_memory": {"tpu": "1GiB"}}, "max_memory cannot be 'tpu=1GiB'"),
        ({"max_memory": "cpu=1GiB"}, "max_memory does nothing with device_map left out"),
        ({"device": "cpu", "device_map": "auto"}, "device does nothing with device_map auto"),
        ({"batch_size": 0}, "batch_size cannot be '0'. It is auto or a number of rows above 0."),
    ],
)
def test_what_is_none_is_refused_with_what_there_is(random_checkpoint, given, said):
    with pytest.raises(UsageError) as caught:
        VLM.from_pretrained(random_checkpoint, **given)
    assert said in str(caught.value)


def test_a_checkpoint_comes_in_its_own_type(random_checkpoint, bf16_checkpoint):
    assert VLM.from_pretrained(random_checkpoint).model.dtype == torch.float32
    loaded = VLM.from_pretrained(bf16_checkpoint)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.base.ran.model_dump() == {"device": "cpu", "dtype": "bfloat16", "spread": False}


@pytest.mark.parametrize("dtype", [torch.float32, "float32", "torch.float32"])
def test_another_type_can_be_asked_for(bf16_checkpoint, dtype):
    assert VLM.from_pretrained(bf16_checkpoint, dtype=dtype, device=torch.device("cpu")).model.dtype == torch.float32


def test_a_meta_model_is_loaded_as_it_was_asked_for(bf16_checkpoint):
    vlm = VLM.without_weights(bf16_checkpoint, LoadOptions(dtype="float16", batch_size=3))
    assert not vlm.loaded and vlm.base.ran is None
    vlm.load()
    assert vlm.model.dtype == torch.float16 and vlm.batch_size.of(32) == 3


GPU = [(torch.device("cuda", 0), 10**9), (torch.device("cuda", 1), 3 * 10**9)]


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(placement, "accelerators", lambda: GPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


def test_the_best_device_is_the_one_with_most_free_memory(random_checkpoint, two_gpus):
    chosen = Placement.of(LoadOptions(), random_checkpoint)
    assert chosen.device == torch.device("cuda", 1) and chosen.dtype is None
    assert chosen.keywords(random_checkpoint)["device_map"] == {"": torch.device("cuda", 1)}


def test_a_model_that_none_of_them_holds_is_spread(random_checkpoint, two_gpus, monkeypatch):
    monkeypatch.setattr(placement, "_size", lambda folder, dtype: 4 * 10**9)
    chosen = Placement.of(LoadOptions(), random_checkpoint)
    assert chosen.device is None and chosen.device_map == "auto"


@pytest.mark.parametrize(
    ("asked", "found"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_a_device_that_is_named_is_taken(random_checkpoint, two_gpus, asked, found):
    assert Placement.of(LoadOptions(device=asked), random_checkpoint).device == torch.device(found)


@pytest.mark.parametrize("asked", ["mps", "cuda:2"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(random_checkpoint, two_gpus, asked):
    with pytest.raises(UsageError, match=f"no device {asked} here.*There is cpu and cuda:0 and cuda:1"):
        Placement.of(LoadOptions(device=asked), random_checkpoint)


def test_without_an_accelerator_models_run_on_the_cpu(random_checkpoint, monkeypatch):
    monkeypatch.setattr(placement, "accelerators", list)
    assert Placement.of(LoadOptions(), random_checkpoint).device == torch.device("cpu")


def test_bfloat16_runs_in_float32_where_the_device_does_not_know_it(bf16_checkpoint, two_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert Placement.of(LoadOptions(), bf16_checkpoint).dtype == torch.float32
    with pytest.raises(UsageError, match="does not compute in bfloat16"):
        Placement.of(LoadOptions(dtype="bfloat16"), bf16_checkpoint)


def test_batches_are_halved_until_they_fit():
    tried = []

    def run(batch):
        tried.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [item * 10 for item in batch]

    size = BatchSize()
    found = list(fitting(range(10), size, 8, run))
    assert [item for batch, _ in found for item in batch] == list(range(10))
    assert [item for _, made in found for item in made] == [10 * item for item in range(10)]
    assert tried == [8, 4, 2, 2, 2, 2, 2] and size.of(8) == 2


def test_units_are_never_parted():
    def run(batch):
        if len(batch) > 1:
            raise MemoryError
        return None

    found = list(fitting([(1, 2), (3, 4), (5, 6)], BatchSize(), 6, run, rows=len))
    assert [batch for batch, _ in found] == [[(1, 2)], [(3, 4)], [(5, 6)]]


@pytest.mark.parametrize(
    ("asked", "said"), [(4, "does not hold a batch of 4.*--batch-size"), (None, "model and one row.*--device-map auto")]
)
def test_what_cannot_be_made_smaller_is_refused(asked, said):
    def run(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UsageError, match=f"(?s){said}"):
        list(fitting(range(4), BatchSize(asked), 8, run))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def run(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(fitting(range(4), BatchSize(), 8, run))


def test_states_and_answers_do_not_depend_on_the_batch_size(random_checkpoint):
    prompts = [Request(text) for text in ("what is this ?", "how do i use it ?", "is it dangerous ?")]
    usual, small = (VLM.from_pretrained(random_checkpoint, batch_size=size) for size in ("auto", 1))
    assert [one.token_ids for one in usual.generate(prompts, 4)] == [
        one.token_ids for one in small.generate(prompts, 4)
    ]


def test_the_estimate_leaves_room_for_the_weights(random_vlm):
    weights = sum(tensor.numel() * 4 for tensor in random_vlm.model.parameters())
    assert rows_beside(random_vlm.model, weights) == 1
    many = rows_beside(random_vlm.model, weights + 2**34)
    assert many & (many - 1) == 0 and rows_beside(random_vlm.model, weights + 2**35) == 2 * many
