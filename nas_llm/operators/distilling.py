"""Block-wise distillation: every operator learns what the teacher's sublayer writes for what it reads (UNAST, paper 3,
section 3.1).

    min over the weights of s_ij:   E_x [ L(s_ij(x_i), t_i(x_i)) ]          for every sublayer i and candidate j

x_i (batch, sequence, hidden) is what the teacher's own sublayer reads, so that all problems are independent of each
other: one teacher pass per batch feeds every candidate (``operators/teacher_pass.py``), and how they are grouped and
divided among processes changes no result. Adam with a cosine schedule, as in table 6; candidates run without dropout,
in float32 weights, and are saved in the teacher's precision, each as soon as its group is done; those that are not
trained before the others of their group are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nas_llm.models.block_walk import Batch
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Operator, Teacher
from nas_llm.operators import Place
from nas_llm.operators.group_progress import PREFIX, keep_progress, progress_file, take_progress
from nas_llm.operators.groups import Group, dealt, groups_of
from nas_llm.operators.heap import return_freed_memory
from nas_llm.operators.initial import is_trained
from nas_llm.operators.library import MISSING, Library
from nas_llm.operators.local_losses import LocalLoss
from nas_llm.operators.local_losses.tokens import counted
from nas_llm.operators.needs import Needs, Operators
from nas_llm.operators.teacher_pass import Visit, teacher_pass
from nas_llm.schedules import cosine

Modules = dict[Place, dict[Operator, nn.Module]]
Initial = Callable[[Supernet, Mapping[Place, Sequence[Operator]], Iterable[Batch]], Modules]
"""(teacher, operators of a group, calibration batches) -> their modules as training finds them."""
Tell = Callable[[float, int], None]
"""Called with the FLOPs of a token that were done, and the number of operators that were finished."""


@dataclass(frozen=True)
class Distilling:
    """Settings of block-wise distillation; ``plan`` says what it would take, and stops. What is learnt is kept every
    ``checkpoint_minutes``, for a run that is killed before its operators are finished.

    Raises:
        ValueError: an impossible number.
    """

    steps: int = 500
    lr: float = 5e-4
    lr_final: float = 5e-5
    accumulate_grad_batches: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    memory_gib: float | None = None
    processes: int = 1
    score_batches: int | None = None
    checkpoint_minutes: float = 10.0
    plan: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate_grad_batches", "processes", "score_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"distill.{name}={value}: allowed is 1 or more")
        for name in ("lr", "memory_gib", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"distill.{name}={value}: allowed is a number above 0")
        if not 0 <= self.lr_final <= self.lr:
            raise ValueError(f"distill.lr_final={self.lr_final}: allowed is 0 to distill.lr={self.lr}")
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"distill.precision={self.precision}: allowed are 32-true, bf16-mixed")

    @property
    def of_results(self) -> dict[str, Any]:
        """The settings that an operator's weights follow from, by their keys."""
        names = ("steps", "lr", "lr_final", "accumulate_grad_batches", "precision")
        return {f"distill.{name}": getattr(self, name) for name in names}


@dataclass(frozen=True)
class Splits:
    """Batches, each gone through anew for every group: ``train`` from its first on, as many as the steps need;
    ``calibration`` for first weights; ``held_out`` for the scores."""

    train: Iterable[Batch]
    calibration: Iterable[Batch]
    held_out: Iterable[Batch]


