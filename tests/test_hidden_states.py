"""Hidden states of a calibration set: a file gives back what memory does; where it is full, one line says so."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from nas_llm.models import hidden_states
from nas_llm.models.hidden_states import HiddenStates


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_given_back_as_they_were_put_and_may_be_replaced(in_memory, dtype):
    shapes = [(2, 3, 4), (1, 5, 4), (2, 2, 4)]
    generator = torch.Generator().manual_seed(0)
    states = HiddenStates([24, 20, 16], in_memory=in_memory)
    assert states[1] is None
    for _ in range(2):
        put = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        for number in (2, 0, 1):
            states[number] = put[number].mT.contiguous().mT  # whatever its strides
        for number in (1, 2, 0):
            assert states[number].dtype == dtype
            assert torch.equal(states[number], put[number])


def test_a_full_disk_is_one_line_that_says_where_and_what_to_do(monkeypatch):
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(hidden_states, "_temporary_file", lambda: full)
        states = HiddenStates([24], in_memory=False)
        with pytest.raises(ValueError, match=r"No space left on device.*TMPDIR.*data\.calibration_size="):
            states[0] = torch.zeros(2, 3, 4)


def test_the_file_goes_with_the_states(monkeypatch):
    made = []
    monkeypatch.setattr(hidden_states, "_temporary_file", lambda: made.append(io.BytesIO()) or made[0])
    states = HiddenStates([24], in_memory=False)
    states[0] = torch.zeros(2, 3, 4)
    assert not made[0].closed
    del states
    assert made[0].closed
