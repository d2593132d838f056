"""The configuration: every option composes and checks; misspelt, ill-typed and ineffective settings are refused."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from nas_llm import overrides as text
from nas_llm.composition import checked
from nas_llm.config import RUNTIME, build, check, checkpoint_path, config_dir, locate
from nas_llm.config_errors import CONFIG_ERRORS, groups, inner_groups, one_line, options
from nas_llm.config_types import describe, fits
from nas_llm.data.module import SPLITS
from nas_llm.models.tokenizer import load_tokenizer

OPTIONS = [(group, option) for group in groups(config_dir()) for option in options(config_dir(), group)]
PARTNERS = {  # what an option cannot do without
    "sampler=standard": ["distillation=none"],
    "objectives=[none]": ["search=none"],
    **{
        f"sparsity={method}": ["trainer.max_steps=0", "scheduler=none"]
        for method in ("magnitude", "wanda", "sparsegpt")
    },
    **{f"quantization={method}": ["trainer.max_steps=0", "scheduler=none"] for method in ("rtn", "gptq")},
}


OF_OPERATORS = ("search=ilp", "experiment=unast_quickstart")

INNER_GROUPS = inner_groups(config_dir())
INNER = [(group, option) for group in INNER_GROUPS for option in options(config_dir(), group)]


def required(group: str, option: str) -> list[str]:
    """Overrides for the settings that the option leaves to the user."""
    loaded = OmegaConf.load(config_dir() / group / f"{option}.yaml")
    assert isinstance(loaded, DictConfig)
    place = f"{group}.{option}" if group == "objectives" else group
    return [f"{place}.{key}=anything" for key in loaded if OmegaConf.is_missing(loaded, key)]


def refusal(overrides: Sequence[str]) -> str:
    """The line that a user would read."""
    with pytest.raises((ValueError, *CONFIG_ERRORS)) as caught:
        checked([*overrides, "stage=train"])
    error = caught.value
    return one_line(error, overrides, config_dir()) if isinstance(error, CONFIG_ERRORS) else str(error)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}={option}" for group, option in OPTIONS])
def test_every_option_composes_and_checks(group: str, option: str) -> None:
    choice = f"{group}=[{option}]" if group == "objectives" else f"{group}={option}"
    stage = "distill" if choice in OF_OPERATORS else "train"
    cfg = checked([choice, *required(group, option), *PARTNERS.get(choice, []), f"stage={stage}"])
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(("group", "option"), INNER, ids=[f"{group}={option}" for group, option in INNER])
def test_every_inner_option_composes_and_checks(group: str, option: str) -> None:
    outer, _, inner = group.partition("/")
    takers = [name for name in options(config_dir(), outer) if inner in _text(outer, name)]
    assert takers
    for taker in takers:
        cfg = checked([f"{outer}={taker}", f"{group}={option}", "stage=train"])
        assert cfg[outer][inner]["_target_"]


def _text(group: str, option: str) -> str:
    """An option's defaults list and those it builds on."""
    loaded = OmegaConf.load(config_dir() / group / f"{option}.yaml")
    assert isinstance(loaded, DictConfig)
    entries = list(loaded.get("defaults", []))
    bases = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]
    return " ".join([str(entries), *(_text(group, base) for base in bases)])