@dataclass(frozen=True)
class Job:
    """What the work on a group of operators depends on, beside the teacher."""

    library: Library
    splits: Splits
    settings: Distilling
    loss: LocalLoss
    initial: Initial
    device: str = "cpu"  # of the other processes' teachers

    def __call__(self, supernet: Supernet, groups: Iterable[Group], tell: Tell) -> None:
        """Distil, score and save each group.

        Raises:
            ValueError: there are too few batches, or an operator's loss is not finite.
        """
        if self.settings.memory_gib is not None:
            return_freed_memory()
        for group in groups:
            self._work(supernet, group, tell)

    def _work(self, supernet: Supernet, group: Group, tell: Tell) -> None:
        modules = self.initial(supernet, group.operators, self.splits.calibration)
        students = {
            place: [
                Student(place, operator, modules[place].pop(operator), supernet, self.settings)
                for operator in operators
            ]
            for place, operators in group.operators.items()
        }
        ready = {place: [s for s in found if not s.learns] for place, found in students.items()}
        learning = {place: found for place in students if (found := [s for s in students[place] if s.learns])}
        self._save(supernet, ready, tell)  # what is not trained is safe before anything is
        if learning:
            every = [student for found in learning.values() for student in found]
            file = progress_file(self.library.path, self.library.manifest["teacher"], every)
            self._train(supernet, learning, group, tell, file)
            self._save(supernet, learning, tell)
            file.unlink(missing_ok=True)

    def _save(self, supernet: Supernet, students: Mapping[Place, list[Student]], tell: Tell) -> None:
        """Score finished operators, and write them."""
        students = {place: found for place, found in students.items() if found}
        every = [student for found in students.values() for student in found]
        if not every:
            return
        for student in every:
            student.finish()
        local = local_scores(supernet, students, islice(self.splits.held_out, self.settings.score_batches))
        for student in every:
            score = local[student.place, student.operator]
            if not math.isfinite(score):
                raise _not_finite(student)
            steps = self.settings.steps if student.learns else 0
            record = {"local": score, "steps": steps, "seconds": round(student.seconds, 3)}
            self.library.save(student.place, student.operator, student.module, record)
            tell(0.0, 1)

    def _train(
        self, supernet: Supernet, learning: Mapping[Place, list[Student]], group: Group, tell: Tell, file: Path
    ) -> None:
        """``file``: where it is now and then, for a run that goes on."""
        parts, batches = self.settings.accumulate_grad_batches, iter(self.splits.train)
        every = [student for found in learning.values() for student in found]
        begun, kept = take_progress(file, every), time.perf_counter()
        for _ in islice(batches, begun * parts):
            pass
        tell(group.step_flops * begun, 0)
        mixed = _autocast(supernet, self.settings.precision)
        with teacher_pass(supernet, learning) as run:

            def serve(place: Place, visit: Visit) -> None:
                for student in learning[place]:
                    student.learn(visit, self.loss, steps=last)

            for step in range(begun, self.settings.steps):
                for part in range(parts):
                    last = part == parts - 1
                    batch = next(batches, None)
                    if batch is None:
                        raise ValueError(
                            f"distill.steps={self.settings.steps}: the training data end before: set fewer"
                        )
                    with mixed():
                        run(batch, serve)
                tell(group.step_flops, 0)
                if time.perf_counter() - kept > 60 * self.settings.checkpoint_minutes:
                    keep_progress(file, every, step + 1)
                    kept = time.perf_counter()


