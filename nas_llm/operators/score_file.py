"""Scores of operators, kept line by line beside them, so that each is measured once (``operators/scores.jsonl``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nas_llm.json_lines import append_line, read_lines
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Operator, Teacher
from nas_llm.operators import Place
from nas_llm.operators.scores import Batch, SwapScore, swap_scores

FILE = "scores.jsonl"
Key = tuple[int, str, str, str]


@dataclass(frozen=True)
class ScoreFile:
    """``measured_on`` names the data: a content hash. Scores on other data, or of an operator that was made again since
    (``made`` gives what tells one from another), are measured anew."""

    path: Path
    measured_on: str
    made: Callable[[Place, Operator], str]

    def known(self) -> dict[Key, SwapScore]:
        """What has been measured already, by layer, sublayer, operator and its making.

        Raises:
            ValueError: a line is damaged.
        """
        found: dict[Key, SwapScore] = {}
        for line in read_lines(self.path):
            if line["data"] == self.measured_on:
                found[line["layer"], line["sublayer"], line["operator"], line["made"]] = SwapScore(
                    line["global_mse"], line["loss_change"]
                )
        return found

    def complete(
        self,
        supernet: Supernet,
        operators: Mapping[Place, Sequence[Operator]],
        module_of: Callable[[Place, Operator], nn.Module],
        batches: Sequence[Batch],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> dict[tuple[Place, Operator], SwapScore]:
        """The scores of all these operators; those that are not known are measured and written, one by one.

        Raises:
            ValueError: as :func:`~nas_llm.operators.scores.swap_scores`.
        """
        known = self.known()
        found: dict[tuple[Place, Operator], SwapScore] = {}
        missing: dict[Place, list[Operator]] = {}
        for place, pool in operators.items():
            for operator in pool:
                score = known.get(self._key(place, operator))
                if isinstance(operator, Teacher):
                    found[place, operator] = SwapScore(0.0, 0.0)
                elif score is None:
                    missing.setdefault(place, []).append(operator)
                else:
                    found[place, operator] = score
        of = sum(map(len, missing.values()))
        if not of:
            return found
        for done, (place, operator, score) in enumerate(swap_scores(supernet, missing, module_of, batches), start=1):
            layer, sublayer, name, made = self._key(place, operator)
            line = {"layer": layer, "sublayer": sublayer, "operator": name, "made": made, "data": self.measured_on}
            append_line(self.path, line | score.to_dict())
            found[place, operator] = score
            progress(done, of)
        return found

    def _key(self, place: Place, operator: Operator) -> Key:
        return (*place, operator.name, "" if isinstance(operator, Teacher) else self.made(place, operator))
