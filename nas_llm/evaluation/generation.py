"""Accuracy by generation: the share of questions whose greedily generated answer is right.

Questions are asked in batches of similar length, padded on the left, with a key/value cache; what a row says does not
depend on what else is in its batch, but for the rounding of sums. A row ends with the end of sequence, with the
beginning of another prompt (HEADING), where its answer can no longer change, or after `max_new_tokens`.

Shapes: input ids (batch, longest prompt), left-padded; sequences (batch, longest prompt + new tokens).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from nas_llm.data.cache import adds_bos, encode
from nas_llm.data.questions import Question
from nas_llm.evaluation.answers import rule_of
from nas_llm.models.modes import evaluating

HEADING = "\n###"  # how the prompt's parts begin: what follows is another question of the model's own making

Finished = Callable[[str], bool]


@dataclass(frozen=True)
class Answered:
    """A question, the text that a network wrote, the answer read from it (None: none), and whether that is right."""

    question: Question
    text: str
    read: str | None
    right: bool


@dataclass(frozen=True)
class GeneratedAnswers:
    """The answers to the questions of one task."""

    answers: tuple[Answered, ...]

    @property
    def samples(self) -> int:
        return len(self.answers)

    @property
    def accuracy(self) -> float:
        """The share of right answers, in 0..1."""
        return sum(answer.right for answer in self.answers) / self.samples

    @property
    def unread(self) -> int:
        """Texts that give no answer; they count as wrong."""
        return sum(answer.read is None for answer in self.answers)

    @property
    def standard_error(self) -> float:
        """Of ``accuracy``: sqrt(p (1 - p) / (n - 1)), 0 for a single question."""
        return (self.accuracy * (1 - self.accuracy) / max(self.samples - 1, 1)) ** 0.5


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Sequence[Question]],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    group: str = "",
) -> dict[str, GeneratedAnswers]:
    """Asks all questions of all tasks, in batches across tasks; the arguments are those of ``generate``.

    Raises:
        ValueError: a task without questions, a question that no text could answer (``rule_of``), and as ``generate``.
    """
    for name, questions in tasks.items():
        if not questions:
            raise ValueError(f"the task {name!r} has no questions: give it at least one")
    questions = [question for members in tasks.values() for question in members]
    rules = [rule_of(question) for question in questions]
    texts = generate(
        model,
        tokenizer,
        [question.prompt for question in questions],
        [rule.settled for rule in rules],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        group=group,
    )
    answers = []
    for question, rule, text in zip(questions, rules, texts, strict=True):
        read = rule.read(text)
        answers.append(Answered(question, text, read, rule.is_right(read, question.answer)))
    remaining = iter(answers)
    return {name: GeneratedAnswers(tuple(next(remaining) for _ in members)) for name, members in tasks.items()}


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    finished: Sequence[Finished] | None = None,
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    group: str = "",
) -> list[str]:
    """What the model greedily writes after each prompt, up to the end of sequence or the next HEADING.

    The prompts' tokens are those of training: with the beginning of sequence where the tokenizer itself puts one. The
    model is in evaluation mode, and its own generation settings are set aside, for the time of it.

    Args:
        model: a causal language model, a super-network's active sub-network too.
        tokenizer: the model's.
        prompts: texts.
        finished: for each prompt, whether a text needs no more tokens.
        max_new_tokens: of each text.
        batch_size: prompts that are run at once.
        group: where the two numbers are set, for errors, as "objectives.generated_accuracy.".

    Raises:
        ValueError: a number below 1, a tokenizer without an end of sequence, or a prompt that leaves no room for
            max_new_tokens among the model's positions.
    """
    for key, value in {"max_new_tokens": max_new_tokens, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{group}{key}={value} must be at least 1; set {group}{key}=32")
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-sequence token, which ends answers; set eos_token in the "
            "tokenizer_config.json beside the model"
        )
    start = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    ids = [start + tokens.tolist() for tokens in encode(tokenizer, prompts)]
    _refuse_long(model, ids, max_new_tokens, f"{group}max_new_tokens")
    ends = _end_tokens(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(ids[i]))  # the largest first: memory errors come at once
    with evaluating(model), _without_own_settings(model):
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            wanted = [finished[i] if finished is not None else _never for i in chosen]
            for i, text in zip(
                chosen, _batch(model, tokenizer, [ids[i] for i in chosen], wanted, settings), strict=True
            ):
                texts[i] = text
    return texts


def _batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[Sequence[int]],
    finished: Sequence[Finished],
    settings: GenerationConfig,
) -> list[str]:
    longest = max(len(row) for row in ids)
    padded = [[settings.pad_token_id] * (longest - len(row)) + list(row) for row in ids]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in ids]
    done = [False] * len(ids)
    ends: Any = settings.eos_token_id

    def stop(sequences: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which rows need no more tokens, (batch,)."""
        open_rows = [row for row, is_done in enumerate(done) if not is_done]
        for row, text in zip(open_rows, written(sequences[open_rows]), strict=True):
            done[row] = HEADING in text or finished[row](text)
        return torch.tensor(done, device=sequences.device)

    def written(sequences: Tensor) -> list[str]:
        """The texts of new tokens, each up to its end of sequence."""
        rows = [_until(row, ends) for row in sequences[:, longest:].tolist()]
        return tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    generator: Any = model  # whose class gets `generate` from a mixin that its annotations do not tell of
    with torch.inference_mode():
        sequences = generator.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([stop]),
        )
    return [text.partition(HEADING)[0] for text in written(sequences)]


def _until(row: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The tokens before the first end of sequence."""
    return list(row[: next((i for i, token in enumerate(row) if token in ends), len(row))])


def _never(text: str) -> bool:
    return False


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end of sequence, and the special tokens that the model's own settings end a text with besides (of
    turns of a chat); other tokens there are defaults of a configuration class that this tokenizer knows nothing of."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    more = own if isinstance(own, list) else [] if own is None else [own]
    special = [token for token in more if token in tokenizer.all_special_ids]
    return list(dict.fromkeys([int(tokenizer.eos_token_id), *special]))  # type: ignore[arg-type]


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """`generate` fills what it was not told from the model's own settings (penalties, least lengths, sampling)."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _refuse_long(model: PreTrainedModel, ids: Sequence[Sequence[int]], max_new_tokens: int, key: str) -> None:
    allowed = getattr(model.config, "max_position_embeddings", None)
    lengths = [len(row) for row in ids]
    if allowed is None or not lengths or max(lengths) + max_new_tokens <= allowed:
        return
    long, room = sum(length + max_new_tokens > allowed for length in lengths), allowed - max(lengths)
    mend = f"set {key}={room} or less, or leave them out" if room >= 1 else "leave them out, or shorten them"
    raise ValueError(
        f"{long} of {len(ids)} prompts (up to {max(lengths)} tokens) and {key}={max_new_tokens} need more than "
        f"the model's {allowed} positions: {mend}"
    )
