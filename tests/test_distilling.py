"""Block-wise distillation against a plain loop, over groups, precision and families."""

from __future__ import annotations

import copy
import math
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from operator_fixtures import (
    SPLITS,
    again,
    batches,
    distilled,
    grouped,
    killed_behind_the_first,
    pool,
    slices,
    teacher,
)
from transformers.utils import logging as transformers_logging

from nas_llm.models.operator_assembly import swapped
from nas_llm.models.operator_modules import build_sublayer, sublayer_of
from nas_llm.models.supernet import Supernet
from nas_llm.operator_network import Ffn, Heads, Identity, Linear, Operator, Teacher
from nas_llm.operators import Place
from nas_llm.operators.distilling import Distilling, Job, Splits, distil, progress_of
from nas_llm.operators.initial import is_trained
from nas_llm.operators.library import Library
from nas_llm.operators.local_losses import L1, SquareHead
from nas_llm.operators.needs import Needs
from nas_llm.operators.processes import _work
from nas_llm.operators.teacher_pass import teacher_pass

SETTINGS = Distilling(steps=3, lr=1e-2)
FAMILIES = ["llama", "gpt_neox", "gemma2", "gpt2", "qwen3"]


def oracle(supernet: Supernet, place: Place, operator: Operator, settings: Distilling, loss) -> dict[str, torch.Tensor]:
    """One candidate alone: a whole pass of the teacher for every batch, the schedule in closed form."""
    model, sublayer = supernet.model, sublayer_of(supernet, *place)
    module = build_sublayer(supernet, *place, operator)
    optimizer = torch.optim.Adam(module.parameters(), lr=settings.lr)
    for step in range(settings.steps):
        batch, seen = SPLITS.train[step], []
        handle = sublayer.register_forward_hook(lambda _, *found, seen=seen: seen.append(found), with_kwargs=True)
        with torch.no_grad():
            model(**batch, use_cache=False)
        handle.remove()
        ((args, kwargs, written),) = seen
        student, wanted = (out[0] if isinstance(out, tuple) else out for out in (module(*args, **kwargs), written))
        optimizer.param_groups[0]["lr"] = (
            settings.lr_final + (settings.lr - settings.lr_final) * (1 + math.cos(math.pi * step / settings.steps)) / 2
        )
        optimizer.zero_grad()
        loss(student, wanted, batch["attention_mask"].bool()).backward()
        optimizer.step()
    return module.state_dict()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("loss", [SquareHead(), L1()])
def test_operators_are_those_of_a_plain_loop(name, loss, tmp_path):
    supernet = teacher(name).double()  # Adam divides by what rounding leaves of a key bias's gradient, which is zero
    before = copy.deepcopy(supernet.model.state_dict())
    library = distilled(supernet, tmp_path / "operators", SETTINGS, loss)
    for place, operators in pool(supernet).items():
        for operator in operators:
            if isinstance(operator, Teacher):
                continue
            found = library.load(supernet, place, operator).state_dict()
            first = build_sublayer(supernet, *place, operator).state_dict()
            trained = is_trained(operator)
            expected = oracle(supernet, place, operator, SETTINGS, loss) if trained else first
            assert found.keys() == expected.keys()
            for key, value in found.items():
                torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-12)
            moved = any(not torch.equal(found[key], first[key]) for key in found)
            assert moved == trained
    assert all(torch.equal(value, before[key]) for key, value in supernet.model.state_dict().items())
    assert all(not module._forward_hooks for module in supernet.modules())


def test_how_operators_are_grouped_changes_no_bit(tmp_path):
    supernet = teacher()
    every = grouped(supernet, pool(supernet))
    assert len(every) == 1
    single = [sum(m[2].held_bytes for m in every[0].members if m[0] == place) for place in pool(supernet)]
    limit = (every[0].bytes - sum(single) + max(single)) / 2**30
    assert len(grouped(supernet, pool(supernet), memory_gib=limit)) > 1
    one = distilled(supernet, tmp_path / "one")
    many = distilled(supernet, tmp_path / "many", memory_gib=limit)
    assert_same(supernet, one, many)


def assert_same(supernet: Supernet, one: Library, other: Library) -> None:
    assert one.operators == other.operators
    for place, operators in one.operators.items():
        for operator in operators:
            expected = one.load(supernet, place, operator).state_dict()
            found = other.load(supernet, place, operator).state_dict()
            assert all(torch.equal(value, expected[key]) for key, value in found.items()), (place, operator)
            assert one.record(place, operator)["local"] == other.record(place, operator)["local"]


