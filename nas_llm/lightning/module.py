"""Training of a super-network in Lightning: the sandwich rule with in-place distillation, manual optimisation.

One optimizer step draws its architectures once, from a generator that is a function of (seed, step): the same on every
rank, in every micro-batch and after a resume. Gradients of loss sums add up over sub-networks, micro-batches and
ranks, and are divided by the number of counted tokens once, so that any way of dividing a global batch gives the same
update.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nas_llm.architecture import Architecture
from nas_llm.distillation import Distillation, HiddenMatching
from nas_llm.lightning.gradients import existing, scale_and_clip, sum_over_ranks
from nas_llm.lightning.identity import model_identity, refuse_other, teacher_identity
from nas_llm.lightning.named_networks import losses_by_name, references
from nas_llm.lightning.output import check_output_layer, next_token_loss
from nas_llm.lightning.sandwich import sandwich_passes
from nas_llm.lightning.step_window import StepWindow
from nas_llm.lightning.teacher import TeacherLogits
from nas_llm.lightning.training_settings import refuse_external, refuse_step, refuse_teacher
from nas_llm.models.block_walk import dense_projections
from nas_llm.samplers import Sampler
from nas_llm.search_space import SearchSpace
from nas_llm.sparsity import SPARSE, Zeros

if TYPE_CHECKING:
    from nas_llm.models.supernet import Supernet

Batch = Mapping[str, Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

# Gradients are sums over thousands of tokens until they are divided: a power of two keeps half-precision ones in range
# and changes no digit.
_SUM_SCALE = 2.0**-10


class SupernetModule(LightningModule):
    """Trains ``supernet`` on the architectures that ``sampler`` names.

    Args:
        supernet: trained in place.
        space: names the largest (the teacher), the middle and the smallest network.
        sampler: architectures of a step.
        distillation: loss of the sub-networks; None is the labels' cross-entropy, which the largest network always
            has. optimizer: makes the optimizer of the trainable parameters. scheduler: makes the learning-rate
            scheduler, stepped once per optimizer step; None keeps the rate. accumulate_grad_batches: micro-batches of
            one optimizer step. gradient_clip_val: largest norm of a step's gradient; None does not clip. reduction:
            the update is the ``sum`` of the architectures' gradients (equation 1) or their ``mean``.
            gradient_checkpointing: recompute activations in the backward pass. seed: of the architectures and of
            dropout.
        hidden_matching: added to the loss of the sub-networks; None compares no hidden states.
        teacher: ``in_place`` is the largest network as it trains; ``frozen`` is a copy of the whole super-network as it
            is given here, in evaluation mode, and then the largest network is a student too. The copy is neither
            trained nor written to checkpoints: a run resumes with a super-network that was made in the same way, and
            is refused with another. teacher_path: of another model, which is then the frozen teacher;
            teacher_network: that model (``lightning/external_teacher.py``), whole, of the same vocabulary.
        zeros: of linear weights of the blocks that are exactly zero: ``keep`` lets no step change them, ``fill`` trains
            them as any other. None keeps those of sparse operators, and trains the few of other networks.
        teacher_logits: ``recorded`` holds them, (tokens, vocabulary), for the time of a micro-batch; ``recomputed``
            makes them again from hidden states, for every student: less memory, more time.

    Raises:
        ValueError: a setting out of range; while training, a loss that is not finite, a checkpoint of another model or
            space.
    """

    def __init__(
        self,
        supernet: Supernet,
        space: SearchSpace,
        sampler: Sampler,
        distillation: Distillation | None,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = 1.0,
        reduction: Literal["sum", "mean"] = "sum",
        gradient_checkpointing: bool = False,
        seed: int = 0,
        hidden_matching: HiddenMatching | None = None,
        teacher: Literal["in_place", "frozen"] = "in_place",
        teacher_path: str | None = None,
        teacher_network: Supernet | None = None,
        teacher_logits: TeacherLogits = "recorded",
        zeros: Literal["keep", "fill"] | None = None,
    ) -> None:
        super().__init__()
        refuse_step(accumulate_grad_batches, gradient_clip_val, reduction, zeros)
        refuse_teacher(distillation, hidden_matching, teacher, teacher_logits)
        refuse_external(hidden_matching, teacher, teacher_path, teacher_network)
        self.automatic_optimization = False
        self.supernet, self.space, self.sampler, self.distillation = supernet, space, sampler, distillation
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.accumulate_grad_batches, self.gradient_clip_val = accumulate_grad_batches, gradient_clip_val
        self.reduction, self.seed = reduction, seed
        self.hidden_matching, self.teacher_logits = hidden_matching, teacher_logits
        has_operators = supernet.operators is not None
        self._sparse = tuple(
            p.parameter
            for p in dense_projections(supernet)
            if zeros == "keep" or (zeros is None and has_operators and Zeros.of(p.weight).sparsity >= SPARSE)
        )
        # In a tuple, so that it is no child: neither trained, nor saved, nor set to training mode.
        self._frozen: tuple[Supernet, ...] = ()
        if teacher == "frozen":
            self._frozen = (
                (copy.deepcopy(supernet).eval().requires_grad_(False),)
                if teacher_network is None
                else (teacher_network,)
            )
        self.strict_loading = not supernet.attached  # checkpoints hold the adapters alone
        self._teacher_identity = teacher_identity(self.frozen_teacher, external=teacher_network is not None)
        if gradient_checkpointing:
            supernet.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.supernet.train()
        self._window = StepWindow()
        self._validation: dict[str, Tensor] = {}

    # ---------------------------------------------------------------- set-up

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }

    @property
    def frozen_teacher(self) -> Supernet | None:
        """The network as it was before training, or another one, where it is the teacher."""
        return self._frozen[0] if self._frozen else None

    def on_fit_start(self) -> None:
        for teacher in self._frozen:
            teacher.to(self.device)
            check_output_layer(teacher.model)
        check_output_layer(self.supernet.model)

    # ---------------------------------------------------------------- training

    def architectures(self, step: int) -> list[Architecture]:
        """What optimizer step ``step`` trains, a function of (seed, step)."""
        return self.sampler(step, np.random.default_rng([self.seed, step]))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        window = self._window
        if not window.passes:
            window.architectures = self.architectures(self.global_step)
        _seed_dropout(self.seed, self.global_step, len(window.passes), self.global_rank)
        with self._local_gradients():
            passes = sandwich_passes(
                self.supernet,
                window.architectures,
                batch,
                teacher=self.space.largest(),
                distillation=self.distillation,
                backward=self._backward,
                gradient_scale=_SUM_SCALE * self._scaler_factor(),
                frozen=self.frozen_teacher,
                hidden_matching=self.hidden_matching,
                teacher_logits=self.teacher_logits,
            )
        window.add(passes, f"batch {batch_idx} of epoch {self.current_epoch} on rank {self.global_rank}")
        if len(window.passes) == self.accumulate_grad_batches or self.trainer.is_last_batch:
            self._optimizer_step()

    def _backward(self, loss: Tensor) -> None:
        scaler = self._scaler()
        summand = loss * _SUM_SCALE
        (summand if scaler is None else scaler.scale(summand)).backward()

    def _optimizer_step(self) -> None:
        window, optimizer = self._window, self.optimizers()
        losses, tokens = self._totals()
        self._refuse_non_finite(losses)
        gradients = existing(self.parameters())
        if self.trainer.world_size > 1:
            sum_over_ranks(gradients)
        terms = len(window.architectures) if self.reduction == "mean" else 1
        window.factor = (1.0 / (tokens.clamp(min=1) * terms * _SUM_SCALE)).float()
        scale_before = self._scaler_factor()
        optimizer.step()  # type: ignore[union-attr]
        skipped = self._scaler_factor() < scale_before  # the loss scaler found gradients beyond half precision
        optimizer.zero_grad()  # type: ignore[union-attr]
        if self.make_scheduler is not None and not skipped:
            self.lr_schedulers().step()  # type: ignore[union-attr, call-arg]
        self._log_step(losses / tokens.clamp(min=1), skipped)
        self._window = StepWindow()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called with the gradients after the loss scaler's factor was taken out of them."""
        with torch.no_grad():
            for weight in self._sparse:  # what never has a gradient is moved by no optimizer, nor by its decay
                if weight.grad is not None:
                    weight.grad.masked_fill_(weight == 0, 0)
        gradients = existing(self.parameters())
        assert self._window.factor is not None
        self._window.norm = scale_and_clip(gradients, self._window.factor, self.gradient_clip_val)

    def _totals(self) -> tuple[Tensor, Tensor]:
        """Loss sums (architectures,) and counted tokens (scalar) of the global batch, float64 on the CPU."""
        losses = torch.stack([passes.losses.cpu().double() for passes in self._window.passes]).sum(0)
        tokens = losses.new_tensor(float(sum(passes.tokens for passes in self._window.passes)))
        both = self._over_ranks(torch.cat([losses, tokens[None]]))
        return both[:-1], both[-1]

    def _over_ranks(self, sums: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return sums
        there = sums.to(self.device)
        sum_over_ranks([there])
        return there.cpu()

    def _refuse_non_finite(self, losses: Tensor) -> None:
        if bool(losses.isfinite().all()):
            return
        worst = int((~losses.isfinite()).nonzero()[0])
        architecture = self._window.architectures[worst]
        raise ValueError(
            f"the loss of optimizer step {self.global_step} is not finite ({losses[worst].item()}): "
            f"architecture {architecture.id} ({architecture.summary()}), {self._window.blamed(worst)}; "
            "try a smaller optimizer.lr, or look at these records"
        )

    def _local_gradients(self) -> AbstractContextManager[None]:
        """No reducer in the backward passes; ``sum_over_ranks`` sends the gradients at the step's end."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _scaler(self) -> torch.amp.GradScaler | None:
        plugin = self.trainer.precision_plugin
        return plugin.scaler if isinstance(plugin, MixedPrecision) else None

    def _scaler_factor(self) -> float:
        scaler = self._scaler()
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _log_step(self, losses: Tensor, skipped: bool) -> None:
        window = self._window
        named = losses_by_name(window.architectures, losses, self.space)
        values = {f"train/loss_{name}": value.float() for name, value in named.items()}
        values["train/lr"] = torch.tensor(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        if window.norm is not None:
            values["train/gradient_norm"] = window.norm
        if skipped:
            values["train/skipped_step"] = torch.tensor(1.0)
        self.log_dict(values, batch_size=1)

    # ---------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        self._validation = {name: torch.zeros(2, dtype=torch.float64) for name in references(self.space)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx % self.trainer.world_size != self.global_rank:
            return  # every rank sees every batch of the loader and measures its share
        for name, architecture in references(self.space).items():
            with self.supernet.activate(architecture) as model:
                loss, tokens = next_token_loss(model, batch)
            self._validation[name] += torch.tensor([float(loss), tokens], dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        for name, sums in self._validation.items():
            total, tokens = self._over_ranks(sums)
            loss = (total / tokens.clamp(min=1)).item()
            # the same on every rank already; Lightning warns of each value that it is not told to average
            self.log(f"val/loss_{name}", loss, prog_bar=name == "largest", sync_dist=True)
            self.log(f"val/perplexity_{name}", math.exp(min(loss, 700.0)), sync_dist=True)

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["nas_llm"] = self._identity()
        if self.supernet.attached:
            trained = self._trained()
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_other(checkpoint, self._identity())
        if self.supernet.attached and checkpoint["state_dict"].keys() != self._trained():
            raise ValueError(
                "ckpt_path: the checkpoint is of other adapters than this run's: resume with the same peft settings, "
                "or start a new run_dir"
            )

    def _trained(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _identity(self) -> dict[str, Any]:
        return {
            "model": model_identity(self.supernet),
            "search_space": self.space.to_dict(),
            "teacher": self._teacher_identity,
        }


def _seed_dropout(*key: int) -> None:
    """Random numbers inside a micro-batch are a function of (seed, step, micro-batch, rank), so that resuming repeats
    them."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
