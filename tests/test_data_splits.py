"""The four splits: disjoint, of the asked sizes, a function of seed and content."""

import numpy as np
import pytest

from nas_llm.data.packing import pack
from nas_llm.data.records import TokenRecords
from nas_llm.data.splits import HELD_OUT, check_size, split_records

SIZES = {"test": 0.1, "validation": 5, "calibration": 3}


def contents(records: TokenRecords) -> list[tuple[int, ...]]:
    return [tuple(record["input_ids"].tolist()) for record in records]


def numbered(count: int, copies: int = 1) -> TokenRecords:
    return TokenRecords.from_lists([[i, i + 1, 7] for i in range(count)] * copies)


def test_counts_and_fractions_are_met_and_the_rest_is_for_training():
    splits = split_records(numbered(50), {}, SIZES, seed=0)
    assert {name: len(records) for name, records in splits.items()} == {
        "test": 5,
        "validation": 5,
        "calibration": 3,
        "train": 37,
    }
    assert sorted(record for records in splits.values() for record in contents(records)) == contents(numbered(50))


def test_the_seed_decides():
    first, again, other = (split_records(numbered(50), {}, SIZES, seed=seed) for seed in (0, 0, 1))
    assert all(contents(first[name]) == contents(again[name]) for name in first)
    assert all(contents(first[name]) != contents(other[name]) for name in first)


def test_duplicates_never_land_in_two_splits():
    splits = split_records(numbered(50, copies=3), {}, SIZES, seed=2)
    seen = [set(contents(records)) for records in splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 50
    assert len(splits["validation"]) == 5
    assert len(splits["test"]) == 15  # a tenth of the 150 records, all of them distinct


def test_a_split_with_a_file_of_its_own_shares_nothing_with_the_rest():
    own = TokenRecords.from_lists([[3, 4, 7], [900, 901], [3, 4, 7]])
    splits = split_records(numbered(50), {"validation": own}, SIZES, seed=0)
    kept = contents(splits["validation"])
    assert kept == contents(own)
    others = [record for name in ("train", "test", "calibration") for record in contents(splits[name])]
    assert not set(kept) & set(others)
    assert len(others) == 49


def test_the_test_file_wins_over_the_validation_file():
    both = TokenRecords.from_lists([[900], [901]])
    splits = split_records(numbered(9), {"test": both.take([0]), "validation": both}, {"calibration": 1}, seed=0)
    assert contents(splits["test"]) == [(900,)]
    assert contents(splits["validation"]) == [(901,)]


def test_documents_fill_blocks_before_packing():
    generator = np.random.default_rng(0)
    documents = TokenRecords.from_lists([[i] * int(generator.integers(3, 40)) for i in range(100)])
    splits = split_records(documents, {}, {"test": 4, "validation": 0.2, "calibration": 0}, seed=0, block_length=16)
    owners = {name: set(records.tokens.tolist()) for name, records in splits.items()}
    assert sum(map(len, owners.values())) == 100
    assert len(set.union(*owners.values())) == 100
    assert len(pack(splits["test"], 16, at_most=4)) == 4
    share = len(splits["validation"].tokens) / len(documents.tokens)
    assert 0.2 <= share < 0.2 + 40 / len(documents.tokens)
    assert len(splits["calibration"]) == 0


def test_packed_blocks_are_the_documents_in_a_row():
    documents = TokenRecords.from_lists([[1, 2, 3, 0], [4, 5, 0], [6, 7, 8, 9, 0]])
    blocks = pack(documents, 5)
    assert contents(blocks) == [(1, 2, 3, 0, 4), (5, 0, 6, 7, 8)]
    assert all(record["labels"].tolist() == record["input_ids"].tolist() for record in blocks)


@pytest.mark.parametrize(
    ("records", "sizes"),
    [
        (numbered(10), {"test": 5, "validation": 5, "calibration": 0}),
        (numbered(10), {"test": 5, "validation": 9, "calibration": 0}),
        (numbered(2, copies=9), {"test": 0.3, "validation": 0.3, "calibration": 0}),
    ],
)
def test_splits_larger_than_the_data_are_refused(records, sizes):
    with pytest.raises(
        ValueError, match=rf"data.validation_size={sizes['validation']}.*data.test_size=.*{len(records)} records"
    ):
        split_records(records, {}, sizes, seed=0)


@pytest.mark.parametrize("size", [-1, 1.0, 1.5, -0.1, True, "0.1", None])
def test_a_size_is_a_count_or_a_fraction(size):
    with pytest.raises(ValueError, match=r"data.test_size=.* must be a count"):
        check_size("test", size)


@pytest.mark.parametrize("size", [0, 3, 0.0, 0.5])
def test_good_sizes_pass(size):
    for split in HELD_OUT:
        check_size(split, size)
