"""The finished operators of one teacher, in a folder: every one is a file of its own, written whole or not at all.

``manifest.json`` says of which teacher they are (a fingerprint of its weights), which pool they are of and with which
settings they were made. ``layer03.attention.heads-2x2x16.safetensors`` holds the weights of one operator (a quantised
one's packed buffers) and, in its metadata, the teacher, a hash of the tensors, and a JSON record: ``local`` (SquareHead
on held-out data), ``steps``, ``seconds``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nas_llm.atomic_files import atomic_path, read_json, write_json
from nas_llm.models.fingerprint import fingerprint
from nas_llm.models.operator_assembly import Make
from nas_llm.models.operator_modules import build_sublayer
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import SUBLAYERS, Operator, Quantized, Sublayer, Teacher, operator_of
from nas_llm.operators import Place

MANIFEST = "manifest.json"
MISSING = "missing"
_FILE = re.compile(rf"layer(\d+)\.({'|'.join(SUBLAYERS)})\.(.+)\.safetensors")
_TEACHER, _RECORD, _HASH = "teacher", "record", "sha256"


@dataclass(frozen=True)
class Library:
    """The operators in the folder ``path``.

    Raises, from whatever reads a file:
        ValueError: the operator is not there, its file is damaged or half-written, or it is of another teacher.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    # ---------------------------------------------------------------- of which teacher

    @property
    def is_begun(self) -> bool:
        return (self.path / MANIFEST).is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        """``teacher``, ``settings``, ``pool``. Raises ValueError: the folder holds no library."""
        if not self.is_begun:
            raise ValueError(
                f"{self.path} holds no operators: let nas-llm distill run_dir={self.path.parent} finish first"
            )
        return read_json(self.path / MANIFEST, "teacher", "settings", "pool")

    def begin(self, supernet: Supernet, *, settings: Mapping[str, Any], pool: Mapping[str, Any]) -> None:
        """Make the folder for operators of this teacher, or go on with those there; the pool may be another one.

        Args:
            settings: what an operator's weights follow from beside the teacher; JSON-able, by the keys that set them.
            pool: JSON-able.

        Raises:
            ValueError: those there are of another teacher, or were made with other settings.
        """
        found = json.loads(json.dumps({"teacher": fingerprint(supernet), "settings": settings, "pool": pool}))
        if self.is_begun:
            before = self.manifest
            self.refuse_other_teacher(supernet)
            for key in [*found["settings"], *before["settings"]]:
                mine, theirs = found["settings"].get(key), before["settings"].get(key)
                if mine != theirs:
                    raise ValueError(
                        f"{key}={_short(mine)} differs from {key}={_short(theirs)} that the operators in {self.path} "
                        f"were made with: go on with the same, or choose another run_dir="
                    )
            if before["pool"] == found["pool"]:
                return
        write_json(self.path / MANIFEST, found)

    def refuse_other_teacher(self, supernet: Supernet) -> None:
        """Raises ValueError where the operators were made for other weights than this network's."""
        _refuse_other(self.path, self.manifest["teacher"], fingerprint(supernet))

    # ---------------------------------------------------------------- one operator

    def file(self, place: Place, operator: Operator) -> Path:
        layer, sublayer = place
        return self.path / f"layer{layer:02d}.{sublayer}.{operator.name.replace(':', 'of')}.safetensors"

    def save(self, place: Place, operator: Operator, module: nn.Module, record: Mapping[str, Any]) -> None:
        """Write one finished operator; ``record`` is JSON-able."""
        tensors = {name: value.detach().to("cpu").contiguous() for name, value in module.state_dict().items()}
        said = {_TEACHER: self.manifest["teacher"], _RECORD: json.dumps(dict(record), allow_nan=False)}
        with atomic_path(self.file(place, operator)) as temporary:
            save_file(tensors, temporary, {**said, _HASH: _digest(tensors)})

    def damage(self, place: Place, operator: Operator) -> str:
        """Why an operator cannot be taken from here ("missing", or what its file suffers from); "" where it can, as
        ``teacher`` always. Its weights are read for that.

        Raises ValueError where it is of another teacher, as all that reads a file.
        """
        file = self.file(place, operator)
        if isinstance(operator, Teacher):
            return ""
        if not file.is_file():
            return MISSING
        try:
            with safe_open(file, "pt") as held:
                said = held.metadata() or {}
                tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118  # no mapping
        except SafetensorError as error:
            return str(error)
        if not {_TEACHER, _RECORD, _HASH} <= said.keys():
            return "it is no operator's"
        _refuse_other(file, said[_TEACHER], self.manifest["teacher"])
        return "" if _digest(tensors) == said[_HASH] else "its weights are not those that were written"

    def record(self, place: Place, operator: Operator) -> dict[str, Any]:
        """What is known of a finished operator: ``local``, ``steps``, ``seconds``. The teacher's ``local`` is 0."""
        if isinstance(operator, Teacher):
            return {"local": 0.0, "steps": 0, "seconds": 0.0}
        return json.loads(self._said(place, operator)[_RECORD])

    def made(self, place: Place, operator: Operator) -> str:
        """What tells this operator's weights from others that were made in its place: their hash."""
        return self._said(place, operator)[_HASH]

    def load(self, supernet: Supernet, place: Place, operator: Operator) -> nn.Module:
        """The operator as a module that shares nothing with the teacher, in its precision and on its device."""
        self.refuse_other_teacher(supernet)
        return self._load(supernet, place, operator)

    def make(self, supernet: Supernet) -> Make:
        """The operators of the library for :func:`~nas_llm.models.operator_assembly.assemble`."""
        self.refuse_other_teacher(supernet)

        def make(layer: int, sublayer: Sublayer, operator: Operator) -> nn.Module:
            return self._load(supernet, (layer, sublayer), operator)

        return make

    @property
    def operators(self) -> dict[Place, tuple[Operator, ...]]:
        """Those that are finished, by name, without the teacher's own."""
        found: dict[Place, list[Operator]] = {}
        for file in sorted(self.path.glob("layer*.safetensors")):
            if match := _FILE.fullmatch(file.name):
                layer, sublayer, name = match.groups()
                operator = operator_of(re.sub(r"(\d)of(\d)", r"\1:\2", name))
                found.setdefault((int(layer), sublayer), []).append(operator)  # type: ignore[arg-type]
        return {place: tuple(operators) for place, operators in sorted(found.items())}

    # ---------------------------------------------------------------- inner

    def _said(self, place: Place, operator: Operator) -> dict[str, str]:
        """The metadata of an operator's file, of this library's teacher."""
        file = self.file(place, operator)
        if not file.is_file():
            there = ", ".join(found.name for found in self.operators.get(place, ())) or "none"
            raise ValueError(
                f"layer {place[0]}, {place[1]}: {self.path} holds no operator {operator.name}, it holds {there} there: "
                f"distil a pool that has it, nas-llm distill run_dir={self.path.parent}"
            )
        try:
            with safe_open(file, "pt") as held:
                said = held.metadata() or {}
        except SafetensorError as error:
            raise self._damaged(file, str(error)) from error
        if not {_TEACHER, _RECORD, _HASH} <= said.keys():
            raise self._damaged(file, "it is no operator's")
        _refuse_other(file, said[_TEACHER], self.manifest["teacher"])
        return said

    def _load(self, supernet: Supernet, place: Place, operator: Operator) -> nn.Module:
        module = build_sublayer(supernet, *place, operator)
        if not isinstance(operator, Teacher):
            said, file = self._said(place, operator), self.file(place, operator)
            with safe_open(file, "pt") as held:
                tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118  # no mapping
            if _digest(tensors) != said[_HASH]:
                raise self._damaged(file, "its weights are not those that were written")
            if isinstance(operator, Quantized):
                _pack(module, operator, tensors)
            shapes = {name: value.shape for name, value in module.state_dict().items()}
            if shapes != {name: value.shape for name, value in tensors.items()}:
                raise self._damaged(file, f"its weights are not those of {operator.name} in this network")
            module.load_state_dict(tensors, assign=True)
        return module.to(supernet.model.device, supernet.model.dtype).eval()

    def _damaged(self, file: Path, reason: str) -> ValueError:
        return ValueError(f"{file} is damaged ({reason}): make it anew, nas-llm distill run_dir={self.path.parent}")


def _pack(module: nn.Module, operator: Quantized, tensors: Mapping[str, Tensor]) -> None:
    """Empty quantised layers in the place of the linear ones of which the file holds packed weights."""
    for key in [key for key in tensors if key.endswith(".weight_packed")]:
        name = key.rpartition(".")[0]
        parent, _, child = name.rpartition(".")
        dense: Any = module.get_submodule(name)
        packed = QuantizedLinear(
            dense.in_features,
            dense.out_features,
            bits=operator.bits,
            group_size=operator.group_size,
            bias=dense._parameters.get("bias"),
        )
        setattr(module.get_submodule(parent), child, packed)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _refuse_other(path: Path, theirs: str, mine: str) -> None:
    if theirs != mine:
        raise ValueError(
            f"{path} is of another teacher (its weights {theirs}, here {mine}): name the run that it was distilled in, "
            "run_dir=, or distil this network in another one"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:90]}..."
