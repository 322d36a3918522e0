"""One processor for many threads: a tokenizer keeps whether it pads, and whoever asks meanwhile must not notice."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from safetykit.toolkit.model.inputs import InputProcessor
from safetykit.toolkit.model.requests import Request

REQUESTS = [Request("how do i use a club ?"), Request("what is this ?"), Request("tell me how to work with a fire .")]


@pytest.fixture
def switching():
    """Threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_batches_are_padded_while_others_ask_for_the_tokens_of_a_text(switching):
    inputs = InputProcessor.from_pretrained("reference:mild")
    wanted, tokens = inputs.prepare(REQUESTS), inputs.tokens_of("sorry .")

    def batch(_):
        return inputs.prepare(REQUESTS).input_ids.tolist() == wanted.input_ids.tolist()

    def alone(_):
        return inputs.tokens_of("sorry .") == tokens and inputs.render(REQUESTS[0]) != ""

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(ask, at) for at in range(100) for ask in (batch, alone)]
        assert all(job.result() for job in jobs)
