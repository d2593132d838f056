"""SliceGPT: a narrower residual stream, by principal components (Ashkboos et al., "SliceGPT: Compress Large Language
Models by Deleting Rows and Columns", 2024, sections 3.3 and 3.4; the order of work is that of the authors' code).

For every signal x (tokens, hidden) of the residual stream, Q (hidden, hidden) are the eigenvectors of sum x^T x over
the calibration tokens, those of the largest eigenvalues first. With D the first ``width`` columns of the identity:

    what reads the signal:      W Q D                    W (out, hidden) -> (out, width)
    what writes the next one:   D^T Q'^T W               W (hidden, in)  -> (width, in)
    residual connection:        x D^T Q^T Q' D           (width, width), models/rotated_stream.py

Each signal is that of the network that will run: x is what rotated *and sliced* signals before it lead to, in the basis
of the original network, as in the authors' code; so later components make up for what earlier ones have lost. The
authors add 0.01 of the mean of its diagonal to sum x^T x; this moves all eigenvalues alike and no eigenvector, so that
it is left out here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas_llm.baselines import Batches, Pruned
from nas_llm.models.block_walk import walk
from nas_llm.models.input_statistics import SecondMoment
from nas_llm.models.loading import cut_without_weights
from nas_llm.models.quantized_linear import quantized_modules
from nas_llm.models.rotated_stream import (
    DROPOUTS,
    KEY,
    StreamNorm,
    embeddings_of,
    fold_norms,
    output_layer_of,
    place_norms,
    refuse_stream,
    signals_of,
)
from nas_llm.models.supernet import Supernet


@dataclass(frozen=True)
class Axes:
    """Principal axes of a signal: ``values`` (hidden,), descending, and ``vectors`` (hidden, hidden), one a column;
    float64."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, moment: Tensor) -> Axes:
        """Of a second moment sum x^T x (hidden, hidden)."""
        values, vectors = torch.linalg.eigh(moment.double())
        return cls(values.flip(0), vectors.flip(1))

    def kept(self, width: int) -> float:
        """The part of the squared norm that lies in the first ``width`` axes."""
        values = self.values.clamp(min=0)
        return float(values[:width].sum() / values.sum()) if values.any() else 1.0


@dataclass(frozen=True)
class SliceGPT:
    """``sparsity`` is the fraction of the residual width that is removed; the width is rounded down to a multiple of
    ``round_to``, but at 0, where the network is only rotated.

    Raises:
        ValueError: a field out of range; when called, what :meth:`refuse` says, no calibration batch, or a network that
            overflows on one.
    """

    sparsity: float = 0.25
    round_to: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(
                f"baseline.sparsity={self.sparsity}: allowed is from 0 to below 1, the fraction of the residual width "
                "that is removed, as baseline.sparsity=0.25"
            )
        if self.round_to < 1:
            raise ValueError(f"baseline.round_to={self.round_to}: allowed is 1 or more, as baseline.round_to=8")

    def width(self, hidden: int) -> int:
        """The residual width that stays.

        Raises:
            ValueError: none does.
        """
        if self.sparsity == 0:
            return hidden
        kept = int((1 - self.sparsity) * hidden + 1e-9)  # 0.9 * 80 is below 72
        width = kept - kept % self.round_to
        if not width:
            raise ValueError(
                f"baseline.sparsity={self.sparsity} leaves {kept} of {hidden} channels, fewer than "
                f"baseline.round_to={self.round_to}: set baseline.sparsity lower, or baseline.round_to=1"
            )
        return width

    def refuse(self, supernet: Supernet) -> None:
        """Raises:
        ValueError: a family whose residual stream cannot be rotated, a network that is rotated, quantised, has
            adapters or is made of operators already, or no width stays.
        """
        refuse_stream(supernet.config)
        mend = "set model.path to the network before that"
        if supernet.is_rotated:
            raise ValueError(f"baseline=slicegpt: the residual stream of this network is rotated already; {mend}")
        if supernet.operators is not None:
            raise ValueError(f"baseline=slicegpt: this is a network of operators; {mend}")
        if quantized_modules(supernet.model):
            raise ValueError(f"baseline=slicegpt: this network is quantised, and integers cannot be rotated; {mend}")
        if supernet.attached:
            raise ValueError("baseline=slicegpt: this network has adapters: merge them first (nas-llm export)")
        self.width(supernet.largest().hidden)

    @torch.no_grad()
    def __call__(self, supernet: Supernet, batches: Batches) -> Pruned:
        """The rotated and sliced network in the precision of ``supernet``, which is rotated in place and of which it is
        a copy: the two are in memory at most."""
        self.refuse(supernet)
        full = supernet.largest()
        width = self.width(full.hidden)
        origin = self._origin(supernet, width)
        plain = supernet.release()
        fold_norms(plain)
        place_norms(plain, full.hidden)
        stream = Supernet(plain)
        signals = _rotate(stream, batches(), width)
        small = cut_without_weights(origin, plain.config._attn_implementation)
        cut = replace(full, hidden=width)
        small.load_state_dict(stream.extract(cut).state_dict(), assign=True)
        small.to(plain.device).eval()
        small.generation_config = copy.deepcopy(plain.generation_config)
        turned = (len(signals) - 1) * width**2
        summary = (
            f"SliceGPT: {width} of {full.hidden} channels of the residual stream, in the basis of the principal "
            f"components of what each sublayer reads; {turned:,} of its parameters turn one basis into the next."
        )
        return Pruned(small, summary, {"width": width, "full_width": full.hidden, "signals": signals})

    def _origin(self, supernet: Supernet, width: int) -> dict[str, Any]:
        full = supernet.largest()
        origin = supernet.origin(replace(full, hidden=width))
        changed = {key: 0.0 for key in DROPOUTS if key in origin["base_config"]}
        base = {**origin["base_config"], "tie_word_embeddings": False, **changed}
        return {**origin, "base_config": base, KEY: {"norm_width": full.hidden}}