def test_local_scores_are_square_head_over_all_held_out_batches(tmp_path):
    supernet = teacher()
    library = distilled(supernet, tmp_path / "operators")
    for place, operator in [((0, "mlp"), Ffn(40)), ((1, "attention"), Heads(2, 2, 8)), ((1, "mlp"), Linear())]:
        module, visits = library.load(supernet, place, operator), []
        with teacher_pass(supernet, [place]) as run:
            for batch in SPLITS.held_out:
                run(batch, lambda _, visit, visits=visits: visits.append(visit))
        s = torch.cat([visit.run(module).detach()[visit.mask] for visit in visits])[None]
        t = torch.cat([visit.written[visit.mask] for visit in visits])[None]
        expected = SquareHead()(s, t, torch.ones(s.shape[:2], dtype=torch.bool)).item()
        assert library.record(place, operator)["local"] == pytest.approx(expected, rel=1e-5)
    assert library.record((0, "mlp"), Identity())["local"] == 1.0
    assert library.record((0, "attention"), Identity())["local"] == 1.0


def test_distillation_comes_nearer_to_the_teacher(tmp_path):
    supernet = teacher()
    place, operator = (0, "mlp"), Ffn(40)
    one, splits = {place: [operator]}, Splits(batches(400, 5), batches(1), batches(4, 6))
    scores = []
    for steps in (1, 400):
        settings = Distilling(steps=steps, lr=3e-3 if steps > 1 else 1e-12, lr_final=0.0)
        library = Library(tmp_path / str(steps))
        library.begin(supernet, settings=settings.of_results, pool={})
        Job(library, splits, settings, SquareHead(), slices)(supernet, grouped(supernet, one), lambda *_: None)
        scores.append(library.record(place, operator)["local"])
    assert scores[1] < 0.7 * scores[0]


def test_padding_has_no_effect(tmp_path):
    """Other tokens where the mask is 0: the same operators, bit for bit."""
    supernet = teacher()
    other = []
    for batch in SPLITS.train:
        ids = batch["input_ids"].clone()
        ids[batch["attention_mask"] == 0] = 7
        other.append({**batch, "input_ids": ids})
    assert not torch.equal(other[0]["input_ids"], SPLITS.train[0]["input_ids"])
    first = distilled(supernet, tmp_path / "first")
    library = Library(tmp_path / "second")
    library.begin(supernet, settings={}, pool={})
    job = Job(library, Splits(other, SPLITS.calibration, SPLITS.held_out), SETTINGS, SquareHead(), slices)
    job(supernet, grouped(supernet, pool(supernet)), lambda *_: None)
    assert_same(supernet, first, library)


def test_accumulated_batches_are_one_step(tmp_path):
    """Two batches of one step: the mean of their gradients."""
    supernet = teacher()
    place, operator = (1, "mlp"), Ffn(40)
    settings = Distilling(steps=2, lr=1e-2, accumulate_grad_batches=2)
    library = distilled(supernet, tmp_path / "operators", settings, operators={place: [operator]})
    module = build_sublayer(supernet, *place, operator)
    optimizer = torch.optim.Adam(module.parameters())
    with teacher_pass(supernet, [place]) as run:
        for step, lr in enumerate([1e-2, 5e-5 + (1e-2 - 5e-5) / 2]):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            for batch in SPLITS.train[2 * step : 2 * step + 2]:
                run(batch, lambda _, v: (SquareHead()(v.run(module), v.written, v.mask) / 2).backward())
            optimizer.step()
    for key, value in library.load(supernet, place, operator).state_dict().items():
        torch.testing.assert_close(value, module.state_dict()[key], rtol=1e-4, atol=1e-6)


def test_mixed_precision_and_a_teacher_in_bfloat16(tmp_path):
    supernet = teacher()
    full = distilled(supernet, tmp_path / "full")
    mixed = distilled(supernet, tmp_path / "mixed", Distilling(steps=3, lr=1e-2, precision="bf16-mixed"))
    differs = False
    for place, operators in full.operators.items():
        for operator in operators:
            found, expected = (one.load(supernet, place, operator).state_dict() for one in (mixed, full))
            for key, value in found.items():
                assert value.dtype == expected[key].dtype
                differs |= not torch.equal(value, expected[key])
            assert mixed.record(place, operator)["local"] == pytest.approx(
                full.record(place, operator)["local"], rel=0.2
            )
    assert differs
    half = teacher().to(torch.bfloat16)
    for precision in ("32-true", "bf16-mixed"):
        library = distilled(half, tmp_path / precision, Distilling(steps=3, lr=1e-2, precision=precision))
        module = library.load(half, (0, "mlp"), Ffn(40))
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        with swapped(half, {(0, "mlp"): module}) as model, torch.no_grad():
            assert model(**SPLITS.train[0]).logits.isfinite().all()


