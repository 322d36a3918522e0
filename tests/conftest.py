"""A LLaVA with random weights, for what does not depend on what a model has learnt; and the suite on several cores."""

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("SYMPY_CACHE_SIZE", "100000")  # read once; tracing asks for sizes again and again
import torch
from other_dtype import in_dtype
from planted_vlm import planted_data, planted_folder, planted_map  # noqa: F401  fixtures of a known refusal circuit
from shared import once
from tiny_llava import (  # noqa: F401  fixtures, once a session for all folders
    base_folder,
    int4_folder,
    make_checkpoint,
)

torch.set_num_threads(1)  # the test models are so small that threads cost more than they give
_WORKERS = 4  # each holds about 1 GB


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs on several cores where pytest-xdist is there; ``-n`` and named paths decide otherwise."""
    option, whole = config.option, config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if hasattr(config, "workerinput"):  # a worker gets the same options, and must not start workers of its own
        return
    if whole and getattr(option, "numprocesses", 0) is None and not option.usepdb:
        option.numprocesses = min(os.cpu_count() or 1, _WORKERS)
        option.dist = "worksteal"  # neighbours stay together, and with them the fixtures of their module


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="a hundred random cases where there are six, and more")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("exhaustive"):
        left_out = {item for item in items if item.get_closest_marker("exhaustive")}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def hundred(request) -> int:
    """How many random cases a test draws; of more, the first are the same."""
    return 100 if request.config.getoption("exhaustive") else 6


@pytest.fixture(scope="session", autouse=True)
def _quick_exports(tmp_path_factory):
    """What exports of small models spend their time on is shared or done in small; the demo's are as a user's."""
    import onnxscript  # noqa: F401
    from drawing import sketch_figures
    from quick import draw_once, leave_garbage
    from tracing import compare_fewer_steps, share_bases, share_translations

    gc.collect()
    gc.freeze()  # a tenth of the time would go into looking at all these modules again and again
    gc.set_threshold(1000, 20, 100)
    with pytest.MonkeyPatch.context() as patch:
        share_bases(patch, tmp_path_factory)
        share_translations(patch)
        compare_fewer_steps(patch)
        sketch_figures(patch)
        draw_once(patch)
        leave_garbage(patch)
        yield


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint folder of the reference VLM's architecture, untrained."""
    from safetykit.toolkit.reference.model import build_model, build_processor, build_tokenizer

    def make(folder: Path) -> None:
        build_model(seed=1).save_pretrained(folder)
        build_processor(build_tokenizer()).save_pretrained(folder)

    return once(tmp_path_factory, "random", make)


@pytest.fixture(scope="session")
def bf16_checkpoint(random_checkpoint, tmp_path_factory) -> Path:
    """The same in bfloat16."""
    return once(tmp_path_factory, "bf16", lambda folder: in_dtype(random_checkpoint, folder, torch.bfloat16))


@pytest.fixture(scope="session")
def random_base(random_vlm, tmp_path_factory) -> Path:
    """Its base export."""
    from safetykit.export.base.own import export_base

    return once(tmp_path_factory, "random-base", lambda folder: export_base(random_vlm, folder))


@pytest.fixture(scope="session")
def random_vlm(random_checkpoint):
    from safetykit.toolkit.model.vlm import VLM

    return VLM.from_pretrained(random_checkpoint)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """What command lines work on; the same for all workers."""
    from workshop import Workshop

    return Workshop(once(tmp_path_factory, "workshop", lambda folder: folder.mkdir()), tmp_path_factory.mktemp("typed"))
