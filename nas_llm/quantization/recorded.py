"""The quantised layers of a run, in its directory: a resumed run takes them as they are and quantises nothing again.

``quantization.safetensors`` holds the packed buffers of every layer, ``quantization.json`` what became of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from nas_llm.atomic_files import atomic_path, write_json
from nas_llm.models.quantized_linear import QuantizedLinear, quantized_modules
from nas_llm.models.supernet import Supernet
from nas_llm.quantization.report import QuantizationReport
from nas_llm.run_directory import QUANTIZATION_FILE, QUANTIZED_WEIGHTS_FILE

_BUFFERS = ("weight_packed", "weight_scale", "weight_zero_point")


def write_quantized_layers(supernet: Supernet, report: QuantizationReport, run_dir: Path, *, method: str) -> None:
    """Writes both files; ``method`` is said in the report."""
    layers = {name: layer for name, layer in quantized_modules(supernet.model).items() if name in report.layers}
    tensors = {f"{name}.{key}": layer._buffers[key] for name, layer in layers.items() for key in _BUFFERS}
    shapes = {name: [layer.bits, layer.group_size] for name, layer in layers.items()}
    with atomic_path(run_dir / QUANTIZED_WEIGHTS_FILE) as file:
        save_file(
            {key: value.cpu() for key, value in tensors.items() if value is not None},
            file,
            {"layers": json.dumps(shapes)},
        )
    write_json(run_dir / QUANTIZATION_FILE, {"method": method, **report.to_dict()})


def read_quantized_layers(supernet: Supernet, run_dir: Path) -> None:
    """Puts the layers of the run in the place of the super-network's linear ones.

    Raises:
        ValueError: the file is damaged, or of another network.
    """
    file = run_dir / QUANTIZED_WEIGHTS_FILE
    modules: dict[str, Any] = {n: m for n, m in supernet.model.named_modules() if isinstance(m, nn.Linear)}
    try:
        with safe_open(file, "pt", device=str(supernet.model.device)) as held:
            layers = json.loads(held.metadata()["layers"])
            found = {name: {key: held.get_tensor(f"{name}.{key}") for key in _BUFFERS} for name in layers}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): start a new run with another run_dir=") from error
    for name, (bits, group_size) in layers.items():
        if name not in modules or not _fits(modules[name], bits, group_size, found[name]):
            raise ValueError(f"{file} is of another network ({name}): start a new run with another run_dir=")
    for name, (bits, group_size) in layers.items():
        dense = modules[name]
        layer = QuantizedLinear(
            dense.in_features, dense.out_features, bits=bits, group_size=group_size, bias=dense._parameters.get("bias")
        )
        layer._buffers.update(found[name])
        supernet.quantize_module(name, layer)


def summary(report: QuantizationReport) -> str:
    """One line for the user."""
    weights = sum(layer.weights for layer in report.layers.values())
    mib = f"{report.bytes_before / 2**20:.2f} -> {report.bytes_after / 2**20:.2f} MiB"
    bits = ", ".join(map(str, sorted({layer.bits for layer in report.layers.values()})))
    return (
        f"quantization: {weights:,} weights of {len(report.layers)} linear modules in {bits} bits, "
        f"{mib} with scales and zero points"
    )


def _fits(dense: Any, bits: int, group_size: int, buffers: dict[str, Any]) -> bool:
    if dense.in_features % group_size:
        return False
    empty = QuantizedLinear(dense.in_features, dense.out_features, bits=bits, group_size=group_size, device="meta")
    return all(buffers[key].shape == getattr(empty, key).shape for key in _BUFFERS)
