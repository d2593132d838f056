"""Instruction data in Alpaca form: {"instruction", "input" (optional), "output"}, one record per pair.

A record is [BOS] prompt output EOS, the prompt by `alpaca_prompt`; with mask_prompt only output and EOS bear loss.
The prompt's tokens are those of the prompt alone, as at inference, so that no token straddles prompt and output.
"""

import logging
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from nas_llm.data.cache import adds_bos, encode, tokenizer_digest
from nas_llm.data.files import DataFiles, check_sequence_length
from nas_llm.data.module import SplitDataModule
from nas_llm.data.questions import Question, question
from nas_llm.data.records import TokenRecords
from nas_llm.data.sources import Row, Source, text_field
from nas_llm.data.template import WITH_INPUT, WITHOUT_INPUT, alpaca_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class InstructionData(SplitDataModule):
    """Instruction pairs from local files, a folder or a hub dataset.

    path: .json (an array), .jsonl, .parquet, a folder of these, or hub `owner/name[:split]`.
    sequence_length: longer records are cut (and then have no EOS); mask_prompt: no loss on the prompt.
    *_size: a fraction or a count of the pairs of `path`; *_path: the split's own data, then without a size.
    batch_size: pairs of a global batch; max_records: read only the first pairs of `path`.
    model_max_length: the positions the model has.

    Raises ValueError, naming the setting, for impossible settings, data that cannot be read or too few of them.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        path: str,
        *,
        sequence_length: int = 512,
        mask_prompt: bool = True,
        batch_size: int = 8,
        seed: int = 0,
        validation_size: float = 0.05,
        calibration_size: float = 64,
        test_size: float = 0.05,
        validation_path: str | None = None,
        calibration_path: str | None = None,
        test_path: str | None = None,
        subset: str | None = None,
        max_records: int | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
        model_max_length: int | None = None,
    ) -> None:
        check_sequence_length(sequence_length, model_max_length)
        self.sequence_length, self.mask_prompt = sequence_length, mask_prompt
        self.files = DataFiles(
            path=path,
            paths={"validation": validation_path, "calibration": calibration_path, "test": test_path},
            sizes={"validation": validation_size, "calibration": calibration_size, "test": test_size},
            seed=seed,
            subset=subset,
            max_records=max_records,
            cache_dir=cache_dir,
        )
        super().__init__(tokenizer, batch_size=batch_size, seed=seed, num_workers=num_workers)
        self._pairs: dict[str, TokenRecords] | None = None

    def prepare_data(self) -> None:
        """Tokenise what is not in the cache."""
        self._pairs = self._tokenise()

    def build(self) -> dict[str, TokenRecords]:
        pairs = self._tokenise() if self._pairs is None else self._pairs
        return self.files.split({name: self._fit(name, records) for name, records in pairs.items()})

    def questions(self, split: str) -> list[Question]:
        """The records of a split, in its order; how an answer is read follows from the record's own `answer`."""
        wanted = self.dataset(split).keys()
        pairs = self._tokenise() if self._pairs is None else self._pairs
        name = split if split in pairs else "train"
        kept = self._kept(pairs[name])
        rows: dict[bytes, int] = {}
        for row, key in zip(kept, self._fit(name, pairs[name]).keys(), strict=True):
            rows.setdefault(key, int(row))
        limit = self.files.max_records if name == "train" else None
        found = list(islice(self.files.source(name).rows(), limit))
        return [question(row, where) for where, row in (found[rows[key]] for key in wanted)]

    def _tokenise(self) -> dict[str, TokenRecords]:
        signature = {
            "kind": "instruction 1",
            "template": [WITH_INPUT, WITHOUT_INPUT],
            "tokenizer": tokenizer_digest(self.tokenizer),
        }
        return self.files.tokenise(self._read, signature)

    def _read(self, source: Source, limit: int | None) -> TokenRecords:
        pairs = [_pair(row, where) for where, row in islice(source.rows(), limit)]
        prompts = encode(self.tokenizer, [prompt for prompt, _ in pairs])
        outputs = encode_outputs(self.tokenizer, pairs, prompts)
        bos = [self.tokenizer.bos_token_id] if adds_bos(self.tokenizer) else []
        eos = [self.tokenizer.eos_token_id]
        return TokenRecords.from_lists(
            (np.concatenate([bos, p, o, eos]).astype(np.int32) for p, o in zip(prompts, outputs, strict=True)),
            [len(bos) + len(prompt) for prompt in prompts],
        )

    def _fit(self, name: str, records: TokenRecords) -> TokenRecords:
        """Cut to sequence_length; records whose prompt alone fills it are left out where the prompt bears no loss."""
        masked = self._masked(records)
        long = int((records.lengths > self.sequence_length).sum())
        kept = self._kept(records)
        if long:
            log.info(
                "%s: %d of %d records are longer than %d tokens and cut", name, long, len(records), self.sequence_length
            )
        if len(kept) < len(records):
            log.warning("%s: %d records left out, their prompt fills the sequence", name, len(records) - len(kept))
        if not len(kept):
            raise ValueError(
                f"data.sequence_length={self.sequence_length}: the prompts of all {len(records)} records fill it; "
                f"set data.sequence_length above {int(masked.min())}"
            )
        return TokenRecords.from_lists(
            [records.ids(int(i))[: self.sequence_length] for i in kept], masked[kept].tolist()
        )

    def _masked(self, records: TokenRecords) -> np.ndarray:
        """How many leading tokens of each record bear no loss, (records,)."""
        return records.masked if self.mask_prompt else np.zeros_like(records.masked)

    def _kept(self, records: TokenRecords) -> np.ndarray:
        """Indices of the records that something is learned from."""
        return np.flatnonzero(self._masked(records) < self.sequence_length)


def encode_outputs(
    tokenizer: "PreTrainedTokenizerBase", pairs: list[tuple[str, str]], prompts: list[np.ndarray]
) -> list[np.ndarray]:
    """The tokens with which each output continues its prompt: prompt and output as one text where the tokens of that
    begin with the prompt's, else the output's own (some tokenizers put a space before a text of its own)."""
    joint = encode(tokenizer, [prompt + output for prompt, output in pairs])
    outputs = [whole[len(prompt) :] for whole, prompt in zip(joint, prompts, strict=True)]
    straddling = [i for i, ids in enumerate(prompts) if not np.array_equal(joint[i][: len(ids)], ids)]
    for i, alone in zip(straddling, encode(tokenizer, [pairs[i][1] for i in straddling]), strict=True):
        outputs[i] = alone
    return outputs


def _pair(row: Row, where: str) -> tuple[str, str]:
    mend = "instruction data have the fields 'instruction', 'input' (may be left out) and 'output'"
    if isinstance(row, str):
        raise ValueError(
            f"{where}: plain text is no instruction data; use data=text, or a .json, .jsonl or .parquet file"
        )
    instruction = text_field(row, "instruction", where, mend=mend)
    context = text_field(row, "input", where, mend=mend, optional=True)
    return alpaca_prompt(instruction, context), text_field(row, "output", where, mend=mend)
