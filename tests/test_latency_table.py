"""Latency of operators: exact where time is made to add up, in every family; refusals; what a file keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from test_families import FAMILIES, build
from test_operator_costs import draw, pool
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel

from nas_llm.models.operator_assembly import assemble
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import (
    SUBLAYERS,
    Ffn,
    Heads,
    Identity,
    Linear,
    OperatorNetwork,
    Quantized,
    Sparse,
    Teacher,
)
from nas_llm.operators.latency_comparison import Comparison, as_text, compare
from nas_llm.operators.latency_measurement import LatencyMeasurement, even
from nas_llm.operators.latency_table import LatencyTable, key_of, teacher_keys

QUICK = LatencyMeasurement(batch_size=2, sequence_length=6, depth=2, warmup=0, rounds=2)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when a module runs: by 1 and by its own weights and buffers, times its slowness."""
    now = [0.0, 1.0]

    def ran(module, args, out):
        held = (*module._parameters.values(), *module._buffers.values())
        now[0] += now[1] * (1 + sum(t.numel() for t in held if t is not None))

    monkeypatch.setattr("nas_llm.models.timing.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("nas_llm.models.timing.time.process_time", lambda: 2 * now[0])
    handle = register_module_forward_hook(ran)
    yield now
    handle.remove()


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", FAMILIES)
def test_where_time_adds_up_every_network_is_predicted(name, phase, clock):
    supernet, measurement = build(name), replace(QUICK, phase=phase)
    operators = pool(supernet)
    table = measurement(supernet, operators, rng())
    networks = [draw(supernet, operators, seed) for seed in range(4)]
    rows = compare(supernet, networks, table, measurement, rng())
    assert [row.id for row in rows] == 2 * [network.id for network in (OperatorNetwork.teacher(4), *networks)]
    for row in rows:
        assert row.predicted_ms == pytest.approx(row.measured_ms, rel=1e-6)
        assert abs(row.relative_error) < 1e-6
    costs = table.costs(operators, "process")
    for network, row in zip((OperatorNetwork.teacher(4), *networks), rows[5:], strict=True):
        assert costs.whole(network) == pytest.approx(row.measured_ms, rel=1e-6)
    assert "process: median error 0.0% of predictions times 1.000" in as_text(rows)


def test_a_machine_that_became_slower_is_told_from_an_error_of_the_table():
    rows = [
        Comparison(id, "wall", predicted, measured, 0.1, (predicted / 80) / (measured / 100) - 1)
        for id, predicted, measured in (("teacher", 80.0, 100.0), ("a", 40.0, 50.0), ("b", 44.0, 50.0))
    ]
    last = as_text([*rows, *(replace(row, clock="process") for row in rows)]).splitlines()[-2]
    assert last.startswith("wall: median error 5.0% of predictions times 1.250")
    assert last.endswith("16.0% as they are")


def test_blocks_of_different_shapes_and_quantised_operators_are_predicted(clock):
    network = OperatorNetwork.of({(0, "attention"): Linear(), (1, "mlp"): Ffn(40), (2, "mlp"): Identity()}, 4)
    supernet = Supernet(assemble(build("llama"), network))
    integers = Quantized(4, 8, "both")
    operators = {(1, "mlp"): [integers], (3, "attention"): [Heads(1, 2, 8), integers], (0, "mlp"): [Linear(), integers]}
    table = QUICK(supernet, operators, rng())
    chosen = OperatorNetwork.of({place: found[-1] for place, found in operators.items()}, 4)
    other = OperatorNetwork.of({place: found[0] for place, found in operators.items()}, 4)
    for row in compare(supernet, [chosen, other], table, QUICK, rng()):
        assert row.predicted_ms == pytest.approx(row.measured_ms, rel=1e-6)


def test_operators_are_measured_once_each_however_many_layers_have_them(clock):
    supernet = build("llama")
    one = {(2, "mlp"): [Ffn(40), Sparse("2:4", "both")]}
    every = {(layer, "mlp"): found for layer in range(4) for found in one.values()}
    lines: list[str] = []
    for operators in (one, every):
        QUICK(supernet, operators, rng(), lines.append)
    assert lines == ["5 stacks of at most 2 blocks, 2 rounds"] * 2  # empty, teacher, two identities, ffn-40


def test_a_decoded_token_sees_the_whole_cache(clock):
    supernet = build("llama")
    lengths = []

    def seen(module, args, out):
        if isinstance(module, PreTrainedModel) and args == ():
            cache = getattr(out, "past_key_values", None)
            lengths.append(cache.get_seq_length())

    handle = register_module_forward_hook(seen)
    replace(QUICK, phase="decode")(supernet, {(0, "attention"): [Linear()]}, rng())
    handle.remove()
    assert set(lengths) == {6, 7}  # where nothing attends the cache does not grow


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_measuring_leaves_the_teacher_as_it_was(name):
    supernet = build(name)
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    QUICK(supernet, pool(supernet), rng())
    assert all(torch.equal(value, before[key]) for key, value in supernet.state_dict().items())
    supernet.model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()


def test_slow_rounds_are_made_even():
    usual = np.array([4.0, 8.0, 12.0])
    slow = np.array([1.0, 3.0, 1.5, 1.0])[:, None]
    assert np.allclose(even(usual * slow), np.broadcast_to(usual * 1.25, (4, 3)))


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    supernet = build("llama")
    return QUICK(supernet, pool(supernet), rng())


def test_a_table_survives_its_file(table, tmp_path):
    table.save(tmp_path / "latency.json")
    again = LatencyTable.load(tmp_path / "latency.json", table.conditions)
    assert again == table
    network = OperatorNetwork.of({(0, "mlp"): Ffn(40)}, 4)
    assert again.predicted_ms(network) == table.predicted_ms(network)
    kept = json.loads((tmp_path / "latency.json").read_text())
    assert kept["torch"] == torch.__version__
    assert kept["conditions"]["sequence_length"] == 6
    assert kept["date"].startswith("20")


@pytest.mark.parametrize(
    "change",
    [{"device": "another"}, {"sequence_length": 7}, {"dtype": "bfloat16"}, {"batch_size": 1}, {"phase": "decode"}],
)
def test_a_table_of_other_conditions_is_refused_unless_forced(table, tmp_path, change):
    table.save(tmp_path / "latency.json")
    wanted = replace(table.conditions, **change)
    (key, value) = next(iter(change.items()))
    with pytest.raises(ValueError, match=rf"{key} .*not {value}.*delete it to have.*latency_table.force=true"):
        LatencyTable.load(tmp_path / "latency.json", wanted)
    assert LatencyTable.load(tmp_path / "latency.json", wanted, force=True) == table


def test_a_table_of_a_slower_machine_keeps_its_clocks_apart(table):
    network = OperatorNetwork.of({(0, "mlp"): Ffn(40)}, 4)
    slower = table.scaled({"wall": 2.0, "process": 1.5})
    for clock, factor in (("wall", 2.0), ("process", 1.5)):
        assert slower.predicted_ms(network, clock) == pytest.approx(factor * table.predicted_ms(network, clock))
        spreads = [getattr(one.fixed, f"{clock}_spread") for one in (slower, table)]
        assert spreads[0] == pytest.approx(factor * spreads[1])


def test_damaged_tables_other_teachers_and_unmeasured_operators_are_refused(table, tmp_path):
    path = tmp_path / "latency.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        LatencyTable.load(path, None)
    table.save(path)
    path.write_text(path.read_text().replace('"wall"', '"wal"'))
    with pytest.raises(ValueError, match="measured anew"):
        LatencyTable.load(path, None)
    with pytest.raises(ValueError, match="another teacher"):
        table.refuse_other_teacher(build("qwen3"))
    with pytest.raises(ValueError, match="3 blocks"):
        table.predicted_ms(OperatorNetwork.teacher(3))
    with pytest.raises(ValueError, match="layer 1, mlp.*ffn-7"):
        table.predicted_ms(OperatorNetwork.of({(1, "mlp"): Ffn(7)}, 4))
    with pytest.raises(ValueError, match="sequence_length 6, not 7"):
        compare(build("llama"), [], table, replace(QUICK, sequence_length=7), rng())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "latency.rounds=0"),
        ({"depth": 0}, "latency.depth=0"),
        ({"threads": 0}, "latency.threads=0"),
        ({"phase": "train"}, "latency.phase=train"),
        ({"sequence_length": 65}, "latency.sequence_length=64 or less"),
        ({"sequence_length": 64, "phase": "decode"}, "latency.sequence_length=63 or less"),
        pytest.param(
            {"device": "cuda"},
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LatencyMeasurement(**settings)(build("llama"), {}, rng())


def test_keys_say_what_runs():
    keys = teacher_keys(build("gemma2"))
    assert [key["attention"].partition("@")[2] for key in keys] == ["sliding_attention", "full_attention"] * 2
    attention = keys[0]["attention"]
    assert key_of(attention, "attention", Teacher()) == key_of(attention, "attention", Sparse("2:4", "in")) == attention
    assert key_of(attention, "attention", Heads(3, 2, 16)) == attention
    assert key_of(attention, "attention", Linear()) == "attention.linear"
    names = {key_of("mlp.ffn-80", "mlp", Quantized(4, 8, part)) for part in ("in", "out")}
    assert names == {f"mlp.int4-g8-{part} of ffn-80" for part in ("in", "out")}
    assert len({key_of(key[s], s, Identity()) for key, s in product(keys, SUBLAYERS)}) == 2
