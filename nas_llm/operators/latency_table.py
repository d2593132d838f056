"""A look-up table of the latency of operators (UNAST, paper 3, section 3.3): values, their file, and what they predict.

    latency of a network = fixed + sum over its places of the operator's latency        [ms]

An operator is looked up by what it runs, not by its layer: ``attention.heads-4x2x16``, ``mlp.ffn-96``; sparse weights
run as dense ones. An operator's latency holds its norm and its residual addition. ``operators/latency_measurement.py``
fills the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from nas_llm.atomic_files import read_json, write_json
from nas_llm.models.supernet import Supernet
from nas_llm.models.timing import Phase
from nas_llm.operator_network import (
    SUBLAYERS,
    Ffn,
    Heads,
    Operator,
    OperatorNetwork,
    Quantized,
    Sparse,
    Sublayer,
    Teacher,
)
from nas_llm.operators import Place
from nas_llm.operators.cost_table import CostTable

Clock = Literal["wall", "process"]
CLOCKS: tuple[Clock, ...] = get_args(Clock)


@dataclass(frozen=True)
class Conditions:
    """What a latency holds for, and nothing else; ``threads`` of a CPU, None on a GPU."""

    device: str
    threads: int | None
    dtype: str
    attention: str
    batch_size: int
    sequence_length: int
    phase: Phase

    def differing(self, wanted: Conditions) -> str:
        """Every field that differs, in words; "" where none does."""
        mine, theirs = asdict(self), asdict(wanted)
        return "; ".join(f"{key} {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key])

    def refuse_other(self, wanted: Conditions, what: str, mend: str) -> None:
        """Raises ValueError where a field differs: ``what`` was measured otherwise, and what mends that."""
        if differing := self.differing(wanted):
            raise ValueError(f"{what} was measured with {differing}: {mend}")


@dataclass(frozen=True)
class Milliseconds:
    """Of one operator: the median over rounds, and half of the range that holds the middle half of them (spread)."""

    wall: float
    wall_spread: float
    process: float
    process_spread: float

    def of(self, clock: Clock) -> float:
        return self.wall if clock == "wall" else self.process

    def scaled(self, factors: Mapping[Clock, float]) -> Milliseconds:
        """On a machine that is so many times as slow."""
        wall, process = factors["wall"], factors["process"]
        return Milliseconds(
            wall * self.wall, wall * self.wall_spread, process * self.process, process * self.process_spread
        )


@dataclass(frozen=True)
class LatencyTable:
    """``operators``: by key; ``teacher``: the key of the teacher's sublayer in each place, in the order of the blocks;
    ``fixed``: embedding, masks, rotary angles, last norm and output head."""

    conditions: Conditions
    fixed: Milliseconds
    operators: Mapping[str, Milliseconds]
    teacher: Sequence[Mapping[Sublayer, str]]
    depth: int
    rounds: int
    torch: str
    date: str

    @property
    def name(self) -> str:
        """Of the budget on it."""
        return "latency_ms" if self.conditions.phase == "prefill" else "decode_latency_ms"

    def predicted_ms(self, network: OperatorNetwork, clock: Clock = "wall") -> float:
        """Latency of the whole network.

        Raises:
            ValueError: the network has another number of blocks, or an operator was not measured.
        """
        if len(network.blocks) != len(self.teacher):
            raise ValueError(
                f"the network of operators has {len(network.blocks)} blocks, the table of latencies {len(self.teacher)}"
            )
        return self.fixed.of(clock) + sum(self._of(place, o).of(clock) for place, o in network.operators.items())

    def covers(self, operators: Mapping[Place, Sequence[Operator]]) -> bool:
        """Whether every operator of a pool was measured."""
        try:
            self.costs(operators)
        except ValueError:
            return False
        return True

    def costs(self, operators: Mapping[Place, Sequence[Operator]], clock: Clock = "wall") -> CostTable:
        """As a table of costs over a pool, with the teacher in every place. Raises as :meth:`predicted_ms`."""
        values = {
            place: {o: self._of(place, o).of(clock) for o in (Teacher(), *pool)} for place, pool in operators.items()
        }
        places = [(layer, sublayer) for layer in range(len(self.teacher)) for sublayer in SUBLAYERS]
        rest = sum(self._of(place, Teacher()).of(clock) for place in places if place not in values)
        return CostTable(self.name, "ms", values, rest=rest, outside=self.fixed.of(clock))

    def scaled(self, factors: Mapping[Clock, float]) -> LatencyTable:
        """The table of a machine on which everything takes so many times as long, by clock."""
        operators = {key: found.scaled(factors) for key, found in self.operators.items()}
        return replace(self, fixed=self.fixed.scaled(factors), operators=operators)

    def refuse_other_teacher(self, supernet: Supernet) -> None:
        """Raises ValueError where the table was measured on sublayers of other sizes."""
        own = teacher_keys(supernet)
        if list(self.teacher) != own:
            layer = next((i for i, (a, b) in enumerate(zip(self.teacher, own, strict=False)) if a != b), 0)
            there, here = (
                (len(self.teacher), len(own)) if len(self.teacher) != len(own) else (self.teacher[layer], own[layer])
            )
            raise ValueError(
                f"the table of latencies is another teacher's ({there}, this one has {here}): measure again"
            )

    def save(self, path: str | Path) -> None:
        """As JSON; the whole file, or the old one stays."""
        write_json(path, asdict(self))

    @classmethod
    def load(
        cls, path: str | Path, wanted: Conditions | None, *, force: bool = False, anew: str = "delete it"
    ) -> LatencyTable:
        """Reads a table measured under the ``wanted`` conditions; with ``force`` under any. ``anew``: what a user does
        to have one measured in its place.

        Raises:
            ValueError: there is no such file, it is no table of latencies, or it holds for other conditions.
        """
        data = read_json(path, *cls.__dataclass_fields__)
        try:
            table = cls._from_dict(data)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no table of latencies ({error}): {anew} to have it measured anew") from error
        if wanted is not None and not force:
            mend = f"{anew} to have it measured anew, or take it as it is with latency_table.force=true"
            table.conditions.refuse_other(wanted, f"the table of latencies {path}", mend)
        return table

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> LatencyTable:
        operators = {key: Milliseconds(**found) for key, found in data["operators"].items()}
        nested = {"conditions": Conditions(**data["conditions"]), "fixed": Milliseconds(**data["fixed"])}
        return cls(**{**data, **nested, "operators": operators})

    def _of(self, place: Place, operator: Operator) -> Milliseconds:
        layer, sublayer = place
        key = key_of(self.teacher[layer][sublayer], sublayer, operator)
        if key not in self.operators:
            raise ValueError(
                f"layer {layer}, {sublayer}: the latency of operator {operator.name} ({key}) was not measured, only "
                f"that of {', '.join(self.operators)}: measure again with this pool"
            )
        return self.operators[key]


def key_of(teacher: str, sublayer: Sublayer, operator: Operator) -> str:
    """What runs where ``operator`` stands in for the sublayer of the key ``teacher``; two operators of one key take
    the same time."""
    _, _, kind = teacher.partition("@")
    if isinstance(operator, Teacher | Sparse):
        return teacher
    inside = (
        f"{operator.name} of {teacher.removeprefix(f'{sublayer}.')}"
        if isinstance(operator, Quantized)
        else operator.name
    )
    return f"{sublayer}.{inside}" + (f"@{kind}" if kind and isinstance(operator, Heads) else "")


def teacher_keys(supernet: Supernet) -> list[dict[Sublayer, str]]:
    """Keys of a teacher's own sublayers, by block; layers of different kinds of attention differ."""
    full, own = supernet.largest(), supernet.operators
    kinds = supernet.config.layer_types if supernet.mixes_attention else [""] * full.num_layers
    found: list[dict[Sublayer, str]] = []
    for layer, kind in zip(full.layers, kinds, strict=True):
        plain: dict[Sublayer, Operator] = {"attention": Heads(*layer.shape[:3]), "mlp": Ffn(layer.ffn)}
        if own is not None:
            before = {sublayer: own.blocks[layer.index].of(sublayer) for sublayer in SUBLAYERS}
            plain |= {s: o for s, o in before.items() if not isinstance(o, Teacher | Sparse | Heads | Ffn)}
        found.append({s: key_of(f"{s}.@{kind}" if kind and s == "attention" else s, s, o) for s, o in plain.items()})
    return found
