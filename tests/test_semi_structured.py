"""2:4 weights on the kernels of torch: which modules; refusals; on a GPU, the same outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from nas_llm.models.supernet import Supernet
from nas_llm.sparsity.magnitude import Magnitude
from nas_llm.sparsity.semi_structured import semi_structured, two_four_modules


def two_four(hidden: int = 128, ffn: int = 192) -> LlamaForCausalLM:
    """A Llama of two layers with 2:4 weights in its blocks."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 96}
    supernet = Supernet(LlamaForCausalLM(LlamaConfig(hidden_size=hidden, intermediate_size=ffn, **heads)))
    Magnitude(pattern="2:4")(supernet)
    return supernet.extract(supernet.largest()).eval()


def test_the_modules_are_those_with_the_pattern_and_a_fitting_shape():
    found = two_four_modules(two_four(ffn=96))  # the last projection reads 96, no multiple of 64
    assert len(found.converted) == 12
    assert found.dense == ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
    assert not any(name == "lm_head" for name in found.converted)
    dense = two_four()
    with torch.no_grad():
        dense.model.layers[0].self_attn.q_proj.weight[0, :3] = 1.0
    assert "model.layers.0.self_attn.q_proj" not in two_four_modules(dense).converted


def test_refusals_are_one_line():
    with pytest.raises(ValueError, match="2:4 weights: .* need a CUDA device, this is cpu: measure the model as it is"):
        semi_structured(two_four())
    with pytest.raises(ValueError, match="the 14 linear modules that have it are not multiples of 32 x 64"):
        two_four_modules(two_four(hidden=48, ffn=40))
    plain = LlamaForCausalLM(two_four().config)
    with pytest.raises(ValueError, match="no linear module has the pattern 2:4"):
        two_four_modules(plain)


@pytest.mark.gpu
def test_on_the_kernels_the_outputs_are_the_same():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    model = two_four().to("cuda", torch.float16)
    ids = torch.arange(64, device="cuda").view(4, 16)
    with torch.inference_mode():
        before = model(ids).logits
    found = semi_structured(model)
    assert len(found.converted) == 14
    layer = model.get_submodule(found.converted[0])
    assert isinstance(layer, nn.Linear)
    assert isinstance(layer.weight.data, torch.sparse.SparseSemiStructuredTensor)
    with torch.inference_mode():
        after = model(ids).logits
        one = model(ids[:1, :1]).logits  # fewer rows than a tile has
    assert torch.allclose(before, after, atol=2e-3)
    assert torch.allclose(one[0, 0], before[0, 0], atol=2e-3)
    with pytest.raises(ValueError, match="take float16 and bfloat16, the model has float32"):
        semi_structured(two_four().to("cuda"))
