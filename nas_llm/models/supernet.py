"""The super-network: a Hugging Face decoder whose sub-networks run, are counted, sorted and extracted by the axes of
its weights.

The model stays what it was; :meth:`Supernet.activate` sets, for the time of a ``with`` block, which units of every
axis its modules see, the constants that follow the sizes (head counts, rotary frequencies, embedding scale), the
kept blocks with contiguous cache indices, and the configuration of the small model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.attached import Attached, with_ranks
from nas_llm.models.axes import Fixed, Orders, Sizes, count, rank_sizes, reorder, sizes_of
from nas_llm.models.counting import Costs
from nas_llm.models.elastic import ElasticModule, Layouts, active_parameters, make_elastic, make_plain
from nas_llm.models.families import HIDDEN, Row, family_of
from nas_llm.models.order import Order, read_order, write_order
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.rotated_stream import is_rotated
from nas_llm.operator_network import OperatorNetwork, Sublayer

_ABSENT = object()
Undo = list[Callable[[], None]]


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
        self._row = family_of(model.config)
        _refuse_headless(model)
        self._full = largest_of(model)
        self._whole_config = copy.copy(model.config)  # activation changes the one that the modules share
        self._operators = operators_of(model)
        own = self._row.elastic_axes(model.config)
        self._rotated = is_rotated(model)
        self.elastic_axes = own if self._operators is None else frozenset({"layers"})  # operators are whole
        if self._rotated:  # every block reads the basis that the one before it writes
            self.elastic_axes = frozenset()
        self._blocks: list[nn.Module] = list(model.get_submodule(self._row.layers).children())
        self._attention = [block.get_submodule(self._row.attention) for block in self._blocks]
        self._shared: list[ElasticModule] = []
        self._in_layer: list[list[ElasticModule]] = []
        self._indexed = [[m for m in block.modules() if "layer_idx" in vars(m)] for block in self._blocks]
        self._make_elastic()
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, ElasticModule)
        self._embedding = embedding.elastic_layouts["weight"]
        self._order = Order({})
        self._costs = Costs.of(self._shared, self._in_layer, self._full)
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

    @contextmanager
    def _activated(self, architecture: Architecture) -> Iterator[PreTrainedModel]:
        undo: Undo = []
        try:
            self._apply_architecture(architecture, undo)
            yield self.model
        finally:
            for restore in reversed(undo):
                restore()

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        """The sub-network as a plain model that shares nothing with the super-network.

        ``config.nas_llm`` says what it was cut from; with it :func:`nas_llm.save_pretrained` decides whether the stock
        class can load it.
        """
        with self.activate(architecture) as model:
            replaced: dict[int, Any] = {}
            for module in model.modules():
                if not isinstance(module, ElasticModule):
                    continue
                for name, active in active_parameters(module).items():
                    full = module._parameters[name]
                    assert full is not None
                    if id(full) not in replaced:  # tied weights stay tied
                        small_weight = active.detach().clone(memory_format=torch.contiguous_format)
                        replaced[id(full)] = nn.Parameter(small_weight, requires_grad=full.requires_grad)
            small = copy.deepcopy(model, replaced)
        for module in small.modules():
            make_plain(module)
        small.config.nas_llm = self.origin(architecture)
        return small

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
        return tuple(self._shared)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The transformer blocks of the whole network, by their index; which of them run is ``activate``'s matter."""
        return tuple(self._blocks)

    @property
    def layer_modules(self) -> tuple[tuple[ElasticModule, ...], ...]:
        """Modules with weights of every block of the whole network."""
        return tuple(tuple(layer) for layer in self._in_layer)

    # ---------------------------------------------------------------- sublayers, where operators stand

    @property
    def operators(self) -> OperatorNetwork | None:
        """What stands in the place of every sublayer; None where all are the family's own."""
        return self._operators

    @property
    def sublayers(self) -> Mapping[Sublayer, str | None]:
        """Names inside a block of the attention and the feed-forward module; None: the family has no such module."""
        return {"attention": self._row.attention, "mlp": self._row.mlp}

    @property
    def sublayer_norms(self) -> Mapping[Sublayer, tuple[str, ...]]:
        """Names inside a block of the norms that serve that sublayer alone."""
        return {"attention": self._row.attention_norms, "mlp": self._row.mlp_norms}

    @property
    def layers_path(self) -> str:
        """Name of the list of blocks in the model."""
        return self._row.layers

    @property
    def is_rotary(self) -> bool:
        return self._row.rotary is not None

    @property
    def mixes_attention(self) -> bool:
        """Whether layers differ in their kind of attention (sliding, full)."""
        return len(set(getattr(self._whole_config, "layer_types", None) or ())) > 1

    def attention_constants(self, choice: LayerChoice, config: PreTrainedConfig | None = None) -> dict[str, Any]:
        """Attributes that the attention module of a block of this shape reads beside its weights."""
        read = self._whole_config if config is None else config
        return {name: constant(choice, read) for name, constant in self._row.constants.items()}

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
        in_layer = [[*layer, *self._attached_to(index)] for index, layer in enumerate(self._in_layer)]
        self._full = full
        self._costs = Costs.of([*self._shared, *self._attached_to(None)], in_layer, full)

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

    def _attached_to(self, layer: int | None) -> list[ElasticModule]:
        return [attached.module for attached in self._attached if attached.layer == layer]  # type: ignore[misc]

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
        without ``adapters`` those of the model into which they are merged."""
        itemsize, kept = self.model.dtype.itemsize, {layer.index for layer in architecture.layers}
        modules = [self._shared, *(layer for index, layer in enumerate(self._in_layer) if index in kept)]
        packed = [m for layer in modules for m in layer if isinstance(m, QuantizedLinear)]
        saved = sum(module.num_weights * itemsize - module.weight_bytes for module in packed)
        return self.num_parameters(architecture, adapters=adapters) * itemsize - saved

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
        for modules in (self._shared, *self._in_layer):
            modules[:] = [quantized if module is before else module for module in modules]  # type: ignore[misc]

    def refuse_cut(self, architecture: Architecture, modules: Iterable[nn.Module] | None = None) -> None:
        """Refuses an architecture that would cut a quantised weight: its groups and packed codes are whole.

        ``modules`` are those that are to be quantised; None: those that are.

        Raises:
            ValueError: naming the weight and the axes that are cut.
        """
        named = None if modules is None else set(modules)
        for choice in (None, *architecture.layers):
            for module in self._shared if choice is None else self._in_layer[choice.index]:
                if module not in named if named is not None else not isinstance(module, QuantizedLinear):
                    continue
                full = module.elastic_full
                sizes = {"hidden": architecture.hidden} if choice is None else sizes_of(architecture.hidden, choice)
                layouts = module.elastic_layouts["weight"]
                if any(dimension.size(full) != dimension.size(sizes) for dimension in layouts):
                    cut = ", ".join(
                        f"{axis} {size} of {full[axis]}" for axis, size in sizes.items() if size != full[axis]
                    )
                    raise ValueError(
                        f"{self._name_of(module)} is quantised, so that no sub-network may cut it; this architecture "
                        f"has {cut}: search depth (and ranks of adapters) alone, search_space=depth_only, or "
                        "quantization=none"
                    )

    def _name_of(self, module: nn.Module) -> str:
        return next(name for name, found in self.model.named_modules() if found is module)

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
        self._refuse_permuted(order)
        self._permute(self._with_orders(order))
        self._order = self._order.then(order)

    @torch.no_grad()
    def sort_attached(self) -> None:
        """Brings the attached modules, whose values are those of the network before it was sorted, into its order."""
        self._permute(self._attached_with_orders(self._order.again()))

    @torch.no_grad()
    def unsort(self) -> None:
        """Brings every unit back to its place before the network was sorted.

        Raises:
            ValueError: a quantised weight would have to be permuted; nothing has been then.
        """
        order = self._order.inverse()
        self._refuse_permuted(order)
        self._permute(self._with_orders(order))
        self._order = Order({})

    def _refuse_permuted(self, order: Order) -> None:
        for module, orders in self._with_orders(order):
            if not isinstance(module, QuantizedLinear):
                continue
            for dimension in module.elastic_layouts["weight"]:
                places = dimension.order(module.elastic_full, orders)
                if not torch.equal(places.cpu(), torch.arange(len(places))):
                    raise ValueError(
                        f"{self._name_of(module)} is quantised, so that its channels cannot be sorted: sort before "
                        "quantising, or order the layers alone, importance=block or importance=none"
                    )

    def _with_orders(self, order: Order) -> list[tuple[ElasticModule, Orders]]:
        modules = [(module, order.shared()) for module in self._shared]
        modules += [(module, order.of_layer(i)) for i, layer in enumerate(self._in_layer) for module in layer]
        return modules + self._attached_with_orders(order)

    def _attached_with_orders(self, order: Order) -> list[tuple[ElasticModule, Orders]]:
        modules = [(module, order.shared()) for module in self._attached_to(None)]
        return modules + [(m, order.of_layer(i)) for i in range(len(self._blocks)) for m in self._attached_to(i)]

    def _permute(self, modules: Iterable[tuple[ElasticModule, Orders]]) -> None:
        done: set[int] = set()
        for module, orders in modules:
            for name, parameter in module._parameters.items():
                if parameter is None or id(parameter) in done:
                    continue
                done.add(id(parameter))
                parameter.copy_(reorder(parameter, module.elastic_layouts[name], module.elastic_full, orders))

    # ---------------------------------------------------------------- saving

    def save(self, path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Writes a Hugging Face directory (the sorted full network) with the order of its axes beside it.

        Raises:
            ValueError: as :func:`nas_llm.save_pretrained`.
        """
        from nas_llm.models.saving import save_pretrained

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

    def _make_elastic(self) -> None:
        prefix = self._row.layers + "."
        hidden = {"hidden": self._full.hidden}
        layer_sizes = [sizes_of(self._full.hidden, choice) for choice in self._full.layers]
        self._in_layer = [[] for _ in self._blocks]
        layer_rows = dict(self._row.layer)
        if self._operators is not None:
            layer_rows |= {f"{path}.linear": (HIDDEN, HIDDEN) for path in self.sublayers.values()}
        norms = [name for name, layout in self._row.layer.items() if layout == (HIDDEN,)]
        layer_rows |= {f"{norm}.shortcut": (HIDDEN, HIDDEN) for norm in norms}  # of a rotated stream
        found: list[tuple[nn.Module, Layouts, Sizes, list[ElasticModule]]] = []
        for name, module in self.model.named_modules():
            if not _weight_shapes(module):
                continue
            if name.startswith(prefix):
                index, _, inside = name[len(prefix) :].partition(".")
                row, full, place = layer_rows.get(inside), layer_sizes[int(index)], self._in_layer[int(index)]
            else:
                row, full, place = self._row.shared.get(name), hidden, self._shared
            if row is None:
                raise ValueError(
                    f"{type(self.model).__name__}: the module {name!r} is not in the table of family {self.family!r} "
                    "(nas_llm/models/families.py); this variant of the family is not supported"
                )
            found.append((module, _layouts(name, module, row, full), full, place))
        for module, layouts, sizes, place in found:  # once the table is known to hold for all
            make_elastic(module, layouts, sizes)
            place.append(module)  # type: ignore[arg-type]

    def _refuse_misfit(self, architecture: Architecture) -> None:
        full = self._full
        architecture.refuse_misfit(full)
        self.refuse_cut(architecture)
        if self._rotated and architecture.without_ranks != full.without_ranks:
            raise ValueError(
                f"the architecture ({architecture.summary()}) is a part of a network whose residual stream is rotated "
                f"by sublayer (SliceGPT), which is kept whole ({full.summary()}): train it with search=none, or search "
                "the network that it was made from"
            )
        if self._operators is not None:
            self._refuse_cut_operators(architecture)
            return
        head_dims = {layer.head_dim for layer in architecture.layers}
        if head_dims != {full.layers[0].head_dim}:
            if "head_dim" not in self.elastic_axes:
                raise ValueError(
                    f"head_dim={sorted(head_dims)}: family {self.family!r} cannot slice it ({full.layers[0].head_dim})"
                )
            if len(head_dims) > 1 or any(size % 2 for size in head_dims):
                raise ValueError(
                    f"head_dim={sorted(head_dims)}: allowed is one even size for all layers (one rotary embedding)"
                )

    def _refuse_cut_operators(self, architecture: Architecture) -> None:
        full = self._full
        if architecture.hidden != full.hidden or any(
            c.shape != full.layers[c.index].shape for c in architecture.layers
        ):
            raise ValueError(
                f"the architecture ({architecture.summary()}) cuts a network of operators, whose sublayers are whole "
                f"({full.summary()}): search its depth alone, search_space=depth_only, or the network it was made from"
            )

    def _apply_architecture(self, architecture: Architecture, undo: Undo) -> None:
        full = self._full
        small = architecture.hidden != full.hidden
        shared = {"hidden": architecture.hidden} if small else None
        for module in self._shared:
            _set(vars(module), "elastic_active", shared, undo)
        self._apply_attached(architecture, undo)
        whole_shapes = self._operators is not None
        overrides = self._row.depth_overrides if whole_shapes else self._row.overrides
        for key, value in overrides(self._whole_config, architecture).items():
            _set_attribute(self.config, key, value, undo)
        position = 0  # of the layer's cache
        for choice in architecture.layers:
            whole = not small and choice.shape == full.layers[choice.index].shape
            sizes = None if whole else sizes_of(architecture.hidden, choice)
            for module in self._in_layer[choice.index]:
                _set(vars(module), "elastic_active", sizes, undo)
            if not whole_shapes:
                attention = vars(self._attention[choice.index])  # the network's own, whatever stands in its place
                for name, value in self.attention_constants(choice, self.config).items():
                    _set(attention, name, value, undo)
            for indexed in self._indexed[choice.index]:
                _set(vars(indexed), "layer_idx", position, undo)
            position += 1 if choice.kv_groups else 0
        self._apply_blocks(architecture, undo)
        if not whole_shapes:
            self._apply_rotary(architecture.layers[0].head_dim, undo)
        if self._row.scaled_embedding is not None:
            embedding = self.model.get_submodule(self._row.scaled_embedding)
            scale, before = architecture.hidden**0.5, embedding._buffers["embed_scale"]
            assert before is not None
            _set(vars(embedding), "scalar_embed_scale", scale, undo)
            _set(embedding._buffers, "embed_scale", torch.full_like(before, scale), undo)

    def _apply_attached(self, architecture: Architecture, undo: Undo) -> None:
        if not self._attached:
            return
        outside = {"hidden": architecture.hidden, **rank_sizes(self._full.ranks), **rank_sizes(architecture.ranks)}
        inside = {
            choice.index: rank_sizes(self._full.layers[choice.index].ranks) | sizes_of(architecture.hidden, choice)
            for choice in architecture.layers
        }
        for attached in self._attached:  # those of dropped blocks are not run
            active = outside if attached.layer is None else inside.get(attached.layer)
            _set(vars(attached.module), "elastic_active", active, undo)

    def _apply_blocks(self, architecture: Architecture, undo: Undo) -> None:
        parent_name, _, name = self._row.layers.rpartition(".")
        kept = nn.ModuleList(self._blocks[layer.index] for layer in architecture.layers)
        kept.training = self.model.training
        _set(self.model.get_submodule(parent_name)._modules, name, kept, undo)

    def _apply_rotary(self, head_dim: int, undo: Undo) -> None:
        if self._row.rotary is None or head_dim == self._full.layers[0].head_dim:
            return
        rotary = self.model.get_submodule(self._row.rotary)
        for name, buffer in list(rotary._buffers.items()):
            if name.endswith("inv_freq") and buffer is not None:
                _set(rotary._buffers, name, buffer[: head_dim // 2], undo)

    def origin(self, architecture: Architecture) -> dict[str, Any]:
        """The stock configuration that the weights first came from, and the sub-network as a choice of its units; of a
        network of operators that choice before they took their places, and the operators."""
        before = getattr(self.config, "nas_llm", None)
        if before is None:
            return {"base_config": self.config.to_dict(), "architecture": architecture.without_ranks.to_dict()}
        if self._rotated:
            return dict(before)
        blocks = Architecture.from_dict(before["architecture"]).layers
        if self._operators is not None:
            kept = [layer.index for layer in architecture.layers]
            return {
                "base_config": before["base_config"],
                "architecture": Architecture(architecture.hidden, tuple(blocks[i] for i in kept)).to_dict(),
                "operators": OperatorNetwork(tuple(self._operators.blocks[i] for i in kept)).to_dict(),
            }
        layers = tuple(LayerChoice(blocks[layer.index].index, *layer.shape) for layer in architecture.layers)
        return {
            "base_config": before["base_config"],
            "architecture": Architecture(architecture.hidden, layers).to_dict(),
        }


def largest_of(model: PreTrainedModel) -> Architecture:
    """The whole of a model: of an extracted one what it was cut to, of any other what its configuration says."""
    origin = getattr(model.config, "nas_llm", None)
    if origin is None:
        return family_of(model.config).largest(model.config)
    cut = Architecture.from_dict(origin["architecture"])
    layers = tuple(LayerChoice(i, *layer.shape) for i, layer in enumerate(cut.layers))
    operators = operators_of(model)
    if operators is not None:
        layers = tuple(block.sizes(layer) for block, layer in zip(operators.blocks, layers, strict=True))
    return Architecture(cut.hidden, layers)


def operators_of(model: PreTrainedModel) -> OperatorNetwork | None:
    """The operators of an assembled model (``models/operator_assembly.py``); None where it has none."""
    origin = getattr(model.config, "nas_llm", None) or {}
    return OperatorNetwork.from_dict(origin["operators"]) if "operators" in origin else None


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


def _weight_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a module by name; that of a quantised layer is no parameter."""
    shapes = {name: tuple(value.shape) for name, value in module._parameters.items() if value is not None}
    if isinstance(module, QuantizedLinear):
        return {"weight": (module.out_features, module.in_features), **shapes}
    return shapes


def _layouts(name: str, module: nn.Module, row: Row, full: Sizes) -> Layouts:
    """Layouts of a module's parameters, checked against their shapes."""
    from transformers.pytorch_utils import Conv1D

    weight = tuple(reversed(row)) if isinstance(module, Conv1D) else row
    found: Layouts = {}
    for parameter_name, shape in _weight_shapes(module).items():
        rows: Row = weight if parameter_name == "weight" else row[:1]
        layout = tuple(
            Fixed(size) if dimension is None else dimension for dimension, size in zip(rows, shape, strict=True)
        )
        expected = tuple(dimension.size(full) for dimension in layout)
        if expected != shape:
            raise ValueError(
                f"{name}.{parameter_name} has the shape {shape}, the table expects {expected}; "
                "this variant of the family is not supported"
            )
        found[parameter_name] = layout
    return found


def _set(target: dict[str, Any], key: str, value: Any, undo: Undo) -> None:
    before = target.get(key, _ABSENT)
    if before is value:
        return
    undo.append(lambda: target.__setitem__(key, before) if before is not _ABSENT else target.__delitem__(key))
    target[key] = value


def _set_attribute(target: Any, key: str, value: Any, undo: Undo) -> None:
    """Through ``setattr``: a configuration knows some keys under other names."""
    before = getattr(target, key, _ABSENT)
    if before == value:
        return
    undo.append(lambda: setattr(target, key, before) if before is not _ABSENT else delattr(target, key))
    setattr(target, key, value)
