import copy
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from nas_llm.models.quantized_linear import QuantizedLinear
from nas_llm.models.supernet import Supernet
from nas_llm.objectives import (
    Latency,
    Loss,
    Macs,
    NonzeroParams,
    Params,
    Perplexity,
    TokenAccuracy,
    WeightBytes,
    directions,
    mean_token_loss,
    measure,
)
from nas_llm.peft.lora import Lora
from nas_llm.quantization.rtn import RoundToNearest
from nas_llm.search_space import SearchSpace

CONF = Path(__file__).parent.parent / "conf" / "objectives"


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        attention_dropout=0.5,
    )
    return Supernet(LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def architectures(supernet):
    space, rng = SearchSpace.joint(supernet), np.random.default_rng(1)
    return [space.largest(), space.middle(), space.smallest(), space.sample(rng)]


@pytest.fixture(scope="module")
def batches():
    """Three batches of unequal sizes, padded on the right, with prompts that do not count and one without any label."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for rows, length in ((3, 9), (1, 5), (2, 12)):
        input_ids = torch.randint(0, 61, (rows, length), generator=generator)
        labels = input_ids.clone()
        labels[:, : length // 3] = -100
        mask = torch.ones_like(input_ids)
        mask[0, -2:] = 0
        labels[0, -2:] = -100
        made.append({"input_ids": input_ids, "attention_mask": mask, "labels": labels})
    made[1]["labels"][:] = -100
    return made


def loss_by_the_definition(model, batches):
    """Token by token, from the log-probabilities of the plain model."""
    terms = []
    for batch in batches:
        log_p = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
        rows, length = batch["labels"].shape
        terms += [
            -log_p[row, t, label].item()
            for row in range(rows)
            for t in range(length - 1)
            if (label := batch["labels"][row, t + 1].item()) != -100
        ]
    return sum(terms) / len(terms)


def test_loss_is_token_weighted_and_perplexity_its_exponential(supernet, architectures, batches):
    for architecture in architectures:
        expected = loss_by_the_definition(supernet.extract(architecture).eval(), batches)
        assert Loss(batches)(supernet, architecture) == pytest.approx(expected, rel=1e-5)
        assert Perplexity(batches)(supernet, architecture) == pytest.approx(math.exp(expected), rel=1e-5)


def test_token_accuracy_counts_what_the_plain_model_says_greedily(supernet, architectures, batches):
    found = []
    for architecture in architectures:
        model = supernet.extract(architecture).eval()
        right = [
            model(input_ids=batch["input_ids"][row : row + 1, : t + 1]).logits[0, -1].argmax().item() == label
            for batch in batches
            for row in range(len(batch["labels"]))
            for t in range(batch["labels"].shape[1] - 1)
            if (label := batch["labels"][row, t + 1].item()) != -100
        ]
        found.append(100 * sum(right) / len(right))
        assert TokenAccuracy(batches)(supernet, architecture) == pytest.approx(found[-1])
    assert max(found) > 0
    with pytest.raises(ValueError, match="no labelled token"):
        TokenAccuracy([batches[1]])(supernet, architectures[0])


def test_loss_does_not_depend_on_how_the_batches_are_cut(supernet, architectures, batches):
    rows = [{key: value[i : i + 1] for key, value in b.items()} for b in batches for i in range(len(b["labels"]))]
    whole, cut = (Loss(b)(supernet, architectures[1]) for b in (batches, rows))
    assert cut == pytest.approx(whole, rel=1e-6)


def test_measuring_leaves_the_network_as_it_was(supernet, architectures, batches):
    supernet.model.train()
    supernet.model.model.layers[1].eval()
    before = {name: module.training for name, module in supernet.model.named_modules()}
    first = Loss(batches)(supernet, architectures[1])
    assert {name: module.training for name, module in supernet.model.named_modules()} == before
    assert Loss(batches)(supernet, architectures[1]) == first  # dropout was off
    logits = supernet.model(batches[0]["input_ids"]).logits
    logits.sum().backward()  # inference tensors in the model would raise
    supernet.model.zero_grad()


def test_batches_without_a_label_are_refused(supernet, batches):
    with pytest.raises(ValueError, match="no labelled token"):
        mean_token_loss(supernet.model, batches[1:2])
    with pytest.raises(ValueError, match="no labelled token in 0 batches"):
        mean_token_loss(supernet.model, [])


def test_params_and_macs_are_those_of_the_extracted_model(supernet, architectures):
    for architecture in architectures:
        small = supernet.extract(architecture)
        assert Params()(supernet, architecture) == sum(p.numel() for p in small.parameters())
        whole = Macs(batch_size=2, sequence_length=8)(supernet, architecture)
        assert whole == supernet.macs(architecture, batch_size=2, sequence_length=8)
        assert Macs(2, 8, per_token=True)(supernet, architecture) == whole / 16


def test_loss_and_perplexity_together_run_the_network_once(supernet, architectures, batches):
    calls = []
    handle = supernet.model.register_forward_hook(lambda *_: calls.append(1))
    values = measure([Perplexity(batches), Loss(batches)], supernet, architectures[1])
    assert len(calls) == 2  # one batch has no label
    assert list(values) == ["params", "perplexity", "loss"]
    assert values["perplexity"] == math.exp(values["loss"])
    calls.clear()
    measure([Loss(batches), Perplexity(list(batches))], supernet, architectures[1])
    assert len(calls) == 4  # other batches, so another measurement
    calls.clear()
    both = [Loss(batches), Perplexity(batches)]
    known = measure(both, supernet, architectures[1], {"loss": 0.5})
    assert (known["loss"], known["perplexity"], calls) == (0.5, math.exp(0.5), [])
    values = measure(both, supernet, architectures[1], {"perplexity": 3.0})
    assert (values["perplexity"], len(calls)) == (3.0, 2)
    handle.remove()


def test_a_loss_beyond_the_exponential_is_an_infinite_perplexity(supernet, architectures, monkeypatch):
    monkeypatch.setattr("nas_llm.objectives.perplexity.Loss.__call__", lambda *_: 800.0)
    assert Perplexity([])(supernet, architectures[0]) == math.inf


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_latency_runs_the_extracted_copy_as_often_as_asked(supernet, architectures, mode, monkeypatch):
    latency = Latency(batch_size=2, sequence_length=6, warmup=2, repeats=5, mode=mode, threads=1)
    threads = torch.get_num_threads()
    shapes, small = [], supernet.extract(architectures[1])
    small.register_forward_hook(
        lambda module, args, kwargs, out: shapes.append(
            (tuple(kwargs["input_ids"].shape), out.past_key_values and out.past_key_values.get_seq_length())
        ),
        with_kwargs=True,
    )
    timings = latency.time(small)
    runs = [((2, 6), None)] * 7 if mode == "prefill" else [((2, 6), 6)] + [((2, 1), 7)] * 7
    assert shapes == runs
    assert len(timings.milliseconds) == 5
    assert min(timings.milliseconds) <= timings.median_ms <= max(timings.milliseconds)
    assert timings.spread_ms >= 0
    assert torch.get_num_threads() == threads
    guard = supernet.model.register_forward_pre_hook(lambda *_: pytest.fail("the super-network was timed"))
    try:
        monkeypatch.setattr(supernet, "extract", lambda architecture: small)
        assert latency(supernet, architectures[1]) > 0
    finally:
        guard.remove()


def test_latency_is_the_median_of_the_timed_runs(supernet, architectures, monkeypatch):
    clock = iter(np.cumsum([0, 9, 0, 1, 0, 2, 0, 3]) / 1000)
    monkeypatch.setattr("nas_llm.models.timing.time.perf_counter", lambda: next(clock))
    timings = Latency(sequence_length=4, warmup=3, repeats=4).time(supernet.extract(architectures[1]))
    assert timings.milliseconds == pytest.approx([9, 1, 2, 3])
    assert timings.median_ms == pytest.approx(2.5)
    assert timings.spread_ms == pytest.approx(np.percentile([9, 1, 2, 3], 75) - np.percentile([9, 1, 2, 3], 25))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, "objectives.latency.repeats=0"),
        ({"warmup": -1}, "objectives.latency.warmup=-1"),
        ({"mode": "train"}, "objectives.latency.mode=train"),
        ({"threads": 0}, "objectives.latency.threads=0"),
        ({"sequence_length": 33}, "the model has 32: set objectives.latency.sequence_length=32 or less"),
        ({"sequence_length": 32, "mode": "decode"}, "sequence_length=31 or less"),
    ],
)
def test_latency_refuses_clearly(supernet, architectures, settings, message):
    with pytest.raises(ValueError, match=message):
        Latency(**settings)(supernet, architectures[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_latency_on_a_gpu_uses_events(supernet, architectures):
    assert Latency(sequence_length=8, device="cuda", mode="decode")(supernet, architectures[1]) > 0


def test_macs_refuses_clearly():
    with pytest.raises(ValueError, match=r"objectives.macs.batch_size=0"):
        Macs(batch_size=0)


def test_directions_and_another_ones_objective(supernet, architectures):
    @dataclass(frozen=True)
    class Width:
        name: ClassVar[str] = "width"
        unit: ClassVar[str] = "units"
        direction: ClassVar[str] = "max"

        def __call__(self, supernet, architecture):
            return float(architecture.hidden)

    assert directions([Params(), Width()]) == {"params": "min", "width": "max"}
    assert measure([Width()], supernet, architectures[0])["width"] == 32.0


def test_parameters_that_are_zero_and_bytes_of_integers_are_counted(supernet, architectures):
    sparse = copy.deepcopy(supernet)
    for layer in sparse.model.model.layers:
        layer.mlp.up_proj._parameters["weight"].data[:2] = 0  # the first two rows stay in every sub-network
    for architecture in architectures:
        zeros = 2 * architecture.hidden * len(architecture.layers)
        params = supernet.num_parameters(architecture)
        assert NonzeroParams()(supernet, architecture) == params
        assert NonzeroParams()(sparse, architecture) == params - zeros
        assert WeightBytes()(sparse, architecture) == 4 * params
    full = sparse.largest()
    RoundToNearest(bits=4, group_size=16)(sparse, [])
    dense = [m for layer in supernet.model.model.layers for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    held = [m for layer in sparse.model.model.layers for m in layer.modules() if isinstance(m, QuantizedLinear)]
    rounded = sum(int((a.weight != 0).sum()) - int((b.weight != 0).sum()) for a, b in zip(dense, held, strict=True))
    assert rounded > 2 * 32 * 3  # small weights become zero too
    assert NonzeroParams()(sparse, full) == supernet.num_parameters(full) - rounded
    saved = sum(a.weight.nbytes - b.weight_bytes for a, b in zip(dense, held, strict=True))
    assert WeightBytes()(sparse, full) == 4 * supernet.num_parameters(full) - saved


def test_what_is_counted_without_adapters_is_the_merged_network(supernet, architectures):
    adapted = copy.deepcopy(supernet)
    Lora(r=4, target_modules=["q_proj"])(adapted)
    full, plain = adapted.largest(), supernet.num_parameters(supernet.largest())
    added = sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)
    zeros = added // 2  # of B, before training; q_proj is square
    assert NonzeroParams(adapters=True)(adapted, full) == plain + added - zeros
    assert WeightBytes(adapters=True)(adapted, full) == 4 * (plain + added)
    for adapters in (False, None):  # None: as they are exported, which is merged
        assert NonzeroParams(adapters=adapters)(adapted, full) == plain
        assert WeightBytes(adapters=adapters)(adapted, full) == 4 * plain
        assert Params(adapters=adapters)(adapted, full) == plain


@pytest.mark.parametrize("name", ["params", "nonzero_params", "weight_bytes", "macs", "loss", "perplexity", "latency"])
def test_every_option_says_its_name_and_all_of_its_fields(name):
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith(f"# @package objectives.{name}\n")
    config = OmegaConf.create(text)
    module, _, cls = config.pop("_target_").rpartition(".")
    target = getattr(__import__(module, fromlist=[cls]), cls)
    assert target.name == name
    defaults = {field.name: field.default for field in fields(target)}
    assert set(config) == set(defaults) - {"batches"}
    made = target(**config, **({"batches": []} if "batches" in defaults else {}))
    assert all(getattr(made, key) == defaults[key] for key in config)
