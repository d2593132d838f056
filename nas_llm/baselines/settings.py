"""A baseline that is made of a method of another group: refusals name the settings where the user gave them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def named_as_baseline(group: str) -> Iterator[None]:
    """Inside the block, refusals that name settings of ``group`` (``sparsity.pattern=2:4``) name those of the baseline
    (``baseline.pattern=2:4``); its option ``none`` is another baseline.

    Raises:
        ValueError: one was raised.
    """
    try:
        yield
    except ValueError as error:
        said = re.sub(rf"(?<![.\w]){group}=none\b", "another baseline=", str(error))
        raise ValueError(re.sub(rf"(?<![.\w]){group}(?=[.=:])", "baseline", said)) from error
