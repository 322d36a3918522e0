"""The processes of a job that torchrun, ``accelerate launch`` or the like has started, by torch.distributed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ...adapters.errors import ProcessLost

TIMEOUT = timedelta(minutes=30)  # for which a process waits for another
_SAID = "safetykit/said"  # in the job's store: how many have wanted to say what went wrong


class Processes:
    """See :class:`~safetykit.toolkit.distributed.world.World`; by gloo, from memory to memory, on every device.

    Parts are pickled, as torch.distributed does it: the processes trust each other.
    """

    def __init__(self) -> None:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
            self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)  # of its own, for what others send meanwhile
        except (RuntimeError, ValueError) as error:
            raise _lost() from error
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._thread = ThreadPoolExecutor(1, "gather")  # one, so that all gather in the same order

    def gather(self, part: Any) -> Future[list[Any]]:
        """See :class:`World`."""
        return self._thread.submit(self._gather, part)

    def _gather(self, part: Any) -> list[Any]:
        parts: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(parts, part, group=self._group)
        except (RuntimeError, ConnectionError) as error:
            raise _lost() from error
        return parts

    def speaks(self) -> bool:
        """Whether this process is to say what went wrong: the first that asks."""
        try:
            return bool(dist.distributed_c10d._get_default_store().add(_SAID, 1) == 1)
        except (RuntimeError, ValueError):
            return True  # who keeps the store is gone, so nobody has heard of it

    def close(self) -> None:
        """Let the connections go; all processes are done."""
        self._thread.shutdown()
        dist.destroy_process_group()


def _lost() -> ProcessLost:
    minutes = TIMEOUT.seconds // 60
    return ProcessLost(f"Another process of this job is gone, or has not answered for {minutes} minutes.")
