"""An adapter that is given with a network, in peft's own format: made part of its weights, or where training begins.

Of module i the file holds A_i (rank_i, in) and B_i (out, rank_i), which add scaling_i B_i A_i to the weight. Adapters
of rank r >= rank_i and another scaling s do the same with A = [A_i; fresh rows] and B = [scaling_i / s B_i, 0]: what
was trained are their first ranks, which is what a smaller rank keeps, and the rest begins as adapters do.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nas_llm.models.fingerprint import fingerprint_of_model
from nas_llm.models.model_directory import ADAPTER
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.peft.adapters import NAME, base_of, factors, lora_layers, mark_sparse
from nas_llm.peft.files import BASE, CONFIG, PREFIX, SETTINGS, WEIGHTS
from nas_llm.peft.lora import Lora
from nas_llm.peft.merging import lossy, merge
from nas_llm.peft.qa_sparse_lora import QaSparseLora
from nas_llm.peft.saving import recorded_method
from nas_llm.peft.sparse_lora import SparseLora

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer

OPTIONS = {Lora: "lora", SparseLora: "sparse_peft", QaSparseLora: "qa_sparse_peft"}  # of the group peft
_OTHER = (  # settings of peft's LoRA that make it another function, or keep more than A and B
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "alora_invocation_tokens",
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # of init_lora_weights: the base is not the file's own
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>A\.weight|B\.weight|embedding_A|embedding_B|magnitude_vector)")


@dataclass(frozen=True)
class Factors:
    """Of one module: ``a`` (rank, in), ``b`` (out, rank), DoRA's ``magnitude`` (out,) or None, and the scaling."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class GivenAdapter:
    """The adapters in ``folder``, by the names of the modules that they stand beside; ``method`` is what made them."""

    folder: Path
    modules: Mapping[str, Factors]
    use_dora: bool
    method: Lora | None  # None: peft's plain ones
    base: str | None  # the network that the file says it is of
    base_fingerprint: str | None = None  # of its weights, where this program wrote the file

    @classmethod
    def read(cls, folder: str | Path) -> GivenAdapter:
        """Reads both files.

        Raises:
            ValueError: there is no adapter, it is damaged, or none of plain LoRA matrices.
        """
        folder = Path(folder)
        named = f"model.adapter_path={folder}"
        try:
            config = json.loads((folder / CONFIG).read_text())
            with safe_open(folder / WEIGHTS, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                metadata = file.metadata() or {}
            method = recorded_method(folder) if (folder / SETTINGS).is_file() else None
            if config["peft_type"] == type(method).__name__:
                config["peft_type"] = "LORA"  # of which it is a kind of this program's
            _refuse_kind(config, named)
            return cls(
                folder,
                _modules(config, tensors, named),
                bool(config.get("use_dora")),
                method,
                config.get("base_model_name_or_path"),
                metadata.get(BASE),
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            inside = folder / ADAPTER
            hint = f"; {inside} does" if (inside / CONFIG).is_file() else ""
            raise ValueError(f"{named}: it holds no adapter of peft ({CONFIG} and {WEIGHTS}){hint}") from error
        except SafetensorError as error:
            raise ValueError(f"{named}: {WEIGHTS} is damaged ({error})") from error
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{named}: {CONFIG} is damaged ({type(error).__name__}: {error})") from error

    @property
    def named(self) -> str:
        """The setting that gave it."""
        return f"model.adapter_path={self.folder}"

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a hash of what the adapters add to the weights."""
        digest = hashlib.sha256()
        for name, found in sorted(self.modules.items()):
            digest.update(f"{name} {found.scaling:.6g} {self.use_dora}".encode())
            for matrix in (found.a, found.b, *(() if found.magnitude is None else (found.magnitude,))):
                digest.update(matrix.float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def refuse_other_weights(self, model: PreTrainedModel) -> None:
        """Compare the weights of a plain model, in its own order, with those that the adapters were trained beside, as
        far as the file says which these were. (float16 rounds float32's weights in another way than bfloat16, in which
        they are compared.)

        Raises:
            ValueError: they are others.
        """
        known = self.base_fingerprint
        if known is None or model.dtype == torch.float16 or fingerprint_of_model(model) == known:
            return
        whose = f", {self.base}" if self.base else ""
        raise ValueError(
            f"{self.named}: the network of model.path has other weights than that which it was trained beside{whose}: "
            "its units are in another order, or adapters are merged into it already; set model.path to that network"
        )

    @torch.no_grad()
    def merge_into(self, model: PreTrainedModel) -> None:
        """Makes the adapters part of the weights of a plain model.

        Raises:
            ValueError: they are of another network, or the weights would lose zeros or codes.
        """
        from peft import LoraConfig, inject_adapter_in_model

        self._refuse_other_base(model)
        ranks = {name: found.rank for name, found in self.modules.items()}
        alphas: dict[str, Any] = {name: found.scaling * found.rank for name, found in self.modules.items()}
        config = LoraConfig(
            r=max(ranks.values()),
            target_modules=sorted(self.modules),
            rank_pattern=ranks,
            alpha_pattern=alphas,
            use_dora=self.use_dora,
            fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in self.modules),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, model, adapter_name=NAME)
        mark_sparse(model)
        for name, layer in lora_layers(model):
            self._fill(layer, self.modules[name])
        if self.method is not None:
            self.method.convert(model)
        for name, layer in lora_layers(model):
            if reason := lossy(name, layer):
                raise ValueError(
                    f"{self.named} cannot become part of the weights: {reason}; let it stand beside them, "
                    f"{self._overrides}"
                )
        merge(model)
        model.requires_grad_(True)  # peft froze it

    @torch.no_grad()
    def start(self, supernet: Supernet, lora: Lora) -> None:
        """Gives the adapters that ``lora`` has put into ``supernet`` these values; modules that the file lacks keep
        theirs. The file is in the order of the network before it was sorted.

        Raises:
            ValueError: they are of another network, of another kind, or of more modules or ranks than there are.
        """
        self._refuse_other_base(supernet.model)
        made = OPTIONS[type(self.method or Lora())]
        if OPTIONS[type(lora)] != made:
            raise ValueError(
                f"{self.named}: its adapters are those of peft={made}, whose function peft={OPTIONS[type(lora)]} does "
                f"not have; set {self._overrides}"
            )
        if self.use_dora != lora.use_dora:
            said = str(self.use_dora).lower()
            raise ValueError(f"{self.named}: it was trained with use_dora={said}; set peft.use_dora={said}")
        layers = dict(lora_layers(supernet.model))
        for name, found in self.modules.items():
            if name not in layers:
                raise ValueError(
                    f"{self.named}: it adapts {name}, beside which there is no adapter; set "
                    f"peft.target_modules=[{','.join(self._suffixes)}]"
                )
            if found.rank > lora.r:
                raise ValueError(
                    f"{self.named}: {name} has rank {found.rank} in it, above peft.r={lora.r}; set "
                    f"peft.r={self._rank} peft.lora_alpha={self._alpha:g}"
                )
        for name, found in self.modules.items():
            self._fill(layers[name], found)
        supernet.sort_attached()

    def _fill(self, layer: LoraLayer, found: Factors) -> None:
        a, b = factors(layer)
        a[: found.rank] = found.a.to(a)
        b.zero_()
        b[:, : found.rank] = found.b.to(b) * (found.scaling / layer.scaling[NAME])
        if found.magnitude is not None:
            untyped: Any = layer.lora_magnitude_vector[NAME]
            untyped.weight.copy_(found.magnitude)

    def _refuse_other_base(self, model: nn.Module) -> None:
        whose = f" (its base is {self.base}, it says)" if self.base else ""
        there = {name: base for name, base in ((n, _plain(m)) for n, m in model.named_modules()) if base is not None}
        for name, found in self.modules.items():
            if name not in there:
                raise ValueError(
                    f"{self.named}: it adapts {name}, and there is no such matrix in {type(model).__name__}{whose}: "
                    "set model.path to the network that it was trained on"
                )
            sizes, own = _out_and_in(there[name]), (found.b.shape[0], found.a.shape[1])
            if sizes != own:
                raise ValueError(
                    f"{self.named}: {name} is {own[0]} x {own[1]} in it and {sizes[0]} x {sizes[1]} here{whose}: set "
                    "model.path to the network that it was trained on"
                )

    @property
    def _overrides(self) -> str:
        option = OPTIONS[type(self.method or Lora())]
        dora = " peft.use_dora=true" if self.use_dora else ""
        return f"peft={option} peft.r={self._rank} peft.lora_alpha={self._alpha:g}{dora}"

    @property
    def _rank(self) -> int:
        return max(found.rank for found in self.modules.values())

    @property
    def _alpha(self) -> float:
        return next(found.scaling * self._rank for found in self.modules.values())

    @property
    def _suffixes(self) -> list[str]:
        return sorted({name.rpartition(".")[2] for name in self.modules})


def _modules(config: Mapping[str, Any], tensors: Mapping[str, Tensor], named: str) -> dict[str, Factors]:
    from peft.utils.other import get_pattern_key

    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name.removeprefix(PREFIX))
        if match is None:
            raise ValueError(
                f"{named}: {name} is no matrix of LoRA; allowed are lora_A and lora_B of the model's modules"
            )
        parts.setdefault(match["module"], {})[match["part"].removesuffix(".weight").removeprefix("embedding_")] = tensor
    if not parts:
        raise ValueError(f"{named}: {WEIGHTS} holds no adapter")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    found = {}
    for name, part in parts.items():
        rank = ranks.get(get_pattern_key(list(ranks), name), config["r"])
        alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
        if part["A"].ndim != 2 or part["B"].ndim != 2 or not part["A"].shape[0] == part["B"].shape[1] == rank:
            raise ValueError(
                f"{named}: {name} has matrices {tuple(part['A'].shape)} and {tuple(part['B'].shape)}, and rank {rank} "
                f"by {CONFIG}: the two files do not belong together"
            )
        scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        found[name] = Factors(part["A"], part["B"], part.get("magnitude_vector"), scaling)
    return found


def _refuse_kind(config: Mapping[str, Any], named: str) -> None:
    kind = config["peft_type"]
    other = [key for key in _OTHER if config.get(key)]
    given = f"peft_type={kind}" if kind != "LORA" else f"{other[0]}={config[other[0]]}" if other else ""
    if config.get("bias", "none") != "none":
        given = f"bias={config['bias']}"
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGES_BASE):
        given = f"init_lora_weights={config['init_lora_weights']}"
    if given:
        raise ValueError(
            f"{named}: {CONFIG} says {given}, which is not read here; allowed is plain LoRA (rank and alpha patterns, "
            "rank-stabilised, DoRA). Merge it with peft (merge_and_unload) and set model.path to the result"
        )


def _plain(module: nn.Module) -> nn.Module | None:
    """The matrix itself, where an adapter stands beside it; None where the module is none."""
    from peft.tuners.lora.layer import LoraLayer

    base = base_of(module) if isinstance(module, LoraLayer) else module
    return base if isinstance(base, nn.Linear | Conv1D | nn.Embedding) else None


def _out_and_in(module: Any) -> tuple[int, int]:
    if isinstance(module, QuantizedLinear):
        return module.out_features, module.in_features
    first, second = module.weight.shape
    return (first, second) if isinstance(module, nn.Linear) else (second, first)
