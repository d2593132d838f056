"""Pre-trains a small model on the microworld: the embedded models are experiment=microworld_llama and microworld_neox.

A causal language model from scratch, on generated records packed into blocks (no epoch: every batch is new). The loss
is the weighted mean -sum w_t log p(x_t | x_<t) / sum w_t with w = 1 on answers and ``text_weight`` elsewhere, because
most of a story's own words are drawn at random. Training begins with attention that looks back already (see
nas_llm.models.lookback) and with notes that say everything thrice: from questions alone, it would take far longer.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.atomic_files import atomic_path, write_json, write_text
from nas_llm.config import build, checkpoint_path
from nas_llm.data.microworld import FAMILIES, multiple_choice_sets, train_tokenizer
from nas_llm.data.microworld.blocks import FORMATS, Tokens, pack_whole, repeated, tokenise, write
from nas_llm.data.microworld.lexicon import lexicon
from nas_llm.evaluation.multiple_choice import Accuracy, accuracies
from nas_llm.lightning.checkpoint import AtomicCheckpointIO
from nas_llm.models.lookback import LookBack
from nas_llm.stages.trainer import built_logger, built_trainer, one_line_refusals

READS = ("pretrain", "name", "trainer", "logger", "ckpt_path")
OVERRIDES = {
    "experiment=microworld_llama": "what is made; or microworld_neox, or an own experiment with a node pretrain",
    "run_dir=DIR": "where the model and its scores are written",
    "seed=N": "of the data and of the initial weights",
    "pretrain.learning_rate=X": "at its highest",
    "pretrain.batch_tokens=N": "tokens of a step",
    "pretrain.score_every=N": "steps between scores",
    "trainer.precision=bf16-mixed": "or 32-true",
    "logger=csv": "any of the group's options",
    "ckpt_path=last": "resume the run in run_dir from its newest checkpoint",
}
IGNORES = (
    "trainer.max_steps",
    "trainer.gradient_clip_val",
    "trainer.enable_checkpointing",
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.num_sanity_val_steps",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
)


BYTES = 256  # the alphabet of the tokenizer, beside two special tokens


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum: ``steps`` on blocks of ``sequence_length`` tokens of a ``format``, stories of at most
    ``size`` entities of a kind; ``known_weight`` is the weight of tokens that repeat what the record has said;
    ``families``: their weights, equal if not given; over its last ``decay_steps`` the learning rate falls."""

    steps: int
    format: str
    size: int
    sequence_length: int
    known_weight: float
    families: Mapping[str, float] | None = None
    decay_steps: int = 0

    def __post_init__(self) -> None:
        _refuse_below(self, "pretrain.phases.N", steps=1, size=2, sequence_length=8, known_weight=0, decay_steps=0)
        if self.format not in FORMATS:
            raise ValueError(f"pretrain.phases.N.format={self.format}: allowed are {', '.join(FORMATS)}")
        if unknown := sorted(set(self.families or ()) - set(FAMILIES)):
            raise ValueError(f"pretrain.phases.N.families.{unknown[0]}: allowed are {', '.join(FAMILIES)}")


