"""One cost of every operator in every place, as numbers that add up to that of a network (UNAST, paper 3, section 3.3).

    cost of a network = sum over places of the operator's cost + the rest of the blocks + what lies outside of them

The rest of the blocks is what no operator replaces: norms that serve both sublayers, places without a choice. The paper
sets its budget on the body, the blocks alone; ``outside`` is the embedding, the last norm and the output head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nas_llm.operator_network import Operator, OperatorNetwork, Teacher
from nas_llm.operators import Place


@dataclass(frozen=True)
class CostTable:
    """``values``: by place and operator; ``rest`` of the blocks and ``outside`` are constants. All in one unit."""

    name: str
    unit: str
    values: Mapping[Place, Mapping[Operator, float]]
    rest: float
    outside: float

    @property
    def teacher_body(self) -> float:
        """Cost of the teacher's blocks."""
        return self.rest + sum(costs[Teacher()] for costs in self.values.values())

    @property
    def teacher(self) -> float:
        """Cost of the whole teacher."""
        return self.teacher_body + self.outside

    @property
    def least(self) -> float:
        """The smallest sum over places that there is, without the constants."""
        return sum(min(costs.values()) for costs in self.values.values())

    @property
    def most(self) -> float:
        """The largest."""
        return sum(max(costs.values()) for costs in self.values.values())

    def body(self, network: OperatorNetwork) -> float:
        """Cost of a network's blocks.

        Raises:
            ValueError: an operator that the table does not have in its place.
        """
        return self.rest + sum(self._of(place, operator) for place, operator in network.operators.items())

    def whole(self, network: OperatorNetwork) -> float:
        """Cost of the whole network. Raises as :meth:`body`."""
        return self.body(network) + self.outside

    def _of(self, place: Place, operator: Operator) -> float:
        costs = self.values.get(place, {Teacher(): 0})  # a place without a choice is in the rest
        if operator not in costs:
            layer, sublayer = place
            raise ValueError(
                f"layer {layer}, {sublayer}: the table of {self.name} has no operator {operator.name}, only "
                f"{', '.join(known.name for known in costs)}"
            )
        return costs[operator]
