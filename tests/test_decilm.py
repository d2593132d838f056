"""The layout that vLLM serves as DeciLMForCausalLM, read back by a few lines of plain torch that know nothing of
nas_llm: what vLLM's code says a block is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_families import assert_close, logits_of
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.decilm import decilm_of, intermediate_size, save_decilm
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Ffn, Heads, Identity, Linear, OperatorNetwork

SIZES = {"hidden_size": 48, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 97, "head_dim": 8}
SIZES |= {"num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 64}
GROUPED = {"num_attention_heads": 12, "num_key_value_heads": 6}


def supernet_of(kind=LlamaForCausalLM, config=LlamaConfig, **changes) -> Supernet:
    torch.manual_seed(0)
    model = kind(config(**{**SIZES, **changes}))
    for parameter in model.parameters():  # biases and norms are constants at first
        parameter.data += 0.1 * torch.randn_like(parameter)
    return Supernet(model)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def forward(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """(batch, sequence) -> logits, from config.json and model.safetensors alone."""
    config = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
    weights, used = load_file(folder / "model.safetensors"), set()

    def take(name: str, optional: bool = False) -> torch.Tensor | None:
        if optional and name not in weights:
            return None
        used.add(name)
        return weights[name]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * take(f"{name}.weight")

    def linear(x: torch.Tensor, name: str, bias: bool) -> torch.Tensor:
        return F.linear(x, take(f"{name}.weight"), take(f"{name}.bias") if bias else None)

    batch, length = ids.shape
    channels, heads = config.head_dim, config.num_attention_heads
    frequencies = config.rope_theta ** (-torch.arange(0, channels, 2) / channels)
    angles = torch.outer(torch.arange(length), frequencies).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    x = take("model.embed_tokens.weight")[ids]
    assert len(config.block_configs) == config.num_hidden_layers
    started = False
    for i, block in enumerate(config.block_configs):
        attention, ffn, prefix = block["attention"], block["ffn"], f"model.layers.{i}."
        if not attention["no_op"]:
            started = True
            groups = heads // attention["n_heads_in_group"]
            read = norm(x, prefix + "input_layernorm")
            bias = getattr(config, "qkv_bias", config.attention_bias)
            parts = []
            for name, number in (("q", heads), ("k", groups), ("v", groups)):
                made = linear(read, f"{prefix}self_attn.{name}_proj", bias)
                assert made.shape[-1] == number * channels
                parts.append(made.view(batch, length, number, channels).transpose(1, 2))
            q, k, v = parts
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            k, v = (part.repeat_interleave(heads // groups, dim=1) for part in (k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + linear(mixed.transpose(1, 2).flatten(2), f"{prefix}self_attn.o_proj", config.attention_bias)
        if not ffn["no_op"]:
            assert started, "vLLM's blocks have no residual stream before the first attention"
            read = norm(x, prefix + "post_attention_layernorm")
            gate = linear(read, f"{prefix}mlp.gate_proj", config.mlp_bias)
            if "ffn_mult" in ffn:
                width = int(2 * ffn["ffn_mult"] * config.hidden_size / 3)
                width += -width % 256
            else:
                width = ffn["intermediate_size"]
            assert gate.shape[-1] == width
            up = linear(read, f"{prefix}mlp.up_proj", config.mlp_bias)
            x = x + linear(F.silu(gate) * up, f"{prefix}mlp.down_proj", config.mlp_bias)
    x = norm(x, "model.norm")
    head = take("model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight")
    assert used == weights.keys()
    return x @ head.T


OPERATORS = {
    "feed-forward widths and no-ops": {
        (1, "attention"): Identity(),
        (1, "mlp"): Ffn(40),
        (2, "mlp"): Identity(),
        (3, "attention"): Identity(),
        (3, "mlp"): Identity(),
    },
    "fewer KV groups": {(0, "attention"): Heads(3, 2, 8), (2, "attention"): Heads(1, 1, 8)},
    "fewer heads in each": {(1, "attention"): Heads(6, 1, 8), (3, "attention"): Heads(2, 1, 8), (0, "mlp"): Ffn(1)},
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", OPERATORS)
def test_another_reader_computes_the_same_logits(name, kind, tmp_path):
    model_class, config_class, changes = MODELS[name]
    if config_class is Qwen2Config:
        changes = {**changes, "head_dim": 8}
    supernet = supernet_of(
        model_class, config_class, **GROUPED, **{**SIZES, **GROUPED, **changes} if False else changes
    )
    small = assemble(supernet, OperatorNetwork.of(OPERATORS[kind], 4))
    made = save_decilm(small, tmp_path / "out")
    ids = torch.arange(20).reshape(2, 10)
    expected = logits_of(small, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert_close(forward(tmp_path / "out", ids), expected, 1e-4)
    stored = sum(weight.numel() for weight in load_file(tmp_path / "out" / "model.safetensors").values())
    assert stored - made.zeros == sum(parameter.numel() for parameter in small.parameters())


@pytest.mark.parametrize("kind", ["llama3", "linear"])
def test_scaled_rotary_embeddings_are_said_in_the_words_of_both_versions(kind, tmp_path):
    scaled = {"rope_type": kind, "rope_theta": 500.0, "factor": 2.0}
    if kind == "llama3":
        scaled |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    supernet = supernet_of(rope_parameters=scaled)
    save_decilm(supernet.extract(supernet.largest()), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {**written["rope_scaling"], "rope_theta": written["rope_theta"]} == written["rope_parameters"] == scaled
    assert AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True).rope_parameters == scaled


def test_zeros_are_written_for_missing_query_heads_alone():
    supernet = supernet_of(**GROUPED)
    made = decilm_of(assemble(supernet, OperatorNetwork.of({(2, "attention"): Heads(3, 2, 8)}, 4)))
    assert (made.num_heads, made.padded) == (12, {2: 6})
    assert made.zeros == 2 * 6 * 8 * 48
    assert made.config["block_configs"][2]["attention"]["n_heads_in_group"] == 4
    assert made.weights["model.layers.2.self_attn.k_proj.weight"].shape == (3 * 8, 48)
    assert "6 in layer 2" in made.summary
    none = decilm_of(assemble(supernet, OperatorNetwork.of({(2, "attention"): Identity()}, 4)))
    assert (none.padded, none.zeros, none.summary) == ({}, 0, "")


def test_where_all_layers_lack_the_same_heads_none_are_written():
    supernet = supernet_of(**GROUPED)
    full = supernet.largest()
    made = decilm_of(supernet.extract(Architecture(full.hidden, tuple(LayerChoice(i, 5, 1, 8, 40) for i in range(4)))))
    assert (made.num_heads, made.zeros) == (5, 0)


def test_a_sub_network_of_narrower_heads_and_stream_is_said_by_the_configuration(tmp_path):
    supernet = supernet_of(**GROUPED)
    layers = (LayerChoice(0, 6, 1, 4, 256), LayerChoice(2, 3, 1, 4, 30), LayerChoice(3, 2, 2, 4, 256))
    small = supernet.extract(Architecture(40, layers))
    save_decilm(small, tmp_path / "out")
    ids = torch.arange(20).reshape(2, 10)
    expected = logits_of(small, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert_close(forward(tmp_path / "out", ids), expected, 1e-4)


@pytest.mark.parametrize("hidden", [48, 192, 1000, 2048, 3072, 4096, 5120, 8192])
def test_every_multiple_of_256_is_some_ffn_mult(hidden):
    """Also where a reader rounds the factor to six digits, as some do."""
    for width in range(256, 8 * hidden, 256):
        factor = 3 * width / (2 * hidden)
        assert intermediate_size(factor, hidden) == intermediate_size(round(factor, 6), hidden) == width


def test_blocks_are_read_by_attribute(tmp_path):
    """As vLLM does, which asks whether there is an ffn_mult; the configuration survives being saved again."""
    supernet = supernet_of(**GROUPED)
    network = OperatorNetwork.of({(1, "attention"): Identity(), (1, "mlp"): Ffn(40)}, 4)
    save_decilm(assemble(supernet, network), tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    blocks = config.block_configs
    assert [block.attention.no_op for block in blocks] == [False, True, False, False]
    assert [getattr(block.ffn, "ffn_mult", None) for block in blocks] == [8.0, None, 8.0, 8.0]
    assert not hasattr(blocks[1].ffn, "ffn_mult")
    assert blocks[1].ffn.intermediate_size == 40
    assert (config.model_type, config.rope_parameters) == ("nemotron-nas", supernet.config.rope_parameters)
    assert (config.num_attention_heads, config.head_dim) == (12, 8)
    again = json.loads(config.to_json_string(use_diff=False))
    assert again["block_configs"] == json.loads((tmp_path / "out" / "config.json").read_text())["block_configs"]


@pytest.mark.parametrize(
    ("operators", "says"),
    [
        (
            {(3, "attention"): Heads(4, 1, 8)},
            "layer 3 attention: heads-4x1x8 .4 KV heads of 6 query heads; allowed are 1, 2",
        ),
        ({(2, "attention"): Heads(6, 1, 4)}, "layer 2 attention: heads-6x1x4 .heads of fewer channels"),
        ({(1, "mlp"): Linear(), (2, "attention"): Linear()}, "layer 1 mlp: linear .*; layer 2 attention: linear"),
        ({(0, "attention"): Identity()}, "layer 0 mlp: teacher .no attention before it"),
        ({(i, "attention"): Identity() for i in range(4)}, "no layer has attention"),
    ],
)
def test_operators_that_stand_in_the_way_are_named(operators, says, tmp_path):
    network = assemble(supernet_of(), OperatorNetwork.of(operators, 4))
    with pytest.raises(ValueError, match=says):
        save_decilm(network, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_layer_of_narrow_heads_is_refused_too():
    """Each has its own rotary pairs, which one theta does not give."""
    operators = {(i, "attention"): Heads(6, 1, 4) for i in range(4)}
    with pytest.raises(ValueError, match="layer 0 attention: heads-6x1x4"):
        decilm_of(assemble(supernet_of(), OperatorNetwork.of(operators, 4)))


def test_a_family_of_other_blocks_is_refused():
    from test_families import build

    supernet = build("gpt_neox")
    with pytest.raises(ValueError, match="a gpt_neox has others"):
        decilm_of(supernet.extract(supernet.largest()))
