"""The processes of one job: which of them writes, and what the others are told to run."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # the first that is set is this process's rank
LAUNCH_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set for the ranks of a job
CHILD_ARGUMENTS = "NAS_LLM_ARGUMENTS"  # what the other ranks of a job run, whatever their command line says


def is_main_process() -> bool:
    """Whether this process is the one that writes the run directory (rank 0, or the only one)."""
    rank = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0")
    return int(rank) == 0


@contextmanager
def told_to_ranks(arguments: list[str]) -> Iterator[None]:
    """Tell the processes that Lightning starts for other ranks what to run; leave no trace of this job's ranks."""
    before = {name: os.environ.get(name) for name in (CHILD_ARGUMENTS, *LAUNCH_VARIABLES)}
    os.environ[CHILD_ARGUMENTS] = json.dumps(arguments)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if "torch.distributed" in sys.modules:
            distributed = sys.modules["torch.distributed"]
            if distributed.is_available() and distributed.is_initialized():
                distributed.destroy_process_group()
