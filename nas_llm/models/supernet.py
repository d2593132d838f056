"""The super-network: a Hugging Face decoder whose sub-networks run, are counted, sorted and extracted by the axes of
its weights.

The model stays what it was; :meth:`Supernet.activate` sets, for the time of a ``with`` block, which units of every
axis its modules see, the constants that follow the sizes (head counts, rotary frequencies, embedding scale), the
kept blocks with contiguous cache indices, and the configuration of the small model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.activation import activated
from nas_llm.models.attached import Attached, attached_to, with_ranks
from nas_llm.models.axes import count
from nas_llm.models.counting import Costs
from nas_llm.models.elastic import ElasticModule, make_elastic, make_plain, plain_copy
from nas_llm.models.families import family_of
from nas_llm.models.fitting import refuse_cut_operators, refuse_cut_weights, refuse_head_dims, refuse_rotated
from nas_llm.models.network_parts import NetworkParts
from nas_llm.models.order import Order, read_order, write_order
from nas_llm.models.origin import largest_of, operators_of, origin_of
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.rotated_stream import is_rotated
from nas_llm.models.saving import save_pretrained
from nas_llm.models.sorting import attached_with_orders, permute, refuse_permuted, with_orders
from nas_llm.operator_network import OperatorNetwork, Sublayer


class Supernet(nn.Module):
    """A super-network around a causal language model, which it changes in place (its weights and its function stay).

    Raises:
        ValueError: the family, or one of the model's parameters, is not in the table of ``models/families.py``; the
            model has no output head, or another super-network is around it. The model is as it was then.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        _refuse_wrapped(model)
        self.model = model
        self.config = model.config
        self.family = model.config.model_type
        row = family_of(model.config)
        _refuse_headless(model)
        self._full = largest_of(model)
        self._operators = operators_of(model)
        self._rotated = is_rotated(model)
        self.elastic_axes = row.elastic_axes(model.config)
        if self._operators is not None:  # operators are whole
            self.elastic_axes = frozenset({"layers"})
        if self._rotated:  # every block reads the basis that the one before it writes
            self.elastic_axes = frozenset()
        self._parts = NetworkParts.of(model, self._full, has_operators=self._operators is not None)
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, ElasticModule)
        self._embedding = embedding.elastic_layouts["weight"]
        self._order = Order({})
        self._costs = Costs.of(self._parts.shared, self._parts.in_layer, self._full)
        self._attached: tuple[Attached, ...] = ()
        self._base_costs = self._costs
        self.made_sparse: frozenset[str] = frozenset()  # names of modules, whose zeros are to stay

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> Supernet:
        """Loads any transformers decoder of a known family: a directory, a hub name, or the name of an embedded model.

        ``dtype`` None keeps float32, the precision in which super-networks are trained.

        Raises:
            ValueError: no such model, or its family is not known.
        """
        from nas_llm.models.loading import from_pretrained

        model = from_pretrained(
            name_or_path,
            dtype=dtype or torch.float32,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        return cls(model)

    # ---------------------------------------------------------------- running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward pass."""
        return self.model(*args, **kwargs)

    def largest(self) -> Architecture:
        """The whole network."""
        return self._full

    @property
    def layer_order(self) -> tuple[int, ...]:
        """Blocks from the most to the least important; their own order while no importance of layers is known."""
        return self._order.layers or tuple(range(self._full.num_layers))

    @property
    def order(self) -> Order:
        """Where every unit stood before the network was sorted."""
        return self._order

    @contextmanager
    def activate(self, architecture: Architecture) -> Iterator[PreTrainedModel]:
        """Runs as the small model would, inside the block; nests, and restores on errors.

        Backward passes belong inside the block too: gradient checkpointing runs the forward pass again.

        Raises:
            ValueError: the architecture does not fit into this network.
        """
        self._refuse_misfit(architecture)
        with self._activated(architecture) as model:
            yield model

    @contextmanager
    def activate_block(self, index: int) -> Iterator[PreTrainedModel]:
        """One whole block alone, for a walk that hands it what it reads; nests, and restores on errors."""
        with self._activated(Architecture(self._full.hidden, (self._full.layers[index],))) as model:
            yield model

    def _activated(self, architecture: Architecture) -> AbstractContextManager[PreTrainedModel]:
        return activated(
            self.model,
            self._parts,
            architecture,
            self._full,
            attached=self._attached,
            has_operators=self._operators is not None,
        )

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        """The sub-network as a plain model that shares nothing with the super-network.

        ``config.nas_llm`` says what it was cut from; with it :func:`nas_llm.save_pretrained` decides whether the stock
        class can load it.
        """
        with self.activate(architecture) as model:
            small = plain_copy(model)
        small.config.nas_llm = self.origin(architecture)
        return small

    def origin(self, architecture: Architecture) -> dict[str, Any]:
        """The stock configuration that the weights first came from, and the sub-network as a choice of its units; of a
        network of operators that choice before they took their places, and the operators."""
        return origin_of(self.config, architecture, self._operators, is_rotated=self._rotated)

    def release(self) -> PreTrainedModel:
        """The whole network as a plain model, without a copy: that which this super-network was put around, and which
        it is no longer around. Nothing but the model may be used afterwards.

        Raises:
            ValueError: it has adapters.
        """
        if self._attached:
            raise ValueError("this super-network has adapters: take them off first (nas_llm.peft.adapters.remove)")
        for module in self.model.modules():
            make_plain(module)
        return self.model

    @property
    def shared_modules(self) -> tuple[ElasticModule, ...]:
        """Modules with weights outside of the blocks: embeddings, the last norm, the output head."""
        return tuple(self._parts.shared)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The transformer blocks of the whole network, by their index; which of them run is ``activate``'s matter."""
        return self._parts.blocks

    @property
    def layer_modules(self) -> tuple[tuple[ElasticModule, ...], ...]:
        """Modules with weights of every block of the whole network."""
        return tuple(tuple(layer) for layer in self._parts.in_layer)

    # ---------------------------------------------------------------- sublayers, where operators stand

    @property
    def operators(self) -> OperatorNetwork | None:
        """What stands in the place of every sublayer; None where all are the family's own."""
        return self._operators

    @property
    def sublayers(self) -> Mapping[Sublayer, str | None]:
        """Names inside a block of the attention and the feed-forward module; None: the family has no such module."""
        return {"attention": self._parts.row.attention, "mlp": self._parts.row.mlp}

    @property
    def sublayer_norms(self) -> Mapping[Sublayer, tuple[str, ...]]:
        """Names inside a block of the norms that serve that sublayer alone."""
        return {"attention": self._parts.row.attention_norms, "mlp": self._parts.row.mlp_norms}

    @property
    def layers_path(self) -> str:
        """Name of the list of blocks in the model."""
        return self._parts.row.layers

    @property
    def is_rotary(self) -> bool:
        return self._parts.row.rotary is not None

    @property
    def mixes_attention(self) -> bool:
        """Whether layers differ in their kind of attention (sliding, full)."""
        return len(set(getattr(self._parts.config, "layer_types", None) or ())) > 1

    def attention_constants(self, choice: LayerChoice, config: PreTrainedConfig | None = None) -> dict[str, Any]:
        """Attributes that the attention module of a block of this shape reads beside its weights."""
        return self._parts.attention_constants(choice, self._parts.config if config is None else config)

    @property
    def is_rotated(self) -> bool:
        """Whether the residual stream changes its basis at every sublayer (``models/rotated_stream.py``), so that the
        network is kept whole."""
        return self._rotated

    # ---------------------------------------------------------------- adapters

    @property
    def attached(self) -> tuple[Attached, ...]:
        """The modules of low-rank adapters that follow the architecture."""
        return self._attached

    def attach(self, modules: Sequence[Attached]) -> None:
        """Lets modules that were put beside the network's own follow the architecture: low-rank adapters, whose ranks
        become sizes of the largest network.

        Raises:
            ValueError: others are attached already.
        """
        if self._attached:
            raise ValueError(
                "this super-network has adapters already: take them off first (nas_llm.peft.adapters.remove)"
            )
        full = with_ranks(self._full, modules)
        for attached in modules:
            make_elastic(attached.module, attached.layouts, attached.full(full))
        self._attached = tuple(modules)
        in_layer = [[*layer, *attached_to(index, modules)] for index, layer in enumerate(self._parts.in_layer)]
        self._full = full
        self._costs = Costs.of([*self._parts.shared, *attached_to(None, modules)], in_layer, full)

    def detach(self) -> None:
        """Inverse of :meth:`attach`: the modules are plain again, and whole."""
        for attached in self._attached:
            make_plain(attached.module)
        self._attached = ()
        self._full, self._costs = self._full.without_ranks, self._base_costs

    def _untied_by_merging(self, architecture: Architecture) -> int:
        """Parameters that an output head gets of its own where an adapter stands beside the one that it shares."""
        if not self.config.tie_word_embeddings:
            return 0
        vocabulary = self._embedding[0]
        adapted = any(vocabulary in layout for a in self._attached for layout in a.layouts.values())
        return count(self._embedding, {"hidden": architecture.hidden}) if adapted else 0

    # ---------------------------------------------------------------- counting (shapes alone)

    def num_parameters(self, architecture: Architecture, *, adapters: bool = True) -> int:
        """Exact number of parameters of the extracted model, tied weights counted once; without ``adapters`` that of
        the model into which they are merged, where an adapted output head is no longer tied.

        Raises:
            ValueError: the architecture is larger than the network.
        """
        if adapters:
            return self._costs.num_parameters(architecture)
        untied = self._untied_by_merging(architecture)
        return self._base_costs.num_parameters(architecture.without_ranks) + untied

    @property
    def num_base_parameters(self) -> int:
        """Parameters of the whole network without adapters, tied weights counted once."""
        return self._base_costs.num_parameters(self._full.without_ranks)

    def macs(self, architecture: Architecture, *, batch_size: int, sequence_length: int, adapters: bool = True) -> int:
        """Multiply-accumulates of a forward pass: projections, output head, attention (full square, no mask); without
        ``adapters`` those of the model into which they are merged.

        Raises:
            ValueError: the architecture is larger than the network, or a size is below 1.
        """
        _refuse_below_one(batch_size=batch_size, sequence_length=sequence_length)
        if adapters:
            return self._costs.macs(architecture, batch_size, sequence_length)
        return self._base_costs.macs(architecture.without_ranks, batch_size, sequence_length)

    def weight_bytes(self, architecture: Architecture, *, adapters: bool = True) -> int:
        """Bytes of the extracted model's weights in the precision they have now, packed where they are quantised;
        without ``adapters`` those of the model into which they are merged, in its precision."""
        itemsize, kept = self.model.dtype.itemsize, {layer.index for layer in architecture.layers}
        modules = [self._parts.shared, *(layer for index, layer in enumerate(self._parts.in_layer) if index in kept)]
        packed = [m for layer in modules for m in layer if isinstance(m, QuantizedLinear)]
        saved = sum(module.num_weights * itemsize - module.weight_bytes for module in packed)
        dense = self.num_parameters(architecture, adapters=adapters) * itemsize - saved
        if not (adapters and self._attached):
            return dense
        beside = self._costs.num_parameters(architecture) - self._base_costs.num_parameters(architecture.without_ranks)
        return dense + beside * (next(self._attached[0].module.parameters()).itemsize - itemsize)

    def kv_cache_bytes(self, architecture: Architecture, *, batch_size: int, sequence_length: int) -> int:
        """Bytes of a full key/value cache in the model's precision. Raises as :meth:`macs`."""
        _refuse_below_one(batch_size=batch_size, sequence_length=sequence_length)
        architecture.refuse_misfit(self._full)
        units = sum(2 * layer.kv_groups * layer.head_dim for layer in architecture.layers)
        return units * batch_size * sequence_length * self.model.dtype.itemsize

    # ---------------------------------------------------------------- quantised layers

    def quantize_module(self, name: str, quantized: QuantizedLinear) -> None:
        """Puts ``quantized`` in the place of the linear layer ``name`` of the model, whose shape it has.

        The dense layer is emptied. No sub-network may cut that weight from then on: :meth:`activate` and :meth:`sort`
        refuse it.
        """
        before: Any = self.model.get_submodule(name)
        assert (before.in_features, before.out_features) == (quantized.in_features, quantized.out_features)
        make_elastic(quantized, before.elastic_layouts, before.elastic_full)
        quantized.train(before.training)
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, quantized)
        before._parameters.clear()  # its memory goes now, whoever still names the layer
        assert isinstance(quantized, ElasticModule)
        self._parts.replace(before, quantized)

    def refuse_cut(self, architecture: Architecture, modules: Iterable[nn.Module] | None = None) -> None:
        """Refuses an architecture that would cut a quantised weight: its groups and packed codes are whole.

        ``modules`` are those that are to be quantised; None: those that are.

        Raises:
            ValueError: naming the weight and the axes that are cut.
        """
        refuse_cut_weights(architecture, self.model, self._parts, modules)

    # ---------------------------------------------------------------- sorting

    @torch.no_grad()
    def sort(self, importance: Mapping[str, Tensor]) -> None:
        """Permutes the units of every scored axis in place, the most important first; the network's function stays.

        Keys: ``hidden`` (hidden,), ``layers.{i}.kv_groups`` (groups,), ``layers.{i}.heads_per_group`` (groups, heads
        per group), ``layers.{i}.ffn`` (ffn,), ``layers`` (depth,) for the order in which layers are kept.

        Raises:
            ValueError: an unknown key, a wrong shape, scores that are not finite, an axis of a quantised weight, or
                anything but ``layers`` of a network of operators; nothing has been permuted then.
        """
        if self._operators is not None and importance.keys() - {"layers"}:
            raise ValueError(
                "the sublayers of a network of operators are whole, and their units stay where they are: order its "
                "layers alone, importance=block or importance=none"
            )
        order = Order.by_importance(importance, self._full)
        self._permute(order)
        self._order = self._order.then(order)

    @torch.no_grad()
    def sort_attached(self) -> None:
        """Brings the attached modules, whose values are those of the network before it was sorted, into its order."""
        permute(attached_with_orders(self._order.again(), self._parts, self._attached))

    @torch.no_grad()
    def unsort(self) -> None:
        """Brings every unit back to its place before the network was sorted.

        Raises:
            ValueError: a quantised weight would have to be permuted; nothing has been then.
        """
        self._permute(self._order.inverse())
        self._order = Order({})

    def _permute(self, order: Order) -> None:
        modules = with_orders(order, self._parts, self._attached)
        refuse_permuted(self.model, modules)
        permute(modules)

    # ---------------------------------------------------------------- saving

    def save(self, path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Writes a Hugging Face directory (the sorted full network) with the order of its axes beside it.

        Raises:
            ValueError: as :func:`nas_llm.save_pretrained`.
        """
        save_pretrained(
            self.extract(self._full),
            path,
            tokenizer=tokenizer,
            extra=lambda folder: write_order(self._order, folder),
            setting="run_dir",
        )

    @classmethod
    def load(cls, path: str | Path, **kwargs: Any) -> Supernet:
        """Inverse of :meth:`save`; ``kwargs`` go to :meth:`from_pretrained`. Without an axes order it is unsorted."""
        supernet = cls.from_pretrained(path, **kwargs)
        supernet._order = read_order(Path(path), supernet._full)
        return supernet

    # ---------------------------------------------------------------- inner

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Supernet:
        """Moves and casts, except that what the code computes beside the weights (rotary frequencies, embedding
        scales) keeps its precision, as it does where the stock class is loaded in another."""
        constants = [
            (module, name, module._buffers[name])
            for module in self.modules()
            for name in module._non_persistent_buffers_set
        ]
        super()._apply(fn, recurse)
        for module, name, before in constants:
            after = module._buffers[name]
            if before is not None and after is not None and before.dtype != after.dtype:
                module._buffers[name] = before.to(after.device)
        return self

    def _refuse_misfit(self, architecture: Architecture) -> None:
        architecture.refuse_misfit(self._full)
        self.refuse_cut(architecture)
        if self._rotated:
            refuse_rotated(architecture, self._full)
        if self._operators is not None:
            refuse_cut_operators(architecture, self._full)
        else:
            refuse_head_dims(architecture, self._full, self.elastic_axes, self.family)


def _refuse_below_one(**sizes: int) -> None:
    for key, size in sizes.items():
        if size < 1:
            raise ValueError(f"{key}={size}: it must be at least 1")


def _refuse_wrapped(model: nn.Module) -> None:
    if any(isinstance(module, ElasticModule) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__}: a Supernet is around this model already: use that one, or pass a model of its "
            "own, as Supernet(supernet.extract(supernet.largest()))"
        )


def _refuse_headless(model: PreTrainedModel) -> None:
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{type(model).__name__} has no output head, so it is no causal language model: pass one, as "
            "Supernet(AutoModelForCausalLM.from_pretrained(path)) or Supernet.from_pretrained(path)"
        )
