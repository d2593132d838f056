"""What a run keeps of its sparse network: ``sparsity.json`` (how many weights are zero) and ``sparsity.safetensors``
(the weights of the sparse modules, from which a resumed run starts instead of computing them again)."""

from __future__ import annotations

from pathlib import Path

import torch

from nas_llm.atomic_files import atomic_path, write_json
from nas_llm.models.block_walk import projections
from nas_llm.models.supernet import Supernet
from nas_llm.run_directory import SPARSE_WEIGHTS_FILE, SPARSITY_FILE
from nas_llm.sparsity.counting import ZeroCounts, zeros_of_model


def write_sparse_weights(supernet: Supernet, counts: ZeroCounts, run_dir: Path, *, method: str) -> None:
    """Writes both files, each whole or not at all.

    Args:
        supernet: once it is sparse.
        counts: of its sparse modules.
        run_dir: where the files go.
        method: how it became sparse, in words.
    """
    from safetensors.torch import save_file

    found = {p.name: p.parameter for of_block in projections(supernet) for p in of_block if p.name in counts.by_name}
    with atomic_path(run_dir / SPARSE_WEIGHTS_FILE) as temporary:
        save_file(
            {name: parameter.detach().contiguous() for name, parameter in found.items()},
            temporary,
            metadata={"method": method},
        )
    whole = zeros_of_model(supernet.model).overall
    counted = {"parameters": whole.size, "nonzero_parameters": whole.nonzero}
    write_json(run_dir / SPARSITY_FILE, {"method": method, **counted, **counts.to_dict()})


@torch.no_grad()
def read_sparse_weights(supernet: Supernet, run_dir: Path) -> None:
    """Gives the network the sparse weights of the run in ``run_dir``.

    Raises:
        ValueError: the file is damaged, or is not of such a network; nothing has been changed then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = run_dir / SPARSE_WEIGHTS_FILE
    mend = "put the run's own in its place, or start a new run with another run_dir="
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"run_dir={run_dir}: {path} is damaged ({error}): {mend}") from error
    found = {p.name: p.parameter for of_block in projections(supernet) for p in of_block if p.name in weights}
    if any(name not in found or found[name].shape != weight.shape for name, weight in weights.items()):
        raise ValueError(f"run_dir={run_dir}: {path} is of another network: {mend}")
    for name, parameter in found.items():
        parameter.copy_(weights[name])
    supernet.made_sparse = frozenset(name for name, weight in weights.items() if not weight.all())


def summary(supernet: Supernet, counts: ZeroCounts) -> str:
    """One line for people."""
    sparse, whole = counts.overall, zeros_of_model(supernet.model).overall
    return (
        f"sparsity: {sparse.sparsity:.1%} of the {sparse.size:,} weights of {len(counts.by_name)} linear modules are "
        f"zero; {whole.nonzero:,} of all {whole.size:,} parameters are not"
    )
