"""Groups of operators in several processes, each with a teacher of its own and its share of the threads or devices.

Processes share nothing but the library's folder, in which every operator is a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException
from transformers.utils import logging as transformers_logging

from nas_llm.models.supernet import Supernet
from nas_llm.operators.distilling import Job, Tell
from nas_llm.operators.groups import Group

WAIT_SECONDS = 0.2


def work_in_processes(job: Job, hands: Sequence[Sequence[Group]], reload: Callable[[], Supernet], tell: Tell) -> None:
    """Every hand of groups in a process of its own.

    Args:
        job: picklable.
        reload: gives the same teacher again; picklable.
        tell: as that of :class:`~nas_llm.operators.distilling.Job`, called in this process.

    Raises:
        ValueError: what a process refuses; or one was killed.
    """
    threads = max(1, torch.get_num_threads() // len(hands))
    said: SimpleQueue = multiprocessing.get_context("spawn").SimpleQueue()
    started = multiprocessing.spawn(
        _work, (job, hands, reload, threads, said), nprocs=len(hands), join=False, daemon=True
    )
    try:
        while True:
            ended = started.join(timeout=WAIT_SECONDS)
            while not said.empty():
                kind, *what = said.get()
                if kind == "refused":
                    raise ValueError(what[0])
                tell(*what)
            if ended:
                return
    except ProcessExitedException as error:
        raise ValueError(
            f"a process of the distillation ended ({error}); where memory ran out, set distill.memory_gib=, or fewer "
            f"distill.processes=; go on with nas-llm distill run_dir={job.library.path.parent}"
        ) from error
    finally:
        for process in started.processes:
            process.terminate()
            process.join()


def _work(
    rank: int,
    job: Job,
    hands: Sequence[Sequence[Group]],
    reload: Callable[[], Supernet],
    threads: int,
    said: Any,
) -> None:
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()  # of loading; the process that started this one has its own bar
    try:
        supernet = reload()
        job.library.refuse_other_teacher(supernet)
        device = torch.device(job.device)
        supernet.to(torch.device("cuda", rank) if device.type == "cuda" else device)
        job(supernet, hands[rank], lambda flops, finished: said.put(("told", flops, finished)))
    except ValueError as error:
        said.put(("refused", str(error)))