def test_the_groups_are_all_in_the_defaults_list() -> None:
    named = {
        key for entry in OmegaConf.load(config_dir() / "config.yaml").defaults if entry != "_self_" for key in entry
    }
    assert named - {"hydra"} == set(groups(config_dir()))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("samplr=random", "samplr=random is not known: did you mean sampler"),
        ("sampler=sandwhich", "sampler=sandwhich is not known: did you mean sampler=sandwich? Known are"),
        ("objectives=[params,los]", "objectives=los is not known: did you mean objectives=loss"),
        ("trainer.max_step=3", "trainer.max_step=3 is not known: did you mean trainer.max_steps?"),
        ("trainr.max_steps=3", "trainr.max_steps=3 is not known: did you mean trainer.max_steps?"),
        ("seed=-1", "seed=-1 is not allowed: set seed to a whole number from 0 to 4294967295"),
        ("data.seed=-1", "data.seed=-1 is not allowed: set data.seed to"),
        ("optimizer.lr=inf", "optimizer.lr=inf is not allowed: set optimizer.lr to a finite number"),
        ("trainer.accelerator=tpux", "trainer.accelerator=tpux is not known: did you mean trainer.accelerator=tpu?"),
        ("trainer.strategy=dpp", "trainer.strategy=dpp is not known: did you mean trainer.strategy=ddp?"),
        ("trainer.strategy=foo", "trainer.strategy=foo is not known: Known are auto, ddp"),
        (
            "trainer.val_check_interval=0.5",
            "trainer.val_check_interval=0.5 is a fraction of an epoch ... trainer.check_val_every_n_epoch=1",
        ),
        ("trainer.val_check_interval=0", "trainer.val_check_interval=0: allowed is 1 or more"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0: allowed is 1 or more"),
        ("trainer.limit_val_batches=-1", "trainer.limit_val_batches=-1: allowed is 1 or more batches"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0 leaves nothing to train on"),
        ("+trainer.accumulate_grad_batches=2", "set training.accumulate_grad_batches=2 instead"),
        ("+trainer.callbacks=[]", "trainer.callbacks=[] cannot take effect: the stage sets it itself"),
        ("~trainer.max_steps", "~trainer.max_steps leaves out what is read: set it instead, trainer.max_steps=..."),
        ("sampler=null", "sampler=null is not known: Known are calibrated"),
        ("=3", "'=3' cannot be read: write key=value"),
        ("+sampler=random", "+sampler=random cannot be added: there is one sampler already; write sampler=..."),
        ("sampler.k=-1", "sampler.k=-1: allowed is 0 or more"),
        ("sampler.candidates=uniform", "sampler.candidates=uniform is not allowed ... choose sampler/candidates="),
        ("search.initial=depth_only", "search.initial=depth_only is not known: choose search/initial=, of"),
        ("search.population=1", "search.population=1 is too small"),
        ("search=stratified search.bins=0", "search.bins=0 is too small"),
        ("search_space.steps=0", "search_space.steps=0"),
        ("data.batch_size=0", "data.batch_size=0 must be at least 1"),
        ("data=text data.path=x data.validation_size=-1", "data.validation_size=-1 must be"),
        ("checkpoint.every_n_steps=0", "checkpoint.every_n_steps=0"),
        ("training.accumulate_grad_batches=0", "training.accumulate_grad_batches=0"),
        ("optimizer.lr=-1", "optimizer.lr=-1"),
        ("run_dir=", "run_dir= is not allowed: name a folder"),
        ("model.path=nan", "must be text; quote it as model.path=\"'nan'\", or write model.path=./nan"),
        ("name=12", "must be text; quote it as name=\"'12'\""),
        ("model=hf", "model.path is required: add model.path="),
        (
            "+objectives.accuracy.limit=3",
            "accuracy is not among the objectives; add it, objectives=[params,loss,accuracy]",
        ),
        (
            "objectives.accuracy.batch_size=3",
            "objectives.accuracy.batch_size=3 cannot take effect: accuracy is not among ... [params,loss,accuracy]",
        ),
        (
            "objectives=[latency] objectives.latency.device=foo",
            "objectives.latency.device=foo is no device",
        ),
        ("experiment=microworld_llama pretrain.phases.0.steps=0", "pretrain.phases.N.steps=0: allowed is 1 or more"),
        ("experiment=microworld_llama pretrain.betas=[3,3]", "pretrain.betas=[3, 3]: allowed are two numbers"),
        ("experiment=microworld_llama pretrain.model.hidden_size=190", "pretrain.model: ... not a multiple"),
        ("max_steps=3", "max_steps=3 is not known: did you mean trainer.max_steps?"),
        ("sampler.kk=3", "did you mean sampler.k?"),
        ("+sampler.smalest=true", "sampler.smalest=True is not a setting of"),
        ("trainer.max_steps=abc", "trainer.max_steps=abc is not allowed: it must be a whole number"),
        ("trainer.max_steps=1.5", "trainer.max_steps=1.5 is not allowed"),
        ("trainer.precision=bf17", "trainer.precision=bf17 is not allowed: it must be ... bf16-mixed"),
        ("seed=true", "seed=True is not allowed: it must be a whole number"),
        ("max_params=half", "max_params=half is not allowed: it must be a number or null"),
        ("sampler.k=two", "sampler.k=two is not allowed: it must be a whole number"),
        ("sampler.k=null", "sampler.k=null is not allowed"),
        ("training.reduction=median", "training.reduction=median is not allowed: it must be sum, mean"),
        ("optimizer.lr=fast", "optimizer.lr=fast is not allowed"),
        ("model.trust_remote_code=maybe", "model.trust_remote_code=maybe is not allowed: it must be true or false"),
        ("distillation.alpha=-1", "distillation.alpha=-1"),
        ("data=text", "data.path is required: add data.path="),
        ("search_space.hidden=big", "search_space.hidden=big is not allowed: it must be a list of a whole number"),
        ("sampler=standard", "distillation=ForwardKL cannot take effect with sampler=standard ... distillation=none"),
        (
            "sampler=standard distillation=none hidden_matching=mse",
            "hidden_matching=HiddenMatching cannot take effect with sampler=standard ... hidden_matching=none",
        ),
        ("training.teacher=thawed", "training.teacher=thawed is not allowed: it must be in_place, frozen"),
        (
            "training.teacher_path=other",
            "training.teacher_path=other cannot take effect ... add training.teacher=frozen",
        ),
        (
            "training.teacher=frozen training.teacher_path=other hidden_matching=mse",
            "hidden_matching=HiddenMatching cannot take effect with training.teacher_path ... hidden_matching=none",
        ),
        ("training.teacher=frozen distillation=none", "training.teacher=frozen cannot ... distillation=forward_kl"),
        ("training.teacher=frozen distillation.beta=0", "training.teacher=frozen cannot ... hidden_matching=mse"),
        (
            "training.teacher_logits=recomputed distillation=none hidden_matching=mse",
            "training.teacher_logits=recomputed cannot take effect ... training.teacher_logits=recorded",
        ),
        ("distillation=top_k distillation.k=0", "distillation.k=0"),
        ("distillation=mse distillation.temperature=2", "distillation.temperature=2 is not known"),
        ("distillation.max_ratio=-1", "distillation.max_ratio=-1"),
        ("hidden_matching=mse hidden_matching.weight=0", "hidden_matching.weight=0"),
        ("hidden_matching.weight=2", "hidden_matching.weight=2 cannot take effect"),
        (
            "sparsity=wanda",
            "sparsity=Wanda cannot take effect ... trainer.max_steps=0 scheduler=none ... sparsity=none",
        ),
        ("trainer.max_steps=0", "trainer.max_steps=0: allowed is 1 or more optimizer steps"),
        ("sparsity=wanda sparsity.sparsity=1", "sparsity.sparsity=1: allowed is the fraction of zeros"),
        (
            "sparsity=wanda sparsity.pattern=2:4",
            "sparsity.sparsity=0.5 and sparsity.pattern=2:4 ... sparsity.sparsity=null",
        ),
        ("sparsity=magnitude sparsity.sparsity=null", "set sparsity.sparsity=0.5, or sparsity.pattern=2:4"),
        ("sparsity=magnitude sparsity.sparsity=null sparsity.pattern=4:4", "sparsity.pattern=4:4: allowed is N:M"),
        ("sparsity=sparsegpt sparsity.damping=-1", "sparsity.damping=-1"),
        (
            "quantization=gptq",
            "quantization=GPTQ cannot take effect where all weights are trained ... trainer.max_steps=0 ... =none",
        ),
        ("quantization=rtn quantization.bits=9", "quantization.bits=9: allowed are 2 to 8 bits"),
        ("quantization=rtn quantization.group_size=0", "quantization.group_size=0: allowed is 1 or more"),
        ("quantization=gptq quantization.damping=-1", "quantization.damping=-1: allowed is 0 or more"),
        (
            "quantization=gptq quantization.targets=q_proj",
            "quantization.targets=q_proj is not allowed: it must be a list of text",
        ),
        ("quantization=rtn quantization.damping=0.1", "quantization.damping=0.1 is not known"),
        ("quantization=gtpq", "quantization=gtpq is not known: did you mean quantization=gptq?"),
        ("sparsity=wanda sparsity.block_size=8", "sparsity.block_size=8 is not known"),
        ("sparsity=wanda sparsity.targets=q_proj", "sparsity.targets=q_proj is not allowed: it must be a list of text"),
        ("baseline=gptq baseline.targets=q_proj", "baseline.targets=q_proj is not allowed: it must be a list of text"),
        ("sparsity=wnda", "sparsity=wnda is not known: did you mean sparsity=wanda?"),
        ("search/initial=depth", "search/initial=depth is not known: did you mean search/initial=depth_only"),
        ("search.initial.point=3", "search.initial"),
        ("search_space=width_onl", "did you mean search_space=width_only"),
        ("search_space.elastic=hidden", "search_space.elastic=hidden is not allowed: it must be a list of text"),
        ("ckpt_path=missing.ckpt", "ckpt_path=missing.ckpt: there is no missing.ckpt"),
        ("a=b=c", "'a=b=c' cannot be read: write key=value"),
        ("seed", "'seed' cannot be read: write key=value"),
        ("sampler._target_=nas_llm.samplers.Nothing", "sampler._target_=nas_llm.samplers.Nothing names nothing"),
        (
            "sampler._target_=nowhere.Sampler",
            "sampler._target_=nowhere.Sampler names nothing: there is no module nowhere",
        ),
    ],
)
def test_mistakes_get_one_line_that_mends_them(override: str, says: str) -> None:
    line = refusal(override.split(" "))
    assert all(part in line for part in says.split(" ... ")), line
    assert "\n" not in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampler=standard", "training.teacher=frozen"],
        ["sampler=standard", "training.teacher=frozen", "distillation=none", "hidden_matching=cosine"],
        ["training.teacher_logits=recomputed", "distillation=top_k", "hidden_matching=mse"],
    ],
)
def test_ways_of_teaching_that_take_effect_are_let_through(overrides: list[str]) -> None:
    assert checked([*overrides, "stage=train"])


