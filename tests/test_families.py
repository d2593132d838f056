"""Every family: active == extracted == reloaded; counts equal numel; sorting keeps the function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.models.supernet import Supernet
from nas_llm.search_space import SearchSpace

SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 3, "intermediate_size": 80}
CONFIGS = {
    "llama": GROUPED | {"head_dim": 8},
    "llama-tied": GROUPED
    | {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral": GROUPED | {"head_dim": 8, "sliding_window": 8},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 16},
    "gemma": GROUPED | {"head_dim": 16},
    "gemma2": GROUPED | {"head_dim": 16, "sliding_window": 8},
    "gemma3_text": GROUPED
    | {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "olmo2": GROUPED,
    "phi": GROUPED | {"qk_layernorm": True, "partial_rotary_factor": 0.5},
    "phi3": GROUPED | {"pad_token_id": 0, "partial_rotary_factor": 1.0},
    "stablelm": GROUPED | {"use_qkv_bias": True},
    "stablelm-parallel": GROUPED | {"model_type": "stablelm", "use_parallel_residual": True},
    "gpt_neox": SIZES | {"intermediate_size": 80},
    "gpt2": SIZES,
    "opt": SIZES | {"ffn_dim": 80, "word_embed_proj_dim": 48},
    "opt-projected": SIZES
    | {"model_type": "opt", "ffn_dim": 80, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
}
FAMILIES = list(CONFIGS)


def build(name: str, **changes) -> Supernet:
    keys = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | CONFIGS[name] | changes
    config = AutoConfig.for_model(keys.pop("model_type", name), **keys)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():  # norms and biases start at one and zero: make every unit different
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return Supernet(model)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # left padding, as generation needs it
    return {"input_ids": ids, "attention_mask": mask}


def random_architectures(supernet: Supernet, count: int, seed: int = 0) -> list[Architecture]:
    """Per-layer shapes, any subset of layers (the first one may go), heads within groups and, where allowed, head size."""
    rng = np.random.default_rng(seed)
    full = supernet.largest()
    shape = full.layers[0]
    head_dims = range(2, shape.head_dim + 1, 2) if "head_dim" in supernet.elastic_axes else [shape.head_dim]
    found = []
    for _ in range(count):
        head_dim = int(rng.choice(list(head_dims)))
        kept = np.sort(rng.permutation(full.num_layers)[: rng.integers(1, full.num_layers + 1)])
        layers = tuple(
            LayerChoice(
                int(i),
                int(rng.integers(1, shape.kv_groups + 1)),
                int(rng.integers(1, shape.heads_per_group + 1)),
                head_dim,
                int(rng.integers(1, shape.ffn + 1)),
            )
            for i in kept
        )
        found.append(Architecture(int(rng.integers(8, full.hidden + 1)), layers))
    return found


def logits_of(model, inputs) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs).logits


def assert_close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_active_equals_extracted(name):
    supernet = build(name)
    inputs = batch()
    before = logits_of(supernet.model, inputs)
    for architecture in random_architectures(supernet, 6):
        with supernet.activate(architecture) as model:
            active = logits_of(model, inputs)
            generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        small = supernet.extract(architecture)
        assert_close(active, logits_of(small, inputs))
        assert torch.equal(generated, small.generate(**inputs, max_new_tokens=6, do_sample=False))
        assert supernet.num_parameters(architecture) == sum(p.numel() for p in small.parameters())
    assert torch.equal(before, logits_of(supernet.model, inputs))
