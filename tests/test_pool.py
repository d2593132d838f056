"""Pools of candidates: what every YAML gives for every family, rounding, what is left out, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_families import FAMILIES, build
from transformers import AutoConfig, AutoModelForCausalLM

from nas_llm.models.decilm import decilm_of
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.operator_modules import refuse_operator
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import SUBLAYERS, Ffn, Heads, Identity, Linear, OperatorNetwork, Teacher
from nas_llm.operators.decilm import decilm_misfit
from nas_llm.operators.pool import Pool

FOLDER = Path(__file__).parents[1] / "conf" / "pool"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def pool(name: str) -> Pool:
    return instantiate(OmegaConf.load(FOLDER / f"{name}.yaml"))


def large(groups: int) -> Supernet:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=groups,
        vocab_size=1000,
    )
    with torch.device("meta"):
        return Supernet(AutoModelForCausalLM.from_config(config))


def names(supernet: Supernet, chosen: Pool, sublayer: str, layer: int = 1) -> list[str]:
    return [operator.name for operator in chosen(supernet)[layer, sublayer]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_pool_gives_operators_that_fit_or_says_why_not(name, family):
    supernet, chosen = build(family), pool(name)
    if name == "deployable" and supernet.family not in ("llama", "mistral", "qwen2"):
        with pytest.raises(ValueError, match=r"pool.layout=decilm: .* llama, mistral, qwen2, this model is of family"):
            chosen(supernet)
        return
    if name == "deployable" and supernet.family == "mistral":
        with pytest.raises(ValueError, match=r"pool.layout=decilm: .*sliding_window=8"):
            chosen(supernet)
        return
    if name == "mlp_only" and supernet.family == "opt":
        with pytest.raises(ValueError, match="no candidate but the teacher .*feed-forward"):
            chosen(supernet)
        return
    candidates = chosen(supernet)
    assert list(candidates) == [(layer, sublayer) for layer in range(4) for sublayer in SUBLAYERS]
    for (layer, sublayer), operators in candidates.items():
        assert operators[0] == Teacher()
        assert len(set(operators)) == len(operators)
        shape = supernet.largest().layers[layer].shape
        assert not {Heads(*shape[:3]), Ffn(shape[3])} & set(operators)
        for operator in operators[1:]:
            refuse_operator(supernet, layer, sublayer, operator)
    said = " ".join(chosen.left_out(supernet))
    assert ("feed-forward" in said) == (supernet.family == "opt" and len(chosen.mlp) > 1)
    assert ("mixes" in said) == (supernet.mixes_attention and len(chosen.attention) > 1)
    unsliced = "head_dim" not in supernet.elastic_axes
    assert ("channels" in said) == (unsliced and name in ("paper", "attention_only", "full"))
    assert ("nn.Linear" in said) == (family == "gpt2" and len(chosen.attention) + len(chosen.mlp) > 4)


def test_the_papers_pool_has_15_candidates_and_those_that_it_names():
    multi_head, grouped = large(32), large(8)
    for supernet in (multi_head, grouped):
        assert {len(found) for found in pool("paper")(supernet).values()} == {15}
        assert not pool("paper").left_out(supernet)
    attention = names(multi_head, pool("paper"), "attention")
    assert {"teacher", "identity", "linear", "heads-32x1x64", "heads-16x1x128", "heads-16x1x48"} <= set(attention)
    assert {"heads-8x4x64", "heads-4x4x128", "heads-4x4x48"} <= set(names(grouped, pool("paper"), "attention"))
    assert {"ffn-10752", "ffn-7168", "sparse-2:4-in", "int4-g128-both"} <= set(names(grouped, pool("paper"), "mlp"))
    assert names(grouped, pool("attention_only"), "mlp") == ["teacher"]
    assert set(names(grouped, pool("paper"), "mlp")) < set(names(grouped, pool("full"), "mlp"))
    assert {"heads-8x2x128", "heads-4x2x128"} <= set(names(grouped, pool("full"), "attention"))


def test_sizes_are_rounded_and_duplicates_dropped():
    supernet = build("llama")  # 3 groups of 2 heads of 8 channels, 80 neurons
    chosen = Pool(
        attention=["heads-0.5x1.0x1.0", "heads-0.6x1.0x1.0", "heads-0.1x0.5x0.1", "heads-3x1x4", "heads-0.9x1.0x1.0"],
        mlp=["ffn-0.5", "ffn-0.51", "ffn-0.99", "ffn-0.001", "ffn-37", "int4-in", "int8-both", "int4-g40-out"],
    )
    attention = ["teacher", "heads-2x2x8", "heads-1x1x2", "heads-3x1x4"]
    assert names(supernet, chosen, "attention") == attention
    mlp = ["teacher", "ffn-40", "ffn-4", "ffn-37", "int4-g16-in", "int8-g16-both", "int4-g40-out"]
    assert names(supernet, chosen, "mlp") == mlp


def test_groups_that_do_not_divide_are_left_out_and_said():
    chosen = Pool(attention=["teacher"], mlp=["identity", "int4-g32-out", "sparse-3:7-in", "sparse-2:5-out"])
    assert names(build("llama"), chosen, "mlp") == ["teacher", "identity", "sparse-2:5-out"]
    said = "\n".join(chosen.left_out(build("llama")))
    assert "int4-g32-out left out: groups of 32 do not divide the width 80" in said
    assert "sparse-3:7-in left out: groups of 7 do not divide the width 48" in said


@pytest.mark.parametrize(
    ("attention", "mlp", "message"),
    [
        (["teacher"], [], r"pool.mlp=\[\]: .*\[teacher,identity\]"),
        (["heads-0.5"], ["teacher"], "pool.attention: .*heads-0.5x1.0x1.0"),
        (["heads-0.5x1.0x1.5"], ["teacher"], "pool.attention: .*1.5 is a fraction"),
        (["heads-0.0x1.0x1.0"], ["teacher"], "above 0"),
        (["ffn-0.5"], ["teacher"], "pool.attention"),
        (["teacher"], ["heads-1x1x8"], "pool.mlp: .*other sublayer"),
        (["teacher"], ["int9-in"], "pool.mlp: int9-in: bits"),
        (["teacher"], ["sparse-4:2-in"], "pool.mlp: sparse-4:2-in"),
        (["teacher"], ["ffn-x"], "pool.mlp: operator 'ffn-x' is not known"),
    ],
)
def test_what_is_no_pool_is_refused(attention, mlp, message):
    with pytest.raises(ValueError, match=message):
        Pool(attention, mlp)
    with pytest.raises(ValueError, match="pool.layout=gguf: allowed are null, decilm"):
        Pool(["teacher"], ["identity"], layout="gguf")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attention", "mlp", "message"),
    [
        (["teacher"], ["ffn-81"], "pool.mlp: layer 0, mlp: operator ffn-81: allowed are 1 to 80 neurons"),
        (["heads-3x2x3"], ["teacher"], "pool.attention: .*rotary pairs"),
        (["teacher"], ["teacher"], "no candidate but the teacher"),
        (["identity"], ["ffn-1.0"], r"pool.mlp=\[ffn-1.0\]: all of them are the teacher"),
    ],
)
def test_what_a_network_cannot_hold_is_refused(attention, mlp, message):
    with pytest.raises(ValueError, match=message):
        Pool(attention, mlp)(build("llama"))


def test_a_network_of_operators_or_of_integers_is_refused():
    supernet = build("llama")
    again = Supernet(assemble(supernet, OperatorNetwork.of({(0, "mlp"): Ffn(40)}, 4)))
    with pytest.raises(ValueError, match="network of operators already"):
        pool("paper")(again)
    from nas_llm.quantization.rtn import RoundToNearest

    RoundToNearest(4, 8)(supernet, ())
    with pytest.raises(ValueError, match="quantised already"):
        pool("paper")(supernet)


def test_the_deployable_pool_keeps_what_the_layout_holds():
    supernet = large(8)
    candidates = pool("deployable")(supernet)
    assert "identity" not in [o.name for o in candidates[0, "attention"]]
    assert [o.name for o in candidates[1, "attention"]] == [
        *("teacher", "identity", "heads-4x4x128", "heads-2x4x128", "heads-1x4x128")
    ]
    for name in ("full", "paper"):
        for (layer, sublayer), operators in pool(name)(supernet).items():
            for operator in operators:
                if decilm_misfit(supernet, layer, sublayer, operator) is None and isinstance(operator, Heads):
                    assert operator.head_dim == 128
                    assert operator.kv_groups < 8
                    assert 32 % operator.kv_groups == 0
    assert "query heads" in str(decilm_misfit(supernet, 1, "attention", Heads(8, 2, 128)))
    assert "fewer channels" in str(decilm_misfit(supernet, 1, "attention", Heads(4, 4, 64)))
    assert "allowed are 1, 2, 4, 8, 16, 32" in str(decilm_misfit(supernet, 1, "attention", Heads(6, 4, 128)))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_what_the_deployable_pool_chooses_is_exported(family):
    """Each candidate in its place, the rest as the teacher has it: the layout has room for all of them."""
    supernet = build(family)
    supernet.config.sliding_window = None
    for place, operators in pool("deployable")(supernet).items():
        assert len(operators) > 1
        for operator in operators:
            small = assemble(supernet, OperatorNetwork.of({place: operator}, 4))
            assert decilm_of(small).config["num_hidden_layers"] == 4
    for place, operator, fits in (
        ((0, "attention"), Identity(), False),
        ((0, "attention"), Linear(), False),
        ((2, "attention"), Heads(1, 1, 8), True),
        ((2, "attention"), Heads(2, 2, 4), False),
        ((2, "mlp"), Linear(), False),
        ((2, "mlp"), Ffn(20), True),
    ):
        assert (decilm_misfit(supernet, *place, operator) is None) == fits
        if not fits:
            with pytest.raises(ValueError, match=f"layer {place[0]} (attention|mlp): "):
                decilm_of(assemble(supernet, OperatorNetwork.of({place: operator}, 4)))