def test_a_setting_of_an_option_without_settings_cannot_take_effect() -> None:
    assert refusal(["search=none", "search.evaluation=4"]).startswith("search.evaluation=4 cannot take effect")


def test_starting_points_of_a_search_that_takes_none_cannot_take_effect() -> None:
    line = refusal(["search=random", "search/initial=depth_only"])
    assert line.startswith("search/initial=depth_only cannot take effect: the chosen search takes no initial; choose")


def test_impossible_starting_points_are_refused_before_anything_is_loaded() -> None:
    line = refusal(["search/initial=importance_order", "search.initial.points=1"])
    assert line.startswith("search.initial.points=1: allowed is 2 or more")
    assert "search.initial.bins=0" in refusal(["search/initial=calibrated_grid", "search.initial.bins=0"])


@dataclass(frozen=True)
class Example:
    """A strategy with one runtime argument, one required and some typed settings."""

    space: Any
    size: int
    mode: Literal["a", "b"] = "a"
    widths: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size={self.size} is negative")


def example(**settings: Any) -> DictConfig:
    return OmegaConf.create({"_target_": f"{__name__}.Example", **settings})


def test_build_passes_what_the_target_takes_as_it_is() -> None:
    space = Example(space=None, size=1)  # Hydra would turn a dataclass into a configuration
    built = build(example(size=2, widths=[3, 4]), space=space, supernet="not taken")
    assert built.space is space
    assert built.widths == [3, 4]
    assert type(built.widths) is list
    assert build(OmegaConf.create({})) is None
    assert build(None) is None


