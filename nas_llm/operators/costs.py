"""Parameters, bytes of weights, bytes of the key/value cache and multiply-accumulates of every operator in every place
(UNAST, paper 3, section 3.3): arithmetic on shapes, no tensor touched.

A place costs its sublayer's module and the norms that serve it alone, which identity drops. With h the residual width,
n x d the query heads and their channels, g the KV groups, b sequences of s tokens:

    params     sum over the module's weights of their sizes; linear h^2 + h; sparse and quantised as the teacher
    memory     params x bytes of a weight; quantised projections packed: codes, scales and zero points. Sparse weights
               are stored dense: zeros take as much room as other values
    kv_cache   2 g d b s x bytes of a weight, without regard to a sliding window
    macs       b s (sum of the projections + 2 s n d), attention over the full square; sparse counts dense
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from nas_llm.architecture import LayerChoice
from nas_llm.models.axes import count, layout_axes, sizes_of
from nas_llm.models.bit_packing import packed_width
from nas_llm.models.elastic import ElasticModule
from nas_llm.models.operator_modules import refuse_operator
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import (
    SUBLAYERS,
    BlockOperators,
    Identity,
    Linear,
    Operator,
    Quantized,
    Sublayer,
    Teacher,
)
from nas_llm.operators import Place
from nas_llm.operators.cost_table import CostTable
from nas_llm.operators.projections import SublayerProjections, sublayer_projections

_NONE = SublayerProjections({}, {})  # of what is no module of its own, where nothing is quantised


@dataclass(frozen=True)
class OperatorCosts:
    """Four tables of costs over the same places and operators."""

    params: CostTable
    memory: CostTable
    kv_cache: CostTable
    macs: CostTable

    @classmethod
    def of(
        cls,
        supernet: Supernet,
        operators: Mapping[Place, Sequence[Operator]],
        *,
        batch_size: int,
        sequence_length: int,
    ) -> OperatorCosts:
        """Costs of a pool, on the meta device too; the teacher's are in every table whether or not it is in the pool.

        Sums with the constants are those of ``Supernet(assemble(...))`` (its ``num_parameters``, ``weight_bytes``,
        ``kv_cache_bytes`` and ``macs``); adapters count as merged.

        Args:
            supernet: the teacher.
            operators: by place; a place that is left out keeps the teacher's sublayer.
            batch_size: sequences, of the cache and the multiply-accumulates.
            sequence_length: tokens of each.

        Raises:
            ValueError: a size below 1, or an operator that does not fit into its place.
        """
        full = supernet.largest().without_ranks
        tokens = {"batch_size": batch_size, "sequence_length": sequence_length}
        totals = {
            "params": supernet.num_parameters(full, adapters=False),
            "memory": supernet.weight_bytes(full, adapters=False),
            "kv_cache": supernet.kv_cache_bytes(full, **tokens),
            "macs": supernet.macs(full, **tokens, adapters=False),
        }
        itemsize = supernet.model.dtype.itemsize
        cached = batch_size * sequence_length * itemsize
        measures: dict[str, tuple[str, Callable[[_Place, Operator], int]]] = {
            "params": ("parameters", _Place.params),
            "memory": ("B", _Place.memory),
            "kv_cache": ("B", lambda place, operator: 2 * place.cached_channels(operator) * cached),
            "macs": ("MACs", lambda place, operator: place.macs(operator, batch_size, sequence_length)),
        }
        blocks = [_places(supernet, layer) for layer in range(full.num_layers)]
        chosen: dict[tuple[int, Sublayer], dict[Operator, _Place]] = {}
        for (layer, sublayer), pool in operators.items():
            for operator in pool:
                if not isinstance(operator, Teacher):
                    refuse_operator(supernet, layer, sublayer, operator)
            chosen[layer, sublayer] = dict.fromkeys((Teacher(), *pool), blocks[layer][sublayer])
        tables = {}
        for name, (unit, measure) in measures.items():
            values = {
                place: {operator: measure(there, operator) for operator, there in pool.items()}
                for place, pool in chosen.items()
            }
            body = sum(measure(place, Teacher()) for block in blocks for place in block.values())
            of_places = sum(costs[Teacher()] for costs in values.values())
            tables[name] = CostTable(name, unit, values, rest=body - of_places, outside=totals[name] - body)
        return cls(**tables)

    @property
    def tables(self) -> dict[str, CostTable]:
        """By the names that budgets have."""
        return {table.name: table for table in (self.params, self.memory, self.kv_cache, self.macs)}


@dataclass(frozen=True)
class _Place:
    """What an operator replaces (``modules``, with ``projections`` among them) and what identity drops beside it
    (``norms``)."""

    full: LayerChoice
    hidden: int
    itemsize: int
    sublayer: Sublayer
    modules: tuple[ElasticModule, ...]
    projections: SublayerProjections
    norms: tuple[ElasticModule, ...]

    def params(self, operator: Operator) -> int:
        if isinstance(operator, Identity):
            return 0
        sizes = self._sizes(operator)
        kept = self.norms if isinstance(operator, Linear) else (*self.modules, *self.norms)
        matrix = self.hidden * (self.hidden + 1) if isinstance(operator, Linear) else 0
        return matrix + sum(count(layout, sizes) for module in kept for layout in module.elastic_layouts.values())

    def memory(self, operator: Operator) -> int:
        dense = self.params(operator) * self.itemsize
        if isinstance(operator, Identity | Linear):
            return dense
        packed = [(m.num_weights, m.weight_bytes) for m in self.modules if isinstance(m, QuantizedLinear)]
        if isinstance(operator, Quantized):
            concerned = self.projections.dense(operator.projections)
            if not concerned:
                raise ValueError(
                    f"layer {self.full.index}, {self.sublayer}: operator {operator.name}: there are no dense linear "
                    "layers (nn.Linear) to quantise; choose a pool without quantised operators there"
                )
            for projection in concerned.values():
                out, width = projection.weight.shape
                packed.append((out * width, self._packed(operator, out, width)))
        return dense - sum(weights * self.itemsize - held for weights, held in packed)

    def cached_channels(self, operator: Operator) -> int:
        """Of the keys alone: g d."""
        choice = self._choice(operator)
        return choice.kv_groups * choice.head_dim if self.sublayer == "attention" else 0

    def macs(self, operator: Operator, batch_size: int, sequence_length: int) -> int:
        if isinstance(operator, Identity):
            return 0
        if isinstance(operator, Linear):
            return batch_size * sequence_length * self.hidden * self.hidden
        sizes, choice = self._sizes(operator), self._choice(operator)
        projected = sum(count(m.elastic_layouts["weight"], sizes) for m in self.modules if _is_projection(m))
        attended = choice.heads * choice.head_dim if self.sublayer == "attention" else 0
        return batch_size * sequence_length * (projected + 2 * sequence_length * attended)

    def _choice(self, operator: Operator) -> LayerChoice:
        return BlockOperators(**{self.sublayer: operator}).sizes(self.full)

    def _sizes(self, operator: Operator) -> dict[str, int]:
        return sizes_of(self.hidden, self._choice(operator))

    def _packed(self, operator: Quantized, out: int, width: int) -> int:
        """Bytes as in ``models/quantized_linear.py``."""
        if width % operator.group_size:
            raise ValueError(
                f"layer {self.full.index}, {self.sublayer}: operator {operator.name}: the group size "
                f"{operator.group_size} does not divide the width {width} of a projection"
            )
        groups = width // operator.group_size
        words = out * packed_width(width, operator.bits) + packed_width(out, operator.bits) * groups
        return 4 * words + out * groups * self.itemsize


def _places(supernet: Supernet, layer: int) -> dict[Sublayer | None, _Place]:
    """The two sublayers of a block, and (None) what neither replaces."""
    full = supernet.largest().without_ranks
    block, weighted = supernet.blocks[layer], list(supernet.layer_modules[layer])
    found: dict[Sublayer | None, _Place] = {}

    def take(
        modules: Sequence[ElasticModule],
        norms: Sequence[ElasticModule],
        sublayer: Sublayer | None,
        projections: SublayerProjections = _NONE,
    ) -> None:
        for module in (*modules, *norms):
            weighted.remove(module)
        found[sublayer] = _Place(
            full.layers[layer],
            full.hidden,
            supernet.model.dtype.itemsize,
            sublayer or "mlp",
            tuple(modules),
            projections,
            tuple(norms),
        )

    for sublayer in SUBLAYERS:
        path = supernet.sublayers[sublayer]
        projections = _NONE if path is None else sublayer_projections(supernet, layer, sublayer)
        if path is None:  # its projections lie in the block itself
            own = [m for m in weighted if any("ffn" in layout_axes(d) for d in m.elastic_layouts["weight"])]
        else:
            inside = set(block.get_submodule(path).modules())
            own = [module for module in weighted if module in inside]
        norms = {getattr(block, name) for name in supernet.sublayer_norms[sublayer]}
        take(own, [module for module in weighted if module in norms], sublayer, projections)
    take((), tuple(weighted), None)
    return found


def _is_projection(module: ElasticModule) -> bool:
    return isinstance(module, nn.Linear | Conv1D)