def test_the_pass_ends_behind_the_last_sublayer_and_leaves_nothing():
    supernet = teacher("gemma2")
    supernet.model.train()
    ran = []
    for index, block in enumerate(supernet.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    supernet.model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    visited = []

    def serve(place, visit):
        visited.append((place, visit.written.requires_grad))
        if place[1] == "mlp":
            raise RuntimeError

    with teacher_pass(supernet, [(0, "mlp"), (0, "attention")]) as run, pytest.raises(RuntimeError):
        run(SPLITS.train[0], serve)
    assert ran == []
    with teacher_pass(supernet, [(0, "mlp")]) as run:
        run(SPLITS.train[0], lambda *_: None)
    assert ran == [0]
    assert visited == [((0, "attention"), False), ((0, "mlp"), False)]
    assert all(module.training for module in supernet.model.modules())
    assert all(not sublayer_of(supernet, 0, name)._forward_hooks for name in ("attention", "mlp"))


def test_an_operator_that_diverges_is_named(tmp_path):
    supernet = teacher()
    with pytest.raises(ValueError, match=r"layer 0, mlp: operator ffn-40 is not finite.*distill\.lr"):
        distilled(
            supernet, tmp_path / "o", Distilling(steps=3, lr=1e38, lr_final=0.0), operators={(0, "mlp"): [Ffn(40)]}
        )
    with pytest.raises(ValueError, match=r"distill\.steps=7: the training data end"):
        distilled(supernet, tmp_path / "o2", Distilling(steps=7), operators={(0, "mlp"): [Ffn(40)]})


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": 0.0}, {"lr_final": 1.0}, {"memory_gib": 0.0}, {"processes": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"distill\.{next(iter(wrong))}="):
        Distilling(**wrong)


def run(supernet: Supernet, path, operators=None, settings: Distilling = SETTINGS, initial=slices, say=None, **changes):
    library = Library(path)
    library.begin(supernet, settings=settings.of_results, pool={})
    distil(
        supernet,
        library,
        operators or pool(supernet),
        SPLITS,
        settings,
        loss=SquareHead(),
        initial=initial,
        needs=Needs(supernet, 3, 10),
        say=say or (lambda line: None),
        progress=False,
        **changes,
    )
    return library


def test_two_processes_make_what_one_makes(tmp_path):
    supernet = teacher()
    one = run(supernet, tmp_path / "one")
    lines = []
    two = run(supernet, tmp_path / "two", settings=replace(SETTINGS, processes=2), reload=again, say=lines.append)
    assert_same(supernet, one, two)
    assert "process 0: layer" in lines[0]
    assert "process 1: layer" in lines[0]


def test_what_another_process_refuses_it_says():
    supernet, said = teacher(), []
    settings = replace(SETTINGS, steps=9)
    with tempfile.TemporaryDirectory() as folder:
        library = Library(folder)
        library.begin(supernet, settings={}, pool={})
        job = Job(library, SPLITS, settings, SquareHead(), slices)
        shown = []

        def reload():
            shown.append(transformers_logging.is_progress_bar_enabled())
            return again()

        try:
            _work(0, job, [grouped(supernet, {(0, "mlp"): [Ffn(40)]})], reload, 1, SimpleNamespace(put=said.append))
        finally:
            transformers_logging.enable_progress_bar()
    assert shown == [False]  # what processes load shows no bars among those of the run
    assert said[-1][0] == "refused"
    assert said[-1][1].startswith("distill.steps=9: the training data end")


def limit_of(supernet: Supernet) -> float:
    """Memory for one sublayer of the pool at a time."""
    return max(grouped(supernet, {place: found})[0].bytes for place, found in pool(supernet).items()) / 2**30


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path):
    supernet = teacher()
    settings, asked, lines = replace(SETTINGS, memory_gib=limit_of(supernet)), [], []

    def initial(supernet, operators, calibration):
        asked.append(set(operators))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return slices(supernet, operators, calibration)

    with pytest.raises(KeyboardInterrupt):
        run(supernet, tmp_path / "stopped", settings=settings, initial=initial)
    library = Library(tmp_path / "stopped")
    made = {file: file.stat().st_mtime_ns for file in library.path.glob("*.safetensors")}
    assert set(library.operators) == {(0, "attention")}
    run(supernet, library.path, settings=settings, initial=initial, say=lines.append)
    assert asked[2:] == [{(0, "mlp")}, {(1, "attention")}, {(1, "mlp")}]
    assert lines[0].startswith("4 of 16 operators are there; 12 in 3 groups")
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert_same(supernet, run(supernet, tmp_path / "whole"), library)
    run(supernet, library.path, settings=settings, initial=initial, say=lines.append)
    assert lines[1] == "16 of 16 operators are there: nothing to distil"