def test_a_node_without_a_class_is_named() -> None:
    cfg = OmegaConf.merge(OmegaConf.create(OmegaConf.to_container(checked(["stage=train"]))), {})
    assert isinstance(cfg, DictConfig)
    cfg.objectives.accuracy = {"limit": 3}  # as an experiment sets it, whose objectives are others
    with pytest.raises(ValueError, match=r"objectives.accuracy=.* is not among the objectives; add it, objectives="):
        check(cfg)
    del cfg.objectives["accuracy"]
    cfg.sampler = {"k": 3}
    with pytest.raises(ValueError, match=r"sampler=.* has no _target_.* choose sampler=, of calibrated, "):
        check(cfg)


def test_impossible_values_are_refused_without_what_the_stage_passes() -> None:
    cfg = checked(["stage=train"])
    cfg.sampler = example(size=-1)  # its space comes later
    with pytest.raises(ValueError, match="size=-1 is negative"):
        check(cfg)


def test_build_of_a_partial_node_gives_a_callable() -> None:
    made = build(example(_partial_=True, mode="b"), space=5)(size=7)
    assert (made.space, made.size, made.mode) == (5, 7, "b")


def test_a_missing_argument_is_named_unless_the_stage_passes_it() -> None:
    cfg = checked(["stage=train"])
    cfg = OmegaConf.merge(OmegaConf.create(OmegaConf.to_container(cfg)), {"sampler": None})
    assert isinstance(cfg, DictConfig)
    cfg.sampler = example()
    with pytest.raises(ValueError, match=r"sampler.size is required by .*Example: add sampler.size="):
        check(cfg)
    cfg.sampler = example(size=1)
    check(cfg)
    assert "space" in RUNTIME["sampler"]
    cfg.sampler = example(size=-1)
    with pytest.raises(ValueError, match="size=-1 is negative"):
        check(cfg)