@dataclass(frozen=True)
class Recipe:
    """How to pre-train; the fields are the experiment's ``pretrain`` node.

    batch_tokens: of a step, so that the shorter the blocks, the more of them. The learning rate rises over
    ``warmup_steps``, stays, and falls linearly to 2 % over the last ``decay_steps`` of a phase that has them.
    """

    model: PretrainedConfig
    initialisation: LookBack
    phases: Sequence[Phase]
    vocab_size: int
    batch_tokens: int
    seed: int
    learning_rate: float
    weight_decay: float
    betas: Sequence[float]
    warmup_steps: int
    gradient_clip: float
    text_weight: float
    score_every: int
    items_per_set: int

    def __post_init__(self) -> None:
        positive = {"vocab_size": BYTES + 2, "batch_tokens": 1, "warmup_steps": 1, "score_every": 1, "items_per_set": 1}
        _refuse_below(self, "pretrain", **positive, learning_rate=0, weight_decay=0, gradient_clip=0, text_weight=0)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"pretrain.betas={list(self.betas)}: allowed are two numbers from 0 to below 1")
        if not self.phases:
            raise ValueError("pretrain.phases=[]: there has to be a phase, or there is nothing to train")
        longest = max(phase.sequence_length for phase in self.phases)
        if self.batch_tokens < longest:
            raise ValueError(
                f"pretrain.batch_tokens={self.batch_tokens}: allowed is the longest block, {longest}, or more"
            )
        if longest > self.model.max_position_embeddings:
            raise ValueError(
                f"pretrain.phases.N.sequence_length={longest}: allowed are at most the "
                f"pretrain.model.max_position_embeddings={self.model.max_position_embeddings} tokens"
            )

    @property
    def steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases)

    def learning_rate_factor(self, step: int) -> float:
        """What the learning rate is multiplied with in ``step``."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        if step >= self.steps:  # the scheduler looks one step ahead
            return warm
        phase, end = self._phase_and_end(step)
        return warm * (min(1.0, max(0.02, (end - step) / phase.decay_steps)) if phase.decay_steps else 1.0)

    def phase(self, step: int) -> Phase:
        """The phase that ``step`` lies in."""
        return self._phase_and_end(step)[0]

    def _phase_and_end(self, step: int) -> tuple[Phase, int]:
        ends = accumulate(phase.steps for phase in self.phases)
        return next((phase, end) for phase, end in zip(self.phases, ends, strict=True) if step < end)


def _refuse_below(settings: Any, prefix: str, **least: float) -> None:
    for key, low in least.items():
        if getattr(settings, key) < low:
            raise ValueError(f"{prefix}.{key}={getattr(settings, key)}: allowed is {low} or more")


class Batches:
    """Generated batches from step ``start`` on, each a function of (seed, step): training resumes anywhere."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, start: int = 0) -> None:
        self.recipe, self.tokenizer, self._step = recipe, tokenizer, start

    def __len__(self) -> int:
        return self.recipe.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while self._step < self.recipe.steps:
            self._step += 1
            yield self.batch(self._step - 1)

    def state_dict(self) -> dict[str, int]:
        """Lightning saves it, and hands it back when it resumes."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where ``state`` was taken."""
        self._step = state["step"]

    def batch(self, step: int) -> dict[str, Tensor]:
        """``input_ids`` and ``weights`` (0 on padding), both of shape (blocks, sequence_length)."""
        recipe, phase, words = self.recipe, self.recipe.phase(step), lexicon(held_out=False)
        rng = Random(f"pretrain {recipe.seed} {step}")

        def next_record() -> Tokens:
            return tokenise(self.tokenizer, write(rng, words, phase.format, phase.size, phase.families))

        rows = recipe.batch_tokens // phase.sequence_length
        input_ids = torch.full((rows, phase.sequence_length), self.tokenizer.pad_token_id)
        weights = torch.zeros(rows, phase.sequence_length)
        for row, block in zip(range(rows), pack_whole(next_record, phase.sequence_length), strict=False):
            length = len(block.input_ids)
            input_ids[row, :length] = torch.from_numpy(block.input_ids)
            known = repeated(block.input_ids, self.tokenizer.eos_token_id) * max(phase.known_weight, recipe.text_weight)
            weights[row, :length] = torch.from_numpy(np.maximum(block.is_answer, known).clip(recipe.text_weight))
        return {"input_ids": input_ids, "weights": weights}


