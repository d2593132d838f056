"""lm-eval's Hugging Face model on a network that is there already: plain, quantised, or active in a super-network.

It differs from the harness's own in what it refuses or tells: prompts longer than the context are refused, or cut from
the left as the harness does and counted; a rolling text begins with one beginning of sequence, where a tokenizer that
puts one itself would have a second one, at about 9 nats a document; and probabilities are of float32, where log-softmax
and sums in bfloat16 would round a long answer's likelihood to whole nats.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.data.cache import adds_bos
from nas_llm.evaluation.multiple_choice import Pair

LARGEST_BATCH = 64
LOGITS_BYTES = 2**29  # of one batch on a CPU, where no memory error would tell that a batch is too large


@dataclass(frozen=True)
class Network:
    """What the harness uses of a model, without what it would do to one: tie its weights, which cut ones are not."""

    model: PreTrainedModel

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(self, input_ids: Tensor) -> Any:
        """Logits of shape (batch, sequence, vocabulary), as `.logits`."""
        return self.model(input_ids=input_ids, use_cache=False)

    def generate(self, **settings: Any) -> Tensor:
        """Sequences of shape (batch, prompt + new tokens)."""
        generator: Any = self.model  # whose class gets `generate` from a mixin that its annotations do not tell of
        return generator.generate(**settings)


class HarnessModel(HFLM):
    """A causal language model as the harness asks it.

    Args:
        model: in evaluation mode.
        tokenizer: the model's; a copy is used, as the harness sets padding.
        batch_size: requests that are run at once; "auto": what fits.
        max_length: tokens of a sequence; None: the model's positions.
        add_bos_token: None: as the tokenizer does by itself, once.
        truncate: cut prompts that are too long from the left, instead of refusing them.
        key: where these are set, for errors.

    Raises:
        ValueError: no special token to begin a text with, or `max_length` above the model's positions.
    """

    add_bos_token: bool | None

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | str,
        max_length: int | None,
        add_bos_token: bool | None,
        truncate: bool,
        key: str,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no end-of-sequence token, which the harness ends and begins texts with; set "
                "eos_token in the tokenizer_config.json beside the model"
            )
        positions = resolve_max_length(model.config, tokenizer)
        if max_length is not None and max_length > positions:
            raise ValueError(f"{key}max_length={max_length}: the model has {positions} positions; set that or less")
        length = max_length or positions
        size = _fitting(model, length) if batch_size == "auto" and model.device.type == "cpu" else batch_size
        network: Any = Network(model)
        super().__init__(
            pretrained=network,
            tokenizer=copy.deepcopy(tokenizer),  # type: ignore[arg-type]
            batch_size=size,
            max_batch_size=LARGEST_BATCH,
            max_length=length,
            softmax_dtype=torch.float32,
            add_bos_token=add_bos_token,
        )
        self.truncate, self.key = truncate, key
        self.cut: dict[str, int] = {}  # task -> documents' requests that were cut
        self._positions = positions
        self._requests: Sequence[Instance] = ()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness's.

        Raises:
            ValueError: a request is longer than the context, and nothing may be cut, or its answer alone is.
        """
        self._requests = requests
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As the harness's, after one beginning of sequence."""
        given = self.add_bos_token
        if given is None and adds_bos(self.tokenizer):
            self.add_bos_token = False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.add_bos_token = given

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As the harness's.

        Raises:
            ValueError: a prompt leaves no room for the new tokens, and nothing may be cut, or those alone have none.
        """
        over: dict[str, list[int]] = {}
        for request in requests:
            prompt, settings = request.args[:2]
            new = int(normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"])
            if new >= self.max_length:
                raise ValueError(
                    f"{self.key}tasks={request.task_name} generates up to {new} tokens, {self._room}: set "
                    "max_gen_toks in the task's generation_kwargs below that, or leave the task out"
                )
            length = len(self.tok_encode(prompt)) + new
            if length > self.max_length:
                over.setdefault(str(request.task_name), []).append(length)
        self._note(over)
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        if override_bs is None:  # not the windows of a rolling text, which fit
            self._note_long(requests)
        return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)

    def _note_long(self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]]) -> None:
        over: dict[str, list[int]] = {}
        for request, (_, context, option) in zip(self._requests, requests, strict=True):
            if len(option) > self.max_length:
                raise ValueError(
                    f"{self.key}tasks={request.task_name} has an answer of {len(option)} tokens, {self._room}: "
                    "leave the task out"
                )
            if len(context) + len(option) > self.max_length + 1:
                over.setdefault(str(request.task_name), []).append(len(context) + len(option))
        self._note(over)

    @property
    def _room(self) -> str:
        limited = f"{self.key}max_length allows" if self.max_length < self._positions else "the model has"
        return f"{limited} {self.max_length} positions"

    def _note(self, over: dict[str, list[int]]) -> None:
        for task, lengths in over.items():
            if not self.truncate:
                raise ValueError(
                    f"{self.key}tasks={task} is too long for the model: {len(lengths)} of its requests have up to "
                    f"{max(lengths)} tokens, {self._room}; set {self.key}truncate=true to cut them from the left, as "
                    f"the harness does, fewer examples ({self.key}num_fewshot), or leave the task out"
                )
            self.cut[task] = self.cut.get(task, 0) + len(lengths)


def _fitting(model: PreTrainedModel, length: int) -> int:
    """Sequences whose logits take LOGITS_BYTES."""
    of_one = 4 * length * int(model.config.get_text_config().vocab_size)
    return max(1, min(LARGEST_BATCH, LOGITS_BYTES // of_one))


def token_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Instance],
    *,
    truncate: bool,
    key: str,
) -> list[Pair]:
    """The tokens of each request's context and answer as the harness runs them, cut from the left where it cuts.

    Raises:
        ValueError: as `HarnessModel`.
    """
    asked = _Encoding(model, tokenizer, batch_size=1, max_length=None, add_bos_token=None, truncate=truncate, key=key)
    asked.loglikelihood(list(requests), disable_tqdm=True)
    return [asked.cut_to_fit(context, option) for context, option in asked.pairs]


class _Encoding(HarnessModel):
    """Stops where the model would be asked."""

    pairs: Sequence[Pair] = ()

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        self._note_long(requests)
        self.pairs = [(context, option) for _, context, option in requests]
        return [(0.0, False)] * len(requests)

    def cut_to_fit(self, context: list[int], option: list[int]) -> Pair:
        whole = (context + option)[-(self.max_length + 1) :]
        return whole[: -len(option)], option
