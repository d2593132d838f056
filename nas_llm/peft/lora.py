"""Low-rank adapters on the weights of a super-network: y = W x + scaling B A x (Hu et al., 2021), by peft.

scaling = lora_alpha / r, or lora_alpha / sqrt(r) with ``use_rslora`` (Kalajdzievski, 2023); with ``use_dora`` the
columns' magnitudes are learnt apart (Liu et al., 2024). Only the adapters train.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from nas_llm.models.supernet import Supernet
from nas_llm.peft.adapters import inject
from nas_llm.peft.files import target_names
from nas_llm.peft.groups import GroupBy, Target, targets_of

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class Lora:
    """Called with a super-network, puts the adapters into it.

    Args:
        r: the whole rank. lora_alpha: scaling is lora_alpha / r. lora_dropout: of what A reads.
        target_modules: ends of the names of the matrices that carry adapters; None: all, the LM head too.
        embeddings: whether those carry them too, where ``target_modules`` is None.
        group_by: which adapters share a rank: ``role`` (attention_in, attention_out, ffn_in, ffn_out, lm_head), or
            every ``module`` of a block by itself.
        seed: of A.

    Raises:
        ValueError: a setting out of range.
    """

    r: int = 32
    lora_alpha: float = 64
    lora_dropout: float = 0.1
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: Sequence[str] | None = None
    embeddings: bool = False
    group_by: GroupBy = "role"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"peft.r={self.r}: allowed is a rank of at least 1")
        if self.lora_alpha <= 0:
            raise ValueError(f"peft.lora_alpha={self.lora_alpha}: allowed is above 0 (twice the rank is usual)")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"peft.lora_dropout={self.lora_dropout}: allowed is from 0 to below 1")
        if self.group_by not in ("role", "module"):
            raise ValueError(f"peft.group_by={self.group_by}: allowed are role and module")
        if self.embeddings and self.target_modules is not None:
            raise ValueError(
                "peft.embeddings=true cannot take effect beside peft.target_modules: name the embeddings there, or set "
                "peft.target_modules=null"
            )

    def __call__(self, supernet: Supernet) -> None:
        """Adds the adapters in place; the network's function stays what it was.

        Raises:
            ValueError: no matrix to carry them, a rank above a module's size, or adapters are there already.
        """
        self.add(supernet)

    def refuse_base(self, supernet: Supernet, to_quantize: Collection[nn.Module] = ()) -> None:
        """Raises ValueError where this kind of adapter does not go with the network, of which ``to_quantize`` are
        linear layers that will be quantised before; any weight may have plain adapters."""

    def add(self, supernet: Supernet) -> None:
        """Adds peft's plain layers of the same shapes, as long as nothing is trained the same function as any other."""
        targets = self.targets(supernet)
        inject(supernet, targets, self.config(supernet, targets), seed=self.seed)

    def convert(self, model: nn.Module) -> None:
        """Makes peft's plain layers in ``model`` those of this method; here they are."""

    def targets(self, supernet: Supernet) -> list[Target]:
        return targets_of(supernet, self.target_modules, embeddings=self.embeddings, group_by=self.group_by)

    def config(self, supernet: Supernet, targets: Sequence[Target]) -> LoraConfig:
        """peft's configuration of these adapters."""
        from peft import LoraConfig

        if self.use_dora and any(isinstance(target.module, nn.Embedding) for target in targets):
            raise ValueError("peft.use_dora=true does not go with adapters of embeddings: set peft.embeddings=false")
        return LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=self.lora_dropout,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            target_modules=target_names(supernet.model, [target.name for target in targets]),
            fan_in_fan_out=any(isinstance(target.module, Conv1D) for target in targets),
            task_type="CAUSAL_LM",
        )