class Pretraining(LightningModule):
    """The model, its loss, its optimizer and their schedule."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model, self.recipe, self.tokenizer = model, recipe, tokenizer

    def train_dataloader(self) -> Batches:
        return Batches(self.recipe, self.tokenizer, self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.learning_rate,
            betas=(recipe.betas[0], recipe.betas[1]),
            weight_decay=recipe.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(batch["input_ids"], use_cache=False).logits[:, :-1]
        labels, weights = batch["input_ids"][:, 1:].flatten(), batch["weights"][:, 1:].flatten()
        losses = F.cross_entropy(logits.float().flatten(0, 1), labels, reduction="none")
        loss, is_answer = (losses * weights).sum() / weights.sum(), weights == 1
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss of step {self.trainer.global_step} is {loss.item()}: lower pretrain.learning_rate"
            )
        self.log_dict({"loss": loss, "answer_loss": losses.detach()[is_answer].mean()}, prog_bar=True)
        return loss


class Scores(Callback):
    """Scores the multiple-choice sets of another seed than the final ones every ``score_every`` steps."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        recipe, step = module.recipe, trainer.global_step
        if step % recipe.score_every:
            return
        sets = multiple_choice_sets(recipe.seed + 1, max(1, recipe.items_per_set // 4))
        found = accuracies(module.model, module.tokenizer, sets)
        listed = ", ".join(f"{name} {100 * score.summed:.0f}" for name, score in found.items())
        answer_loss = trainer.callback_metrics["answer_loss"]
        print(f"step {step}: answer loss {answer_loss:.3f}, accuracy in %: {listed}", flush=True)
        module.log_dict({f"accuracy_{name}": score.summed for name, score in found.items()})


def main(cfg: DictConfig) -> None:
    """Trains, saves the model in bfloat16 under ``run_dir/model``, reloads it, and scores what was saved."""
    if "pretrain" not in cfg:
        raise ValueError("pretrain is missing: add experiment=microworld_llama or experiment=microworld_neox")
    recipe: Recipe = build(cfg.pretrain)
    seed_everything(recipe.seed, verbose=False)
    tokenizer = train_tokenizer(recipe.vocab_size, recipe.seed)
    # At this size PyTorch's fused attention takes twice as long as the plain one on a CPU.
    model = AutoModelForCausalLM.from_config(recipe.model, attn_implementation="eager", dtype=torch.float32)
    recipe.initialisation(model)
    run_dir, started = Path(cfg.run_dir), time.monotonic()
    checkpoints = ModelCheckpoint(
        run_dir / "checkpoints", save_last=True, save_top_k=0, every_n_train_steps=2 * recipe.score_every
    )
    trainer = built_trainer(
        cfg,
        logger=built_logger(cfg),
        callbacks=[Scores(), checkpoints],
        plugins=[AtomicCheckpointIO()],
        max_steps=recipe.steps,
        gradient_clip_val=recipe.gradient_clip,
    )
    if trainer.world_size > 1:
        raise ValueError(f"trainer.devices={trainer.world_size}: pre-training is one process, set trainer.devices=1")
    with one_line_refusals(cfg):
        trainer.fit(Pretraining(model, recipe, tokenizer), ckpt_path=checkpoint_path(cfg))
    save(model, tokenizer, recipe, run_dir / "model")
    report(cfg.name, run_dir, recipe, time.monotonic() - started)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, path: Path) -> None:
    """The model in bfloat16 and its tokenizer, as Hugging Face writes them; the whole directory or nothing."""
    tokenizer.model_max_length = recipe.model.max_position_embeddings
    with atomic_path(path) as temporary:
        model.to(dtype=torch.bfloat16).save_pretrained(temporary)  # type: ignore[call-arg]
        tokenizer.save_pretrained(temporary)


def report(name: str, run_dir: Path, recipe: Recipe, seconds: float) -> None:
    """Scores the saved model on the sets of seed 0 and writes ``results.json`` and the model's card."""
    model = AutoModelForCausalLM.from_pretrained(run_dir / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model")
    found = accuracies(model, tokenizer, multiple_choice_sets(0, recipe.items_per_set))
    metrics = [
        {
            "name": "accuracy",
            "value": 100 * score.summed,
            "unit": "%",
            "architecture": "largest",
            "split": "test",
            "data": f"microworld/{family}",
            "samples": score.samples,
            "standard_error": 100 * score.standard_error,
        }
        for family, score in found.items()
    ]
    write_json(run_dir / "results.json", {"metrics": metrics})
    write_text(run_dir / "model" / "README.md", card(name, recipe, model.num_parameters(), seconds, found))
    for family, score in found.items():
        print(f"{family}: {100 * score.summed:.1f} %")


def card(name: str, recipe: Recipe, parameters: int, seconds: float, found: Mapping[str, Accuracy]) -> str:
    """The model card: where the model comes from and what it scores."""
    config, threads = recipe.model, torch.get_num_threads()
    rows = "\n".join(
        f"| {family} | {100 * s.summed:.1f} | {100 * s.normalised:.1f} | {100 * s.standard_error:.1f} | {s.samples} |"
        for family, s in found.items()
    )
    return f"""# {name}

A {config.model_type} model of {parameters:,} parameters, pre-trained from scratch on the microworld, a closed little
world in English that `nas_llm.data.microworld` generates from a seed. It is the embedded default: small enough to be
compressed in minutes on a CPU, good enough to have something to lose.

    nas-llm pretrain experiment={name}

| | |
|---|---|
| seed | {recipe.seed} |
| steps | {recipe.steps:,} |
| tokens | {recipe.steps * recipe.batch_tokens:,} ({recipe.batch_tokens:,} a step) |
| wall time | {seconds / 60:.0f} minutes, {threads} thread{"s" if threads > 1 else ""} |
| weights | bfloat16; {config.num_hidden_layers} layers, hidden {config.hidden_size}, vocabulary {config.vocab_size} |

Accuracy of the saved file in percent (float32 arithmetic), by the options' summed and by their mean log-likelihood. The
names and things of these sets never occur in the training text: `multiple_choice_sets(0, {recipe.items_per_set})`.

| set | summed | per token | standard error | items |
|---|---|---|---|---|
{rows}
"""
