"""Documents into blocks: one stream of tokens, cut every `sequence_length`; the labels are the tokens themselves."""

import numpy as np

from nas_llm.data.records import TokenRecords


def pack(documents: TokenRecords, sequence_length: int, *, at_most: int | None = None) -> TokenRecords:
    """Blocks of shape (sequence_length,) over the documents in order; the incomplete last block is left out."""
    blocks = len(documents.tokens) // sequence_length
    if at_most is not None:
        blocks = min(blocks, at_most)
    return TokenRecords(
        tokens=documents.tokens[: blocks * sequence_length],
        offsets=np.arange(blocks + 1, dtype=np.int64) * sequence_length,
        masked=np.zeros(blocks, dtype=np.int32),
    )