def distil(
    supernet: Supernet,
    library: Library,
    operators: Operators,
    splits: Splits,
    settings: Distilling,
    *,
    loss: LocalLoss,
    initial: Initial,
    needs: Needs,
    reload: Callable[[], Supernet] | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> None:
    """Makes the operators that the library lacks or whose files are damaged, says in which groups, and shows how far it
    is.

    Args:
        supernet: the teacher, sorted; ``library`` is begun for it.
        operators: all of the pool, the teacher's own among them or not.
        needs: of the teacher, at the size of a batch.
        reload: gives the teacher again in another process; picklable, as everything else then. Needed where
            ``settings.processes`` is above 1.

    Raises:
        ValueError: as :func:`~nas_llm.operators.groups.groups_of` and :class:`Job`; or an operator's file is another
            teacher's.
    """
    missing = {place: [o for o in found if not _usable(library, place, o, say)] for place, found in operators.items()}
    groups = groups_of(missing, needs, memory_gib=settings.memory_gib, processes=settings.processes)
    hands = dealt(groups, settings.processes)
    say(described(groups, hands, needs, sum(not isinstance(o, Teacher) for found in operators.values() for o in found)))
    job = Job(library, splits, settings, loss, initial, supernet.model.device.type)
    with progress_of(groups, settings.steps, shows=progress) as tell:
        if len(hands) > 1:
            if reload is None:
                raise ValueError(f"distill.processes={settings.processes}: set distill.processes=1, or give reload")
            from nas_llm.operators.processes import work_in_processes

            work_in_processes(job, hands, reload, tell)
        else:
            job(supernet, groups, tell)
    for file in library.path.glob(f"{PREFIX}*"):  # of groups that were made up otherwise
        file.unlink()


def _usable(library: Library, place: Place, operator: Operator, say: Callable[[str], None]) -> bool:
    """Whether the library has the operator as it was written; says where it has not."""
    damage = library.damage(place, operator)
    if damage not in ("", MISSING):
        say(f"{library.file(place, operator)} is damaged ({damage}): it is made anew")
    return not damage


def described(groups: Sequence[Group], hands: Sequence[Sequence[Group]], needs: Needs, all_operators: int) -> str:
    """The groups, a line each, in the order in which each process works them."""
    missing = sum(len(group.members) for group in groups)
    there = f"{all_operators - missing} of {all_operators} operators are there"
    if not groups:
        return f"{there}: nothing to distil"
    plural, held = "s" if len(groups) > 1 else "", needs.teacher_bytes / 2**30
    lines = [f"{there}; {missing} in {len(groups)} group{plural} (with {held:.2f} GiB of the teacher):"]
    for number, hand in enumerate(hands):
        whose = f"process {number}: " if len(hands) > 1 else ""
        lines += [f"  {whose}{group.summary}" for group in hand]
    return "\n".join(lines)


@contextmanager
def progress_of(groups: Sequence[Group], steps: int, *, shows: bool) -> Iterator[Tell]:
    """A bar over the FLOPs of all groups, which tells the operators that are done and the time left."""
    from tqdm.auto import tqdm

    total, done = sum(len(group.members) for group in groups), 0
    flops = steps * sum(group.step_flops for group in groups)
    with tqdm(
        desc=f"operators: 0 of {total}",
        total=flops,
        disable=not (shows and groups),
        dynamic_ncols=True,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left",
    ) as bar:

        def tell(made: float, finished: int) -> None:
            nonlocal done
            done += finished
            bar.set_description_str(f"operators: {done} of {total}", refresh=finished > 0)
            bar.update(made)

        yield tell


class Student:
    """An operator in work: its module, and where it learns its optimizer and schedule.

    ``seconds`` is what its own passes and updates took.
    """

    def __init__(
        self, place: Place, operator: Operator, module: nn.Module, supernet: Supernet, settings: Distilling
    ) -> None:
        self.place, self.operator, self.learns, self.seconds = place, operator, is_trained(operator), 0.0
        self.dtype, self.own_dtype = supernet.model.dtype, supernet.model.dtype
        self.module = module.to(supernet.model.device).eval().requires_grad_(self.learns)
        self.share = 1.0 / settings.accumulate_grad_batches
        if self.learns:
            self.dtype = torch.promote_types(self.own_dtype, torch.float32)
            self.module.to(self.dtype)
            self.optimizer = torch.optim.Adam(self.module.parameters(), lr=settings.lr, fused=True)
            final = settings.lr_final / settings.lr
            self.schedule = cosine(self.optimizer, steps=settings.steps, warmup=0.0, final=final)

    def learn(self, visit: Visit, loss: LocalLoss, *, steps: bool) -> None:
        """Forward, backward, and where ``steps`` an update."""
        start = time.perf_counter()
        error = loss(visit.run(self.module, self.dtype), visit.written, visit.mask) * self.share
        with torch.autocast(
            error.device.type, enabled=False
        ):  # a backward pass takes its precision from the forward one
            error.backward()
        if steps:
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.seconds += time.perf_counter() - start

    def finish(self) -> None:
        """In the teacher's precision, as it is scored and saved; what only training needs is let go."""
        if self.learns:
            del self.optimizer, self.schedule
            self.module.to(self.own_dtype).requires_grad_(False)


@torch.no_grad()
def local_scores(
    supernet: Supernet, students: Mapping[Place, Sequence[Student]], batches: Iterable[Batch]
) -> dict[tuple[Place, Operator], float]:
    """SquareHead over all batches together: sum ||s - t||^2 / sum ||t||^2 over their tokens without padding.

    Raises:
        ValueError: there is no batch.
    """
    errors: dict[tuple[Place, Operator], Tensor] = {}
    squares: dict[Place, Tensor] = {}

    def serve(place: Place, visit: Visit) -> None:
        with torch.no_grad():
            _add(squares, place, _square(torch.zeros_like(visit.written), visit))
            for student in students[place]:
                _add(errors, (place, student.operator), _square(visit.run(student.module), visit))

    with teacher_pass(supernet, students) as run:
        for batch in batches:
            run(batch, serve)
    if not squares:
        raise ValueError("there is no held-out batch to score operators on: set data.validation_size above 0")
    tiny = torch.finfo(torch.float64).tiny
    return {key: (error / squares[key[0]].clamp_min(tiny)).item() for key, error in errors.items()}


def _square(student: Tensor, visit: Visit) -> Tensor:
    s, t = counted(student, visit.written, visit.mask)
    return (s - t).double().square().sum()


def _add(sums: dict[Any, Tensor], key: Any, value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value


def _autocast(supernet: Supernet, precision: str) -> Callable[[], Any]:
    """Makes the context of forward passes. No weight is kept in bfloat16: each is read once, then changed."""
    if precision == "32-true":
        return nullcontext

    def mixed() -> torch.autocast:
        return torch.autocast(supernet.model.device.type, torch.bfloat16, cache_enabled=False)

    return mixed


def _not_finite(student: Student) -> ValueError:
    layer, sublayer = student.place
    return ValueError(
        f"layer {layer}, {sublayer}: operator {student.operator.name} is not finite after its distillation: set a "
        "smaller distill.lr, or distill.precision=32-true"
    )
