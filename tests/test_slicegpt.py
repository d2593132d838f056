"""SliceGPT: rotated alone it is the original network; sliced it is what a plain network of projected signals computes;
it is saved, loaded, counted, trained, and refused where it does not fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import assert_close, batch, build, check_reloaded, logits_of, reload_in_fresh_process
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nas_llm import cli
from nas_llm.architecture import Architecture
from nas_llm.atomic_files import read_json, write_text
from nas_llm.baselines import Pruned
from nas_llm.baselines.slicegpt import Axes, SliceGPT
from nas_llm.models.block_walk import walk
from nas_llm.models.decilm import decilm_of
from nas_llm.models.input_statistics import Hessian, SecondMoment
from nas_llm.models.loading import from_pretrained
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.saving import save_pretrained
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Identity, OperatorNetwork
from nas_llm.operators.pool import Pool
from nas_llm.quantization.rtn import RoundToNearest
from nas_llm.search_space import SearchSpace
from nas_llm.sparsity.wanda import Wanda

CHANGES = {
    "llama": {},
    "llama-tied": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {"resid_pdrop": 0.3},
    "phi": {"resid_pdrop": 0.3},
    "gpt_neox": {"hidden_dropout": 0.3},
    "gpt_neox-sequential": {"use_parallel_residual": False},
    "gpt_neox-unbiased": {"attention_bias": False},
    "opt": {"dropout": 0.3, "layerdrop": 0.5},
    "opt-tied": {"tie_word_embeddings": True},
}


def network(name: str) -> Supernet:
    return build(name if name == "llama-tied" else name.partition("-")[0], **CHANGES[name])


def sliced(supernet: Supernet, sparsity: float) -> Pruned:
    """Of a copy: the method uses its network up."""
    return SliceGPT(sparsity)(copy.deepcopy(supernet), lambda: iter([batch()]))


def counted(inputs) -> Tensor:
    """(batch, sequence): positions that are no padding."""
    return inputs["attention_mask"].bool()


@pytest.mark.parametrize("name", CHANGES)
def test_rotated_alone_it_is_the_original(name):
    supernet, inputs = network(name), batch()
    pruned = sliced(supernet, 0.0)
    model = pruned.model
    assert_close(logits_of(model, inputs), logits_of(supernet.model, inputs), 1e-5)
    generated = [m.generate(**inputs, max_new_tokens=8, do_sample=False) for m in (supernet.model, model)]
    assert torch.equal(*generated)
    uncached = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(generated[0], uncached)
    biases = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert ("lm_head.bias" in biases or "embed_out.bias" in biases) == (supernet.family in ("phi", "gpt_neox", "opt"))


@pytest.mark.parametrize("name", CHANGES)
def test_signals_that_lie_in_the_kept_subspace_lose_nothing(name):
    supernet, inputs = network(name), batch()
    assert int(counted(inputs).sum()) == 32  # the signals of 32 tokens span 32 of 48 channels
    pruned = sliced(supernet, 1 / 3)
    assert pruned.records["width"] == 32
    assert all(signal["kept"] == pytest.approx(1) for signal in pruned.records["signals"])
    there = counted(inputs)
    assert_close(logits_of(pruned.model, inputs)[there], logits_of(supernet.model, inputs)[there], 1e-5)
    other = {"input_ids": inputs["input_ids"].flip(0, 1), "attention_mask": torch.ones_like(inputs["input_ids"])}
    lost = logits_of(pruned.model, other) - logits_of(supernet.model, other)
    assert lost.abs().max() > 1e-2  # other signals do lose


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_counted_as_it_is(name):
    model = sliced(network(name), 0.5).model
    held = Supernet(model)
    full = held.largest()
    assert full.hidden == 24
    assert held.num_parameters(full) == sum(parameter.numel() for parameter in model.parameters())
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    attended = sum(layer.kv_groups * layer.heads_per_group * layer.head_dim for layer in full.layers)
    assert held.macs(full, batch_size=2, sequence_length=5) == 10 * (linear + 2 * 5 * attended)
    shortcuts = [weight.shape for key, weight in model.named_parameters() if "shortcut" in key]
    signals = 4 if name in ("phi", "gpt_neox", "gpt_neox-unbiased") else 8  # parallel blocks have one each
    assert shortcuts == [(24, 24)] * signals


# ------------------------------------------------------------------ an independent oracle


class PlainLlama:
    """The sliced network in the original basis, in float64: every signal x becomes x P, P = Q D D^T Q^T. Where there is
    no P yet it is taken from the signal itself, by numpy's singular vectors."""

    def __init__(self, model: LlamaForCausalLM, width: int | None) -> None:
        self.w = {key: weight.double() for key, weight in model.state_dict().items()}
        self.config, self.width = model.config, width
        self.projections: list[Tensor] = []
        self.dropped: list[tuple[float, Tensor]] = []  # squared error of each signal, its eigenvalues

    def __call__(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids, mask: (batch, sequence) -> logits (batch, sequence, vocabulary)."""
        known: Iterator[Tensor] | None = iter(self.projections) if self.projections else None

        def signal(x: Tensor) -> Tensor:
            if self.width is None:
                return x
            if known is not None:
                return x @ next(known)
            rows = x[torch.ones_like(ids).bool() if mask is None else mask.bool()]
            _, sizes, right = np.linalg.svd(rows.numpy(), full_matrices=False)
            kept = torch.from_numpy(right[: self.width])
            self.projections.append(kept.T @ kept)
            self.dropped.append((float((rows - rows @ self.projections[-1]).square().sum()), torch.tensor(sizes**2)))
            return x @ self.projections[-1]

        x = signal(self.w["model.embed_tokens.weight"][ids])
        for i in range(self.config.num_hidden_layers):
            x = signal(
                x + self.attention(f"model.layers.{i}.", self.norm(x, f"model.layers.{i}.input_layernorm"), mask)
            )
            read = self.norm(x, f"model.layers.{i}.post_attention_layernorm")
            gate, up = (read @ self.w[f"model.layers.{i}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            written = (nn.functional.silu(gate) * up) @ self.w[f"model.layers.{i}.mlp.down_proj.weight"].T
            x = signal(x + written)
        return self.norm(x, "model.norm") @ self.w["lm_head.weight"].T

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt() * self.w[f"{name}.weight"]

    def attention(self, place: str, read: Tensor, mask: Tensor | None) -> Tensor:
        size, length = self.config.head_dim, read.shape[1]
        q, k, v = (
            (read @ self.w[f"{place}self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, size)).transpose(1, 2)
            for name in ("q", "k", "v")
        )
        frequencies = self.config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2).double() / size)
        angles = torch.arange(length).double().outer(frequencies)
        q, k = (
            torch.cat(
                [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()],
                -1,
            )
            for a, b in (part.chunk(2, -1) for part in (q, k))
        )
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
        scores = q @ k.transpose(-1, -2) / size**0.5
        hidden = torch.ones(length, length).triu(1).bool()
        if mask is not None:
            hidden = hidden | (mask == 0)[:, None, None, :]
        weights = scores.masked_fill(hidden, -1e30).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2) @ self.w[f"{place}self_attn.o_proj.weight"].T


def tiny_llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 8, "vocab_size": 96}
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokens(seed: int) -> Tensor:
    return torch.randint(3, 96, (4, 24), generator=torch.Generator().manual_seed(seed))


def padded(ids: Tensor) -> dict[str, Tensor]:
    """The last tokens of the first sequence are padding, which no position sees but others that are."""
    mask = torch.ones_like(ids)
    mask[0, 15:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_it_is_a_plain_network_of_projected_signals():
    model, calibration = tiny_llama(), padded(tokens(0))
    plain = PlainLlama(model, 24)
    whole = PlainLlama(model, None)(tokens(1))
    assert_close(logits_of(model, {"input_ids": tokens(1)}), whole.float(), 1e-5)  # the oracle knows its Llama
    plain(calibration["input_ids"], calibration["attention_mask"])
    two = [{key: value[part] for key, value in calibration.items()} for part in (slice(0, 1), slice(1, 4))]
    pruned = SliceGPT(0.5)(Supernet(model), lambda: iter(two))
    expected = plain(tokens(1))
    assert (expected - whole).abs().max() > 0.1 * whole.abs().max()
    assert_close(logits_of(pruned.model, {"input_ids": tokens(1)}), expected.float(), 1e-4)
    kept = [signal["kept"] for signal in pruned.records["signals"]]
    assert kept == pytest.approx([1 - error / float(values.sum()) for error, values in plain.dropped], abs=1e-5)


def test_the_error_of_the_kept_axes_is_the_sum_of_the_dropped_eigenvalues():
    supernet = build("llama")
    block = next(walk(supernet, [batch()]))
    rows = supernet.model.model.embed_tokens(batch()["input_ids"])[counted(batch())].detach().double()
    axes = Axes.of(block.collect_stream(SecondMoment, supernet.blocks[0].input_layernorm).matrix)
    generator = torch.Generator().manual_seed(0)
    for width in (1, 8, 20):
        kept = axes.vectors[:, :width]
        error = (rows - rows @ kept @ kept.T).square().sum()
        assert error == pytest.approx(float(axes.values[width:].sum()), rel=1e-6)
        assert axes.kept(width) == pytest.approx(1 - float(error / rows.square().sum()), rel=1e-6)
        for _ in range(5):
            other, _ = torch.linalg.qr(torch.randn(48, width, dtype=torch.float64, generator=generator))
            assert (rows - rows @ other @ other.T).square().sum() > error


def test_damping_as_the_authors_add_it_would_move_no_axis():
    moment = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moment = moment @ moment.T
    plain, damped = Axes.of(moment), Axes.of(moment + 0.01 * moment.diagonal().mean() * torch.eye(6))
    assert torch.allclose((plain.vectors.T @ damped.vectors).abs(), torch.eye(6, dtype=torch.float64), atol=1e-9)


# ------------------------------------------------------------------ files


def test_it_is_loaded_in_a_fresh_process(tmp_path):
    inputs, expected = batch(), {}
    save_file(inputs, tmp_path / "inputs.safetensors")
    for name in ("llama", "qwen3", "phi3", "phi", "gpt_neox-unbiased", "opt-tied", "opt"):
        model = sliced(network(name), 0.25).model
        expected[name] = (logits_of(model, inputs), model.generate(**inputs, max_new_tokens=6, do_sample=False))
        save_pretrained(model, tmp_path / name)
    reload_in_fresh_process(tmp_path, "nas_llm")
    check_reloaded(tmp_path, expected)
    config = read_json(tmp_path / "opt" / "config.json")
    assert config["model_type"] == "nas_llm"
    assert config["nas_llm"]["rotated_stream"] == {"norm_width": 48}
    with pytest.raises(ValueError, match="nas_llm"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "llama")


def test_a_sub_network_is_sliced_as_any_other(tmp_path):
    supernet = build("llama")
    full = supernet.largest()
    small = Supernet(supernet.extract(Architecture(40, full.layers[1:])))
    pruned = sliced(small, 0.0)
    assert_close(logits_of(pruned.model, batch()), logits_of(small.model, batch()), 1e-5)
    narrow = sliced(small, 0.4)
    assert narrow.records["width"] == 24
    save_pretrained(narrow.model, tmp_path / "narrow")
    assert_close(logits_of(from_pretrained(tmp_path / "narrow"), batch()), logits_of(narrow.model, batch()), 1e-6)


def test_a_network_in_half_precision_stays_in_it():
    supernet = build("gpt_neox")
    supernet.to(torch.bfloat16)
    pruned = sliced(supernet, 0.0)
    assert {parameter.dtype for parameter in pruned.model.parameters()} == {torch.bfloat16}
    assert_close(logits_of(pruned.model, batch()).float(), logits_of(supernet.model, batch()).float(), 0.1)


# ------------------------------------------------------------------ as a super-network


def test_it_is_a_super_network_that_is_kept_whole():
    held = Supernet(sliced(build("phi3"), 0.25).model)
    full = held.largest()
    space = SearchSpace.joint(held)
    assert (space.size, space.largest()) == (1, full)
    with pytest.raises(ValueError, match="kept whole"), held.activate(Architecture(full.hidden, full.layers[1:])):
        pass
    with pytest.raises(ValueError, match="rotated by sublayer.*cannot slice depth.*search_space=whole"):
        SearchSpace.joint(held, elastic=["depth"])
    with pytest.raises(ValueError, match="cannot slice hidden"):
        SearchSpace.joint(held, hidden=[16])
    again = held.extract(full)
    assert_close(logits_of(again, batch()), logits_of(held.model, batch()), 1e-6)
    assert again.config.nas_llm == held.config.nas_llm


@pytest.mark.parametrize("name", ["llama", "phi", "gpt_neox", "opt"])
def test_it_trains_with_gradient_checkpointing_and_without_dropout_of_the_stream(name):
    model = sliced(network(name), 0.25).model
    inputs = {**batch(), "labels": batch()["input_ids"]}
    found = []
    for checkpointing in (False, True):
        model.train()
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        output = model(**inputs, use_cache=False)
        output.loss.backward()
        found.append({key: weight.grad.clone() for key, weight in model.named_parameters()})
        logits = output.logits.detach()
    for key, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][key], atol=1e-6), key
    assert all(gradient.any() for key, gradient in found[0].items() if "shortcut" in key)
    assert_close(logits, logits_of(model.eval(), batch()), 1e-5)


def test_layer_wise_methods_walk_through_it():
    held = Supernet(sliced(build("gpt_neox"), 0.25).model)
    reads: list[Tensor] = []
    projection = held.blocks[2].mlp.dense_h_to_4h
    handle = projection.register_forward_pre_hook(lambda _, args: reads.append(args[0][counted(batch())]))
    logits_of(held.model, batch())
    handle.remove()
    hessian = [block.collect(Hessian) for block in walk(held, [batch()])][2]["gpt_neox.layers.2.mlp.dense_h_to_4h"]
    assert_close(hessian.matrix, 2 * reads[0].T @ reads[0], 1e-5)
    Wanda(sparsity=0.5)(held, [batch()])
    assert (projection.weight == 0).float().mean() == pytest.approx(0.5, abs=0.05)


def test_it_is_quantised_and_loaded_again(tmp_path):
    held = Supernet(sliced(build("llama"), 1 / 3).model)
    before = logits_of(held.model, batch())
    RoundToNearest(bits=8, group_size=16)(held, [batch()])
    quantised = logits_of(held.model, batch())
    assert_close(quantised, before, 0.1)
    save_pretrained(held.extract(held.largest()), tmp_path / "model")
    assert_close(logits_of(from_pretrained(tmp_path / "model"), batch()), quantised, 1e-6)
    opt = Supernet(sliced(build("opt"), 1 / 3).model)
    with pytest.raises(ValueError, match="fc2 adds the rotated residual stream"):
        RoundToNearest(bits=8, group_size=16)(opt, [batch()])


# ------------------------------------------------------------------ refusals


def test_what_cannot_be_sliced_is_refused():
    for name in ("gemma", "gpt2", "olmo2", "stablelm"):
        with pytest.raises(ValueError, match=f"family '{name}' cannot be rotated.*llama, mistral"):
            sliced(build(name), 0.25)
    with pytest.raises(ValueError, match="do_layer_norm_before=False and word_embed_proj_dim"):
        sliced(build("opt-projected"), 0.25)
    supernet = build("llama")
    with pytest.raises(ValueError, match="leaves 4 of 48 channels.*round_to=1"):
        sliced(supernet, 0.9)
    with pytest.raises(ValueError, match="calibration_size above 0"):
        SliceGPT()(build("llama"), lambda: iter(()))
    with pytest.raises(ValueError, match="rotated already"):
        sliced(Supernet(sliced(supernet, 0.25).model), 0.25)
    network = OperatorNetwork.of({(1, "mlp"): Identity()}, 4)
    with pytest.raises(ValueError, match="network of operators"):
        sliced(Supernet(assemble(supernet, network)), 0.25)
    for settings in ({"sparsity": 1.0}, {"sparsity": -0.1}, {"round_to": 0}):
        with pytest.raises(ValueError, match=rf"baseline\.{next(iter(settings))}="):
            SliceGPT(**settings)


def test_what_does_not_go_with_it_is_refused():
    held = Supernet(sliced(build("llama"), 0.25).model)
    with pytest.raises(ValueError, match="rotated by its sublayers"):
        Pool(attention=("teacher", "identity"), mlp=("teacher",))(held)
    with pytest.raises(ValueError, match="rotated by its sublayers"):
        assemble(held, OperatorNetwork.of({(1, "mlp"): Identity()}, 4))
    with pytest.raises(ValueError, match="rotated by sublayer"):
        decilm_of(held.model)


def test_the_width_is_rounded_down_but_where_nothing_is_removed():
    assert [SliceGPT(sparsity).width(192) for sparsity in (0.0, 0.1, 0.25, 0.3)] == [192, 168, 144, 128]
    assert [SliceGPT(sparsity).width(100) for sparsity in (0.0, 0.01)] == [100, 96]
    assert SliceGPT(0.1, round_to=1).width(80) == 72  # (1 - 0.1) * 80 is below 72 in floating point


# ------------------------------------------------------------------ the command line

TEXT = "The red fox ran to the old mill. It was cold and the river was wide. A bear sat near the door and slept. "


def test_prune_recover_and_export(tiny_tokenizer, tmp_path):
    save_pretrained(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=400,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
            )
        ),
        tmp_path / "base",
        tokenizer=tiny_tokenizer,
    )
    write_text(tmp_path / "text.jsonl", "".join(json.dumps({"text": TEXT[i:] + TEXT}) + "\n" for i in range(40)))
    data = ["data=text", f"data.path={tmp_path / 'text.jsonl'}", "data.sequence_length=16", "data.calibration_size=4"]
    data += [f"data.cache_dir={tmp_path / 'cache'}", "data.batch_size=4", "data.validation_size=4", "data.test_size=2"]
    data += ["trainer.accelerator=cpu"]
    method = ["baseline=slicegpt", "baseline.sparsity=0.25", f"model.path={tmp_path / 'base'}"]
    assert cli.run(["prune", *method, *data, f"run_dir={tmp_path / 'pruned'}"]) == 0
    model = tmp_path / "pruned" / "model"
    assert read_json(tmp_path / "pruned" / "baseline.json")["records"]["width"] == 24
    recover = ["sampler=standard", "search=none", "distillation=none", "trainer.max_steps=2", f"model.path={model}"]
    recover += ["training.gradient_checkpointing=true", "trainer.enable_progress_bar=false"]
    assert cli.run(["train", *recover, *data, "peft=lora", "peft.r=4", f"run_dir={tmp_path / 'lora'}"]) == 0
    out = tmp_path / "out"
    assert cli.run(["export", f"run_dir={tmp_path / 'lora'}", "architecture=largest", f"export.path={out}"]) == 0
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert Supernet(from_pretrained(out)).is_rotated
