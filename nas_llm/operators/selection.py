"""Which of many networks of operators is best once trained: short fine-tuning by successive halving (UNAST, paper 3,
sections 3.4 and 5.3: fifty steps for each of a hundred networks, ranked by their loss; halving after Jamieson &
Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016).

Sums of operators' scores do not rank networks (figures 5 and 6). In round r every network that is left is trained for
``steps`` more steps on the same batches and measured on held-out ones; the better part goes on. Weights wait on the
disk between rounds, so that one student and the teacher are held at a time; Adam begins anew in every round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from nas_llm.atomic_files import atomic_path
from nas_llm.json_lines import append_line, read_lines
from nas_llm.models.operator_assembly import sparse_weights
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import OperatorNetwork

Batch = Mapping[str, Tensor]
LogitLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student logits, teacher logits, labels), tokens first -> sum over tokens."""
RECORD = "selection.jsonl"
IGNORED = -100


@dataclass(frozen=True)
class Ranked:
    """A network and its loss on held-out batches before training and after every round that it was in in this search,
    nats per token."""

    network: OperatorNetwork
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """After the last round."""
        return self.losses[-1]

    @property
    def rounds(self) -> int:
        return len(self.losses) - 1


@dataclass(frozen=True)
class SuccessiveHalving:
    """``steps`` of every round, the fraction ``keep`` of the networks that goes on to the next, ``rounds`` at most
    (None: until one is left), the optimizer's ``lr``, which falls to ``final_lr`` as a cosine in every round.

    Raises:
        ValueError: a field out of range.
    """

    steps: int = 50
    keep: float = 0.5
    rounds: int | None = None
    lr: float = 5e-4
    final_lr: float = 5e-5
    gradient_clip_val: float | None = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"select.steps={self.steps}: allowed is 0 (no training) or more, as select.steps=50")
        if not 0 < self.keep < 1:
            raise ValueError(f"select.keep={self.keep}: allowed is a fraction between 0 and 1, as select.keep=0.5")
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"select.rounds={self.rounds}: allowed is 1 or more, or null until one network is left")
        if not 0 <= self.final_lr <= self.lr:
            raise ValueError(f"select.lr={self.lr}, select.final_lr={self.final_lr}: allowed is 0 <= final_lr <= lr")

    def plan(self, number: int) -> list[int]:
        """How many networks are trained in each round."""
        counts = [number]
        while counts[-1] > 1 and (self.rounds is None or len(counts) < self.rounds):
            counts.append(max(1, math.ceil(counts[-1] * self.keep)))
            if counts[-1] == counts[-2]:
                counts[-1] -= 1
        return counts if self.steps else []

    def __call__(
        self,
        networks: Sequence[OperatorNetwork],
        *,
        make: Callable[[OperatorNetwork], PreTrainedModel],
        teacher: Supernet | None,
        loss: LogitLoss,
        batches: Callable[[int], Iterable[Batch]],
        evaluate: Callable[[PreTrainedModel], float],
        folder: Path,
        key: Callable[[OperatorNetwork], str] = lambda network: network.id,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Ranked]:
        """All networks, those of later rounds first, the best of a round first.

        Args:
            networks: candidates, each once.
            make: the untrained model of one, on its device.
            teacher: whose logits ``loss`` reads; None: it reads none.
            loss: as :mod:`nas_llm.distillation`'s; tokens only that are labelled.
            batches: of a round (its number, from 0): ``steps`` of them, the same for every network.
            evaluate: nats per token on held-out batches.
            folder: where weights wait, and what is known is recorded, line by line, so that it goes on from there. In
                the end it holds the weights of the first one returned.
            key: of a network and of the weights that it is put together from, under which it is recorded there.
            progress: (networks trained, of all).
        """
        record = _Record(folder / RECORD)
        keys = {network: key(network) for network in networks}
        known = {network: record.losses(keys[network]) for network in networks}
        left = [
            Ranked(network, known[network][:1] or (record.add(keys[network], 0, evaluate(make(network))),))
            for network in networks
        ]
        left.sort(key=_loss_of)
        plan = self.plan(len(networks))
        done, gone = 0, list[Ranked]()
        for number, count in enumerate(plan):
            left, dropped = left[:count], left[count:]
            gone = dropped + gone
            for place, candidate in enumerate(left):
                network = candidate.network
                # what an earlier search made of a network in later rounds is left out: others were not trained so far
                after = known[network][number + 1 : number + 2]
                if not after:
                    file = partial(weights_file, folder, keys[network])
                    model = self._trained(make(network), number + 1, teacher, loss, batches, file)
                    after = (record.add(keys[network], number + 1, evaluate(model)),)
                    file(number).unlink(missing_ok=True)
                left[place] = replace(candidate, losses=candidate.losses + after)
                done += 1
                progress(done, sum(plan))
            left.sort(key=_loss_of)
        if plan:
            file = partial(weights_file, folder, keys[left[0].network])
            if not file(len(plan)).is_file():
                self._trained(make(left[0].network), len(plan), teacher, loss, batches, file)
        return left + gone

    def _trained(
        self,
        model: PreTrainedModel,
        rounds: int,
        teacher: Supernet | None,
        loss: LogitLoss,
        batches: Callable[[int], Iterable[Batch]],
        file: Callable[[int], Path],
    ) -> PreTrainedModel:
        """A network behind so many rounds, from the last of them whose weights are kept; its own are kept then."""
        begun = max((r for r in range(1, rounds) if file(r).is_file()), default=0)
        if begun:
            restore(model, file(begun))
        for number in range(begun, rounds):
            self._train(model, teacher, loss, batches(number))
        _keep(model, file(rounds))
        return model

    def _train(
        self, model: PreTrainedModel, teacher: Supernet | None, loss: LogitLoss, batches: Iterable[Batch]
    ) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(self.steps, 1), self.final_lr)
        zeros = [(weight, weight.detach() == 0) for weight in sparse_weights(model)]
        model.train()
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            summed, tokens = _loss(model, teacher, loss, batch)
            if tokens == 0:
                continue
            (summed / tokens).backward()
            for weight, places in zeros:  # Adam moves nothing whose gradients were always zero
                if weight.grad is not None:
                    weight.grad.masked_fill_(places, 0)
            if self.gradient_clip_val is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip_val)
            optimizer.step()
            schedule.step()
        model.eval()