def test_locate_says_which_package_is_missing() -> None:
    assert locate("collections.OrderedDict.fromkeys", "key")
    with pytest.raises(ValueError, match=r"key=json.nothing.here names nothing"):
        locate("json.nothing.here", "key")


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        ("1", float, False),
        (1, bool, False),
        ("x", str, True),
        (1, str, False),
        ("x", Path, True),
        ("x", str | Path, True),
        (None, int | None, True),
        (None, int, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (1, Literal[True], False),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ("12", Sequence[int], False),
        ([1, 2.0], tuple[int, float], True),
        ([1], tuple[int, float], False),
        ([1, 2, 3], tuple[int, ...], True),
        ({"a": 1}, dict[str, int], True),
        ({"a": "1"}, dict[str, int], False),
        ({"_target_": "x.Y"}, int, True),
        (5, str | Example, False),
        ("bfloat16", Example, True),
        (3, Any, True),
    ],
)
def test_values_fit_annotations(value: Any, annotation: Any, expected: bool) -> None:
    assert fits(value, annotation) is expected
    assert describe(annotation)


def test_checkpoints_are_found_or_the_others_named(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"run_dir": str(tmp_path), "ckpt_path": None})
    assert checkpoint_path(cfg) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step=3.ckpt").touch()
    cfg.ckpt_path = "last"
    with pytest.raises(ValueError, match=r"ckpt_path=last: there is no .*last.ckpt; .* holds step=3.ckpt"):
        checkpoint_path(cfg)
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert checkpoint_path(cfg) == tmp_path / "checkpoints" / "last.ckpt"