def test_a_killed_process_is_told_and_the_run_goes_on(tmp_path):
    supernet, path = teacher(), tmp_path / "run" / "operators"
    settings = replace(SETTINGS, processes=2, memory_gib=limit_of(supernet))
    with pytest.raises(ValueError, match=r"a process of the distillation ended .*SIGKILL.*nas-llm distill run_dir="):
        run(supernet, path, settings=settings, initial=killed_behind_the_first, reload=again)
    assert_same(supernet, run(supernet, tmp_path / "whole"), run(supernet, path, settings=SETTINGS))


class Killed(Exception):
    pass


def test_a_run_that_is_killed_in_training_goes_on_at_its_step(tmp_path):
    """Four steps: killed in the third, after what is not trained was saved and two steps were kept."""
    supernet, path = teacher(), tmp_path / "run" / "operators"
    settings = replace(SETTINGS, steps=4, checkpoint_minutes=1e-12)
    calls: list[int] = []

    def killing(student, written, mask):
        calls.append(1)
        if len(calls) > 2 * learning:
            raise Killed
        return SquareHead()(student, written, mask)

    every = [(place, o) for place, found in pool(supernet).items() for o in found if o != Teacher()]
    learning = sum(is_trained(o) for _, o in every)
    library = Library(path)
    library.begin(supernet, settings=settings.of_results, pool={})
    with pytest.raises(Killed):
        Job(library, SPLITS, settings, killing, slices)(supernet, grouped(supernet, pool(supernet)), lambda *_: None)
    assert {(place, o) for place, found in library.operators.items() for o in found} == {
        (place, o) for place, o in every if not is_trained(o)
    }
    calls.clear()

    def counting(student, written, mask):
        calls.append(1)
        return SquareHead()(student, written, mask)

    missing = {place: [o for o in found if is_trained(o)] for place, found in pool(supernet).items()}
    Job(library, SPLITS, settings, counting, slices)(supernet, grouped(supernet, missing), lambda *_: None)
    assert len(calls) == 2 * learning
    assert not list(path.glob("in-work-*"))
    assert_same(supernet, distilled(supernet, tmp_path / "whole", settings), library)


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped"])
def test_a_damaged_operator_is_made_anew_and_said(tmp_path, how):
    supernet, said = teacher(), []
    library = run(supernet, tmp_path / "run" / "operators", {(0, "mlp"): [Ffn(40), Linear()]})
    file = library.file((0, "mlp"), Ffn(40))
    whole, other = file.read_bytes(), library.file((0, "mlp"), Linear()).stat().st_mtime_ns
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    file.write_bytes({"truncated": whole[:-7], "empty": b"", "flipped": flipped}[how])
    run(supernet, library.path, {(0, "mlp"): [Ffn(40), Linear()]}, say=said.append)
    assert f"{file} is damaged" in said[0]
    assert "1 of 2 operators are there" in said[1]
    assert not library.damage((0, "mlp"), Ffn(40))
    assert library.file((0, "mlp"), Linear()).stat().st_mtime_ns == other


def test_progress_tells_operators_and_time_left(capsys):
    supernet = teacher()
    groups = grouped(supernet, pool(supernet))
    with progress_of(groups, 2, shows=True) as tell:
        for _ in range(2):
            tell(groups[0].step_flops, 0)
        for _ in range(16):
            tell(0.0, 1)
    shown = capsys.readouterr().err
    assert "operators: 16 of 16 100%" in shown
    assert "left" in shown


def test_one_pass_of_the_teacher_serves_all_candidates(tmp_path):
    supernet, passes = teacher(), []
    supernet.blocks[0].register_forward_hook(lambda *_: passes.append(None))
    run(supernet, tmp_path / "operators")
    scored = 2 * len(SPLITS.held_out)  # what is not trained is scored, and saved, before the others are trained
    assert len(passes) == SETTINGS.steps + scored