def _loss(model: PreTrainedModel, teacher: Supernet | None, loss: LogitLoss, batch: Batch) -> tuple[Tensor, int]:
    tokens, mask, labels = (batch[key].to(model.device) for key in ("input_ids", "attention_mask", "labels"))
    aligned = labels[:, 1:]
    counted = aligned != IGNORED

    def logits(network: PreTrainedModel) -> Tensor:
        return network(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1][counted].float()

    student = logits(model)
    if teacher is None:
        taught = student.detach()
    else:
        with torch.no_grad(), teacher.activate(teacher.largest()) as whole:
            taught = logits(whole)
    return loss(student, taught, aligned[counted]), int(counted.sum())


@dataclass(frozen=True)
class _Record:
    """Losses of networks, one line each."""

    path: Path
    _known: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in read_lines(self.path):
            self._known.setdefault(line["id"], []).append(line["loss"])

    def losses(self, key: str) -> tuple[float, ...]:
        return tuple(self._known.get(key, ()))

    def add(self, key: str, number: int, loss: float) -> float:
        append_line(self.path, {"id": key, "round": number, "loss": loss})
        return loss


def weights_file(folder: Path, key: str, rounds: int) -> Path:
    """Where the weights of a network lie after so many rounds; those before its last are gone."""
    return folder / f"{key}.round{rounds}.safetensors"


def restore(model: PreTrainedModel, file: Path) -> None:
    """Gives a model the weights that rounds of training left."""
    model.load_state_dict(load_file(file), strict=False)


def _keep(model: PreTrainedModel, file: Path) -> None:
    held = {name: value.detach().cpu().contiguous() for name, value in model.named_parameters()}
    with atomic_path(file) as path:
        save_file(held, path)


def _loss_of(ranked: Ranked) -> float:
    return ranked.loss
