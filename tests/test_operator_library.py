"""A library gives back what was saved, for its own teacher, and refuses what is not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_families import build

from nas_llm.models.operator_assembly import assemble
from nas_llm.models.operator_modules import build_sublayer
from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import (
    Ffn,
    Heads,
    Identity,
    Linear,
    Operator,
    OperatorNetwork,
    Quantized,
    Sparse,
    Teacher,
)
from nas_llm.operators import Place
from nas_llm.operators.library import MANIFEST, Library
from nas_llm.quantization.rtn import rounded

OPERATORS: list[tuple[Place, Operator]] = [
    ((0, "attention"), Heads(3, 1, 8)),
    ((1, "attention"), Heads(3, 2, 4)),
    ((1, "attention"), Linear()),
    ((2, "mlp"), Identity()),
    ((3, "mlp"), Ffn(48)),
    ((3, "mlp"), Sparse("2:4", "in")),
    ((3, "mlp"), Quantized(4, 16, "out")),
]


def trained(supernet: Supernet, place: Place, operator: Operator) -> torch.nn.Module:
    module = build_sublayer(supernet, *place, operator)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    if isinstance(operator, Quantized):
        dense = module.down_proj
        module.down_proj = QuantizedLinear.of(rounded(dense.weight.detach(), operator.bits, operator.group_size))
    return module


@pytest.fixture
def supernet() -> Supernet:
    return build("llama")


@pytest.fixture
def library(supernet, tmp_path) -> Library:
    found = Library(tmp_path / "run" / "operators")
    found.begin(supernet, settings={"distill.steps": 3}, pool={"name": "paper"})
    for place, operator in OPERATORS:
        found.save(place, operator, trained(supernet, place, operator), {"local": 0.5, "steps": 3, "seconds": 0.1})
    return found


def test_operators_come_back_as_they_were_saved(supernet, library):
    for place, operator in OPERATORS:
        assert not library.damage(place, operator)
        assert library.record(place, operator) == {"local": 0.5, "steps": 3, "seconds": 0.1}
        expected = trained(supernet, place, operator).state_dict()
        found = library.load(supernet, place, operator)
        assert type(found) is type(trained(supernet, place, operator))
        assert found.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
        assert not found.training
    assert library.damage((0, "mlp"), Ffn(48)) == "missing"
    assert not library.damage((0, "mlp"), Teacher())
    assert library.record((0, "mlp"), Teacher())["local"] == 0
    assert {(place, o) for place, operators in library.operators.items() for o in operators} == set(OPERATORS)
    assert (library.path / "layer03.mlp.sparse-2of4-in.safetensors").is_file()


def test_a_network_is_assembled_of_the_library(supernet, library):
    network = OperatorNetwork.of({OPERATORS[1][0]: OPERATORS[1][1], (3, "mlp"): Quantized(4, 16, "out")}, 4)
    small = assemble(supernet, network, library.make(supernet))
    wanted = {
        place: trained(supernet, place, operator)
        for place, operator in network.operators.items()
        if place in dict(OPERATORS)
    }
    for layer, sublayer, path in [(1, "attention", "self_attn"), (3, "mlp", "mlp")]:
        found = small.model.layers[layer].get_submodule(path).state_dict()
        assert all(torch.equal(found[name], value) for name, value in wanted[layer, sublayer].state_dict().items())


def test_the_teacher_reloaded_is_the_same_one_and_precision_is_its(supernet, library, tmp_path):
    supernet.save(tmp_path / "supernet")
    again = Supernet.load(tmp_path / "supernet", dtype=torch.bfloat16)
    module = library.load(again, (3, "mlp"), Ffn(48))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


def test_another_teacher_is_refused_by_the_library_and_by_each_file(supernet, library, tmp_path):
    other = build("llama")
    other.model.lm_head.weight.data.mul_(2)
    for use in (lambda: library.load(other, *OPERATORS[0]), lambda: library.make(other)):
        with pytest.raises(ValueError, match="another teacher"):
            use()
    with pytest.raises(ValueError, match="another teacher"):
        library.begin(other, settings={"distill.steps": 3}, pool={})
    second = Library(tmp_path / "second" / "operators")
    second.begin(other, settings={}, pool={})
    place, operator = OPERATORS[0]
    second.file(place, operator).write_bytes(library.file(place, operator).read_bytes())
    for use in (lambda: second.damage(place, operator), lambda: second.load(other, place, operator)):
        with pytest.raises(ValueError, match=r"layer00.*another teacher"):
            use()


def test_damaged_files_are_refused_in_one_line(supernet, library):
    place, operator = OPERATORS[4]
    file = library.file(place, operator)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    misfit = trained(supernet, place, Ffn(40)).state_dict()
    for content in (whole[: len(whole) // 2], whole[:5], b"", bytes(flipped)):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"layer03\.mlp\.ffn-48.*is damaged.*make it anew, nas-llm distill"
        ) as error:
            library.load(supernet, place, operator)
        assert "\n" not in str(error.value)
        assert library.damage(place, operator)
    save_file({name: value.contiguous() for name, value in misfit.items()}, file)
    assert library.damage(place, operator) == "it is no operator's"
    with pytest.raises(ValueError, match="no operator's"):
        library.record(place, operator)
    library.save(place, operator, trained(supernet, place, Ffn(40)), {})
    with pytest.raises(ValueError, match=r"not those of ffn-48"):
        library.load(supernet, place, operator)


def test_what_is_not_there_is_said(supernet, library, tmp_path):
    with pytest.raises(ValueError, match=r"no operator ffn-9, it holds ffn-48, int4-g16-out, sparse-2:4-in there"):
        library.load(supernet, (3, "mlp"), Ffn(9))
    with pytest.raises(ValueError, match="nas-llm distill"):
        Library(tmp_path / "none").load(supernet, (3, "mlp"), Ffn(9))


def test_a_library_goes_on_with_its_own_settings_and_any_pool(supernet, library):
    with pytest.raises(ValueError, match=r"distill\.steps=4 differs from distill\.steps=3"):
        library.begin(supernet, settings={"distill.steps": 4}, pool={"name": "paper"})
    library.begin(supernet, settings={"distill.steps": 3}, pool={"name": "full"})
    assert json.loads((library.path / MANIFEST).read_text())["pool"] == {"name": "full"}


def test_a_file_that_could_not_be_written_leaves_the_old_one(supernet, library, monkeypatch):
    place, operator = OPERATORS[0]
    before = library.file(place, operator).read_bytes()

    def half_written(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("nas_llm.operators.library.save_file", half_written)
    with pytest.raises(KeyboardInterrupt):
        library.save(place, operator, trained(supernet, place, operator), {})
    assert library.file(place, operator).read_bytes() == before
    assert not list(library.path.glob(".*"))