def _rotate(stream: Supernet, batches: Iterable[Any], width: int) -> list[dict[str, Any]]:
    """Rotates the whole network in place, signal by signal, at its whole width; channels from ``width`` on are zero.

    Returns, of every signal in the order of the network, what part of its squared norm is kept.
    """
    signals = signals_of(stream.config)
    records: list[dict[str, Any]] = []
    axes: Axes | None = None
    for walked in walk(stream, batches):
        block = stream.blocks[walked.index]
        if axes is None:
            axes = Axes.of(walked.collect_stream(SecondMoment, _norm(block, signals[0].rotation)).matrix)
            for embedding in embeddings_of(stream.model):  # rows are what the stream begins with
                _write(embedding.weight.T, axes, width)
        for number, signal in enumerate(signals):
            records.append({"layer": walked.index, "norm": signal.rotation, "kept": axes.kept(width)})
            for name in (name for readers in signal.norms.values() for name in readers):
                _read(block.get_submodule(name), axes)
            rotation = _norm(block, signal.rotation).shortcut
            assert rotation is not None
            identity = torch.eye(len(axes.values), dtype=torch.float64, device=axes.values.device)
            rotation.weight.copy_(axes.vectors - identity)  # the signal behind it in the original basis: x Q^T
            last = number + 1 == len(signals)
            following = None if last else _norm(block, signals[number + 1].rotation)
            after = Axes.of(walked.collect_stream(SecondMoment, following).matrix)
            for name in signal.writers:
                for parameter in block.get_submodule(name).parameters():  # (hidden, in) and (hidden,)
                    _write(parameter, after, width)
            turned = after.vectors.T @ axes.vectors - identity
            turned[width:] = 0
            rotation.weight.copy_(turned)
            axes = after
    assert axes is not None
    _read(output_layer_of(stream.model), axes)
    return [*records, {"layer": None, "norm": "final", "kept": axes.kept(width)}]


def _norm(block: nn.Module, name: str) -> StreamNorm:
    norm = block.get_submodule(name)
    assert isinstance(norm, StreamNorm)
    return norm


def _read(projection: Any, axes: Axes) -> None:
    """W (out, hidden) -> W Q."""
    projection.weight.copy_(projection.weight.double() @ axes.vectors)


def _write(weight: Tensor, axes: Axes, width: int) -> None:
    """W (hidden, ...) -> Q^T W, rows from ``width`` on zero."""
    written = axes.vectors.T @ weight.double()
    written[width:] = 0
    weight.copy_(written)
