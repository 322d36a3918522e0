"""The same bytes for any number of threads: what is computed on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread(blas: bool = True) -> Iterator[None]:
    """Compute on one thread until the block ends; also a decorator.

    Eigenvectors, and sums over large tensors, come out different in their last digits when threads share the work.

    Args:
        blas: also NumPy's and SciPy's own libraries, which takes a few milliseconds to look up.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if blas:
            with threadpool_limits(limits=1):
                yield
        else:
            yield
    finally:
        torch.set_num_threads(before)
