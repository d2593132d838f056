"""Which operators are worked at once: as many sublayers as a memory limit allows, in the order in which they run, and
shares of equal work for several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas_llm.operator_network import SUBLAYERS, Operator, Teacher
from nas_llm.operators import Place
from nas_llm.operators.needs import Need, Needs, Operators

Members = list[tuple[Place, Operator, Need]]


@dataclass(frozen=True)
class Group:
    """Operators that are worked at once, and what each of them needs."""

    members: tuple[tuple[Place, Operator, Need], ...]
    bytes: int
    teacher_macs: int  # of a token's pass through the teacher up to the last of its sublayers

    @property
    def operators(self) -> dict[Place, tuple[Operator, ...]]:
        found: dict[Place, list[Operator]] = {}
        for place, operator, _ in self.members:
            found.setdefault(place, []).append(operator)
        return {place: tuple(operators) for place, operators in found.items()}

    @property
    def step_flops(self) -> int:
        """Of a token in a training step; 0 where nothing is trained."""
        own = sum(need.step_flops for _, _, need in self.members)
        return own + 2 * self.teacher_macs if own else 0

    @property
    def summary(self) -> str:
        layers = sorted({layer for (layer, _), _, _ in self.members})
        where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"
        sublayers = " and ".join(name for name in SUBLAYERS if any(place[1] == name for place, _, _ in self.members))
        return f"{where}, {sublayers}: {len(self.members)} operators, about {self.bytes / 2**30:.2f} GiB"


def groups_of(operators: Operators, needs: Needs, *, memory_gib: float | None, processes: int = 1) -> list[Group]:
    """The operators in groups, the teacher's own left out; at least as many groups as processes where there is so much
    to do. A sublayer is divided only where its operators do not fit together.

    Args:
        memory_gib: of one process; None: everything fits.

    Raises:
        ValueError: one operator alone does not fit; the least limit that would do is said.
    """
    limit = None if memory_gib is None else memory_gib * 2**30
    members: Members = [
        (place, operator, needs.of(place, operator))
        for place in sorted(operators)
        for operator in operators[place]
        if not isinstance(operator, Teacher)
    ]
    if limit is not None:
        least = max((needs.group_bytes([member]) for member in members), default=0)
        if least > limit:
            place, operator, _ = next(one for one in members if needs.group_bytes([one]) == least)
            enough = -(-least * 100 // 2**30) / 100
            raise ValueError(
                f"distill.memory_gib={memory_gib:g}: layer {place[0]}, {place[1]}: operator {operator.name} alone "
                f"needs about {enough:g} GiB with the teacher: set distill.memory_gib={enough:g} or more, or a smaller "
                "data.batch_size, data.sequence_length or model.dtype"
            )
    found: list[Group] = []
    for share in _shares(members, processes):
        found += [_group(chosen, needs) for chosen in _fitting(share, needs, limit)]
    return found


def dealt(groups: Sequence[Group], processes: int) -> list[list[Group]]:
    """The groups of each process, the longest work first to whoever has least; each goes from the first layer on."""
    hands: list[list[Group]] = [[] for _ in range(processes)]
    for group in sorted(groups, key=lambda group: -group.step_flops):
        min(hands, key=lambda hand: (sum(held.step_flops for held in hand), len(hand))).append(group)
    order = {id(group): number for number, group in enumerate(groups)}
    return [sorted(hand, key=lambda group: order[id(group)]) for hand in hands if hand]


def _shares(members: Members, processes: int) -> list[Members]:
    """Neighbours of about equal work."""
    if processes == 1:
        return [members] if members else []
    work = [need.step_flops + need.macs + 1 for _, _, need in members]  # those that are not trained are scored
    total, done = sum(work), 0.0
    shares: list[Members] = [[] for _ in range(processes)]
    for member, mine in zip(members, work, strict=True):
        shares[int((done + mine / 2) / total * processes)].append(member)
        done += mine
    return [share for share in shares if share]


def _fitting(members: Members, needs: Needs, limit: float | None) -> list[Members]:
    """Sublayer after sublayer into one group until the limit is reached."""
    if limit is None:
        return [members]
    found: list[Members] = [[]]
    for place in dict.fromkeys(place for place, _, _ in members):
        mine = [member for member in members if member[0] == place]
        together = needs.group_bytes(mine) <= limit
        for part in [mine] if together else [[member] for member in mine]:
            if found[-1] and needs.group_bytes(found[-1] + part) > limit:
                found.append([])
            found[-1] += part
    return found


def _group(members: Members, needs: Needs) -> Group:
    last = max(layer for (layer, _), _, _ in members)
    return Group(tuple(members), needs.group_bytes(members), sum(needs.layer_macs[: last + 1]))