def test_new_overrides_win_and_a_new_option_drops_the_old_ones_settings() -> None:
    old = ["sampler=sandwich", "sampler.k=4", "search=nsga2", "search.evaluations=9", "seed=1", "+data.more=2"]
    new = ["sampler=random", "search=nsga2", "seed=2", "name=x"]
    merged = text.merge(old, new, groups(config_dir()))
    assert merged == ["search.evaluations=9", "+data.more=2", "sampler=random", "search=nsga2", "seed=2", "name=x"]
    inner = ["search/initial=depth_only", "search.evaluations=9", "seed=1"]
    assert text.merge(inner, ["search=random"], groups(config_dir())) == ["seed=1", "search=random"]
    assert text.merge(inner, ["search.seed=2"], groups(config_dir())) == [*inner, "search.seed=2"]
    chain, known = (
        ["search/initial=importance_order", "search.initial.points=4"],
        [*groups(config_dir()), *INNER_GROUPS],
    )
    assert text.merge(chain, ["search/initial=depth_only"], known) == ["search/initial=depth_only"]


def test_options_put_into_a_place_are_settings_of_that_place() -> None:
    old = ["importance=activation_block", "importance@importance.width=taylor", "importance.width.a=2", "seed=1"]
    known = groups(config_dir())
    placed = text.merge(old, ["importance@importance.width=wanda"], known)
    assert placed == ["importance=activation_block", "seed=1", "importance@importance.width=wanda"]
    assert text.merge(old, ["importance=magnitude"], known) == ["seed=1", "importance=magnitude"]
    assert text.merge(["+data.more=2"], ["data.more=3"], known) == ["data.more=3"]
    several = ["objectives.accuracy.batch_size=2", "objectives.loss.x=1"]
    assert text.merge(several, ["objectives=[params,accuracy]"], known) == [several[0], "objectives=[params,accuracy]"]
    nested = ["sampler=calibrated", "sampler/candidates=uniform"]
    assert text.merge(nested, ["sampler=standard"], known) == ["sampler=standard"]
    checked([*placed, "importance.depth.method=loss", "stage=train"])


def test_recorded_paths_stay_valid_in_other_directories(tmp_path: Path) -> None:
    (tmp_path / "my data.txt").touch()
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(["data=text", "data.path='my data.txt'", "model.path=hub/name"], tmp_path / text.RECORD)
    OmegaConf.save({"hydra": {"runtime": {"cwd": str(tmp_path)}}}, tmp_path / ".hydra" / "hydra.yaml")
    assert text.recorded(tmp_path) == ["data=text", f"data.path='{tmp_path}/my data.txt'", "model.path=hub/name"]
    OmegaConf.save(["a.test_path=['my data.txt',gone.json,/x/y.json]"], tmp_path / text.RECORD)
    (listed,) = text.parse(text.recorded(tmp_path))
    assert listed.value() == [f"{tmp_path}/my data.txt", "gone.json", "/x/y.json"]
    with pytest.raises(ValueError, match="holds no run"):
        text.recorded(tmp_path / "other")


def test_what_belongs_to_one_call_is_not_recorded() -> None:
    given = ["seed=1", "run_dir=x", "ckpt_path=last", "stage=train", "hydra.verbose=true", "~logger"]
    assert text.to_record(given) == ["seed=1", "~logger"]
    ranks = ["seed=1", "search_space.ranks=[8,4]"]
    assert text.given(text.replacing(ranks)) == ranks
    assert text.given(["search_space.ranks=null"]) == ["search_space.ranks=null"]


def test_the_jobs_of_a_sweep_are_every_combination() -> None:
    jobs = text.jobs(text.parse(["seed=1,2,3", "sampler=random,sandwich", "name=x"]))
    assert jobs[0] == ["seed=1", "sampler=random", "name=x"]
    assert {override for job in jobs for override in job} == {
        "name=x",
        *(f"seed={seed}" for seed in (1, 2, 3)),
        "sampler=random",
        "sampler=sandwich",
    }
    assert len(jobs) == 6


