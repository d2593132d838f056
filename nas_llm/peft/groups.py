"""Which weights carry adapters, and which of those share one rank.

By what a weight reads and writes, the same in every family: ``attention_in`` (query, key and value projections),
``attention_out``, ``ffn_in`` (up and gate), ``ffn_out`` (down), ``lm_head`` and ``embedding``; ``linear`` maps the
residual stream to itself: in a sublayer's place in a network of operators, from one basis to the next in a rotated one.
LoNAS and Shears group q, k, v and up, gate in this way (paper 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from nas_llm.models.axes import Layout, layout_axes
from nas_llm.models.elastic import ElasticModule
from nas_llm.models.supernet import Supernet

GroupBy = Literal["role", "module"]
FFN, HIDDEN = "ffn", "hidden"


@dataclass(frozen=True)
class Target:
    """A module that carries an adapter: its name in the model, its block (None outside), its group, and its layouts
    as (out, in)."""

    name: str
    module: nn.Module
    layer: int | None
    group: str
    out: Layout
    into: Layout

    @property
    def suffix(self) -> str:
        """The last part of its name, as peft's ``target_modules`` wants it."""
        return self.name.rpartition(".")[2]


def targets_of(
    supernet: Supernet, suffixes: Sequence[str] | None, *, embeddings: bool, group_by: GroupBy
) -> list[Target]:
    """The weights that carry adapters, in the order of the model.

    ``suffixes`` names them by the ends of their names; None takes every matrix but the embeddings.

    Raises:
        ValueError: a suffix that matches no matrix of the model, or an empty list.
    """
    every = _matrices(supernet, group_by)
    wanted = [target for target in every if embeddings or not isinstance(target.module, nn.Embedding)]
    if suffixes is None:
        return wanted
    names = sorted({target.suffix for target in every})
    if not suffixes:
        raise ValueError(f"peft.target_modules=[]: name at least one of {', '.join(names)}, or set it to null for all")
    for suffix in suffixes:
        if not any(_ends(target.name, suffix) for target in every):
            near = get_close_matches(suffix, names, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"peft.target_modules: {suffix!r} matches no matrix of {type(supernet.model).__name__}{hint}; "
                f"there are {', '.join(names)}"
            )
    return [target for target in every if any(_ends(target.name, suffix) for suffix in suffixes)]


def _ends(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _matrices(supernet: Supernet, group_by: GroupBy) -> list[Target]:
    layer_of = {id(module): i for i, layer in enumerate(supernet.layer_modules) for module in layer}
    inside = layer_of.keys() | {id(module) for module in supernet.shared_modules}
    found = []
    for name, module in supernet.model.named_modules():
        if id(module) not in inside or not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            continue
        assert isinstance(module, ElasticModule)
        first, second = module.elastic_layouts["weight"]
        # An embedding is (vocabulary, hidden) and a Conv1D (in, out): both the other way round.
        out, into = (first, second) if isinstance(module, nn.Linear) else (second, first)
        layer = layer_of.get(id(module))
        group = _role(out, into, module, layer) if group_by == "role" else _inside_block(name, layer)
        found.append(Target(name, module, layer, group, out, into))
    return found


def _inside_block(name: str, layer: int | None) -> str:
    return name if layer is None else name.split(f".{layer}.", 1)[1]


def _role(out: Layout, into: Layout, module: nn.Module, layer: int | None) -> str:
    if layer is None:
        return "embedding" if isinstance(module, nn.Embedding) else "lm_head"
    writes, reads = layout_axes(out), layout_axes(into)
    if HIDDEN in writes and HIDDEN in reads:
        return "linear"
    if FFN in writes or FFN in reads:
        return "ffn_in" if FFN in writes else "ffn_out"
    return "attention_in" if HIDDEN in reads else "attention_out"
