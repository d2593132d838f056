"""What the settings of training allow, each by itself and together: refused before a step is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas_llm.distillation import Distillation, HiddenMatching

if TYPE_CHECKING:
    from nas_llm.models.supernet import Supernet


def refuse_step(
    accumulate_grad_batches: int, gradient_clip_val: float | None, reduction: str, zeros: str | None
) -> None:
    """Raises ValueError where one of what makes an update is out of range."""
    if accumulate_grad_batches < 1:
        raise ValueError(
            f"training.accumulate_grad_batches={accumulate_grad_batches}: allowed is 1 or more micro-batches a step"
        )
    if gradient_clip_val is not None and gradient_clip_val <= 0:
        raise ValueError(f"training.gradient_clip_val={gradient_clip_val}: allowed is above 0, or null not to clip")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"training.reduction={reduction}: allowed are sum (equation 1 of the paper) and mean")
    if zeros not in ("keep", "fill", None):
        raise ValueError(f"training.zeros={zeros}: allowed are keep, fill and null")


def refuse_teacher(
    distillation: Distillation | None, hidden_matching: HiddenMatching | None, teacher: str, teacher_logits: str
) -> None:
    """Raises ValueError where a teacher is unknown, or nothing is learnt from it."""
    if teacher not in ("in_place", "frozen"):
        raise ValueError(f"training.teacher={teacher}: allowed are in_place and frozen")
    if teacher_logits not in ("recorded", "recomputed"):
        raise ValueError(f"training.teacher_logits={teacher_logits}: allowed are recorded and recomputed")
    read = distillation is not None and distillation.uses_teacher
    if teacher == "frozen" and not read and hidden_matching is None:
        raise ValueError(
            "training.teacher=frozen cannot take effect where nothing is learnt from a teacher: "
            "choose distillation=forward_kl or hidden_matching=mse, or training.teacher=in_place"
        )
    if teacher_logits == "recomputed" and not read:
        raise ValueError(
            "training.teacher_logits=recomputed cannot take effect where no logits of a teacher are read: "
            "choose distillation=forward_kl, or training.teacher_logits=recorded"
        )


def refuse_external(
    hidden_matching: HiddenMatching | None, teacher: str, teacher_path: str | None, network: Supernet | None
) -> None:
    """Raises ValueError where a teacher of another model cannot be one."""
    if network is None and teacher_path is None:
        return
    if teacher != "frozen":
        raise ValueError(
            f"training.teacher_path={teacher_path} cannot take effect with training.teacher={teacher}: set "
            "training.teacher=frozen, or training.teacher_path=null"
        )
    if hidden_matching is not None:
        raise ValueError(
            f"hidden_matching cannot take effect with training.teacher_path={teacher_path}: hidden states are compared "
            "block by block and channel by channel, and another model's have another order: set hidden_matching=none"
        )