@pytest.mark.parametrize("value", ["a b", "it's", "a,b=c", "back\\slash", "\\'", "end\\", "1e5", "[a]"])
def test_assigned_values_come_back_as_they_were(value: str) -> None:
    assert text.value_of([text.assign("run_dir", value)], "run_dir") == value


def test_ids_of_architectures_and_paths_stay_text() -> None:
    quoted = text.quoted(["architecture=12e456789012", "seed=12", "architecture=largest,000123456789"])
    assert quoted == ["architecture='12e456789012'", "seed=12", "architecture=largest,'000123456789'"]
    assert text.value_of(quoted[:1], "architecture") == "12e456789012"
    paths = ["ckpt_path=runs/epoch=1-step=3.ckpt", "data.path='a=b'", "~logger", "data.path=a,b"]
    assert text.quoted(paths) == ["ckpt_path='runs/epoch=1-step=3.ckpt'", *paths[1:]]


def test_directories_of_jobs_are_named_by_plain_swept_values() -> None:
    given = ["seed=1,2", "name=x", "data.path=a/b,c", "objectives=[params],[loss]", "optimizer.lr=1e-3,0.1"]
    assert text.not_swept(given) == ["name", "data.path", "objectives"]


@pytest.mark.parametrize(
    ("experiment", "ranks"),
    [
        ("shears", "{attention_in: [32, 16]}"),  # of a list a mapping
        ("lonas", "[32, 16]"),  # of a mapping a list
        ("lonas", "{attention_out: [32, 8]}"),  # of a mapping one with other groups
    ],
)
def test_ranks_are_replaced_by_a_list_or_a_mapping(experiment: str, ranks: str) -> None:
    given = [f"experiment=low_rank_adapters/{experiment}", f"search_space.ranks={ranks}"]
    found = checked([*given, "stage=train"]).search_space.ranks
    assert found == OmegaConf.create(ranks if ranks[0] == "{" else f"x: {ranks}").get("x", OmegaConf.create(ranks))


def test_an_experiment_s_settings_of_objectives_go_with_those_objectives() -> None:
    given = ["experiment=low_rank_adapters/lonas", "objectives=[latency]"]
    assert list(checked([*given, "stage=evaluate", "run_dir=x"]).objectives) == ["latency"]
    for setting in ("objectives.macs.adapters=true", "objectives.accuracy.sets.items_per_set=3"):
        with pytest.raises(ValueError, match=r"objectives\.(macs|accuracy)=.* cannot take effect"):
            checked([*given, setting, "stage=evaluate", "run_dir=x"])


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm", "ray"])
def test_launchers_that_are_not_installed_are_named_with_their_extra(launcher):
    error = MissingConfigException("", missing_cfg_file=f"hydra/launcher/{launcher}", options=["basic"])
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = f"hydra-{launcher.partition('_')[0]}-launcher"
    (extra,) = [name for name, needs in extras.items() if name != "dev" and any(n.startswith(wanted) for n in needs)]
    line = one_line(error, [], config_dir())
    assert line == f"hydra/launcher={launcher} is not installed: pip install 'nas_llm[{extra}]'"


def test_debug_takes_few_records_away_from_a_small_text(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text(
        "\n\n".join(f"Anna has {i} cats and {i + 1} red apples." * 4 for i in range(30))
    )
    given = [
        "data=text",
        f"data.path={tmp_path / 'small.txt'}",
        "data.sequence_length=32",
        f"data.cache_dir={tmp_path}",
    ]
    tokenizer = load_tokenizer("microworld_llama")
    for more, message in (([], "leave nothing of data.path"), (["debug=fast"], None)):
        data = build(checked([*given, *more, "stage=train", "run_dir=x"]).data, tokenizer=tokenizer)
        data.prepare_data()
        if message is not None:
            with pytest.raises(ValueError, match=message):
                data.setup()
            continue
        data.setup()
        assert all(len(data.dataset(name)) >= data.batch_size for name in SPLITS)
