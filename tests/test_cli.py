"""The command line: help, mistakes in one line, runs, later stages on a run, sweeps, Ctrl-C; with rehearsed stages."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import nas_llm.stages
from nas_llm import cli
from nas_llm.composition import checked
from nas_llm.config import config_dir
from nas_llm.config_errors import groups, options
from nas_llm.ranks import CHILD_ARGUMENTS
from nas_llm.run_directory import locked
from nas_llm.stage_reads import overrides_of

REHEARSED = '''"""Rehearses {name}.

Writes down what it was asked for, and fails as `name` says.
"""

import json
import os
from pathlib import Path


READS = {reads}


def main(cfg):
    run_dir = Path(cfg.run_dir)
    asked = dict(seed=cfg.seed, k=cfg.sampler.get("k"), run_dir=cfg.run_dir, architecture=cfg.architecture)
    asked["search"] = dict(cfg.search)
    asked["steps"], asked["parent"] = cfg.trainer.max_steps, os.getppid()
    (run_dir / "{name}.json").write_text(json.dumps(asked))
    if cfg.name == "value":
        raise ValueError("name=value is refused\\nby the stage")
    if cfg.name == "bug":
        raise RuntimeError("a bug")
    if cfg.name == "full":
        raise OSError(28, "No space left on device", "some.bin")
    if cfg.name == "full log":
        raise OSError(28, "No space left on device")
    if cfg.name == "stopped":
        raise KeyboardInterrupt
    if "{name}" == "train":
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        (run_dir / "checkpoints" / "last.ckpt").touch()
        if cfg.name == "stopped late":
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                raise SystemExit(1)
'''
STAGES = ("train", "search", "report")
ROOTS = tuple(str(key) for key in checked(["stage=train"]))
Nas = Callable[..., int]


@pytest.fixture
def rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of stages that do nothing but write down what they were asked for, used instead of the real ones."""
    folder = tmp_path / "rehearsed"
    folder.mkdir()
    for name in STAGES:
        (folder / f"{name}.py").write_text(REHEARSED.replace("{name}", name).replace("{reads}", repr(ROOTS)))
    loaded = {name: sys.modules.pop(name, None) for name in (f"nas_llm.stages.{stage}" for stage in STAGES)}
    monkeypatch.setattr(nas_llm.stages, "__path__", [str(folder)])
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield folder
    for name, module in loaded.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def nas(rehearsed: Path) -> Nas:
    return lambda *arguments: cli.run(list(arguments))


@pytest.fixture
def shell(rehearsed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in a process of its own, with the rehearsed stages there and in processes that it starts."""
    (tmp_path / "site").mkdir()
    hook = f"import nas_llm.stages\nnas_llm.stages.__path__ = [{str(rehearsed)!r}]\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(hook)
    root = Path(cli.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{root}"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nas_llm", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    return call


def asked(run_dir: str | Path, stage: str) -> dict[str, object]:
    return json.loads((Path(run_dir) / f"{stage}.json").read_text())


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_reader_who_has_left_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "nas_llm", "--version"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (cli.UNREAD, b"")


def test_help_lists_the_stages_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for stage, line in cli.stages().items():
        assert f"  {stage}" in shown
        assert line
        assert line in shown
        assert len(line) <= 120


def test_real_stages_are_those_with_a_main() -> None:
    folder = Path(nas_llm.stages.__file__).parent
    assert set(cli.stages()) == {path.stem for path in folder.glob("[!_]*.py") if "\ndef main(" in path.read_text()}


def test_the_help_of_a_stage_shows_the_groups_that_it_reads_with_their_options(
    nas: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nas("train", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for group in set(groups(config_dir())) & {*ROOTS, "experiment", "debug"}:
        assert f" {group}= {', '.join(options(config_dir(), group))} " in shown


@pytest.mark.parametrize("stage", cli.stages())
def test_the_help_of_each_stage_shows_overrides_that_it_reads(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([stage, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    together: dict[tuple[str, ...], dict[str, None]] = {}  # those of one choice: one call has room for them all
    for override, meaning in overrides_of(stage):
        assert f" {override} {meaning}" in shown
        given = [part for part in override.split() if not part.startswith("ckpt_path")]
        choice = tuple(part for part in given if part.startswith(("search=", "analysis=", "objectives=", "bench=")))
        together.setdefault(choice, {}).update(dict.fromkeys(given))
    needed = {"pretrain": "experiment=microworld_llama", "bench": "bench=sandwich", "analyse": "analysis=importance"}
    values = {"DIR": "x", "PATH": "x", "N": "1", "X": "0.1", "ID": "largest"}
    for choice, given in together.items():
        asked = [f"{key}={values.get(value, value)}" for key, _, value in (part.partition("=") for part in given)]
        before = [needed[stage]] if stage in needed and not choice and needed[stage] not in asked else []
        assert checked([*before, *asked, f"stage={stage}"], asked).stage == stage


@pytest.mark.parametrize(
    ("stage", "shows", "hides"),
    [
        ("export", "export.format=hf", "trainer.max_steps"),
        ("bench", "bench= adapters", "sampler="),
        ("report", "run_dir=DIR", "data="),
    ],
)
def test_the_help_of_a_stage_leaves_out_what_it_does_not_read(
    stage: str, shows: str, hides: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([stage, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shows in shown
    assert hides not in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"nas-llm {nas_llm.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "there is no stage 'trian': did you mean train?"),
        (["train", "samplr=random"], "did you mean sampler?"),
        (["train", "trainer.max_steps=abc"], "trainer.max_steps=abc is not allowed: it must be a whole number"),
        (["train", "-m", "trainer.max_steps=1,abc"], "trainer.max_steps=abc is not allowed"),
        (["train", "-m", "sampler.k=1,-1"], "sampler.k=-1: allowed is 0 or more"),
        (["train", "-m", "sampler.k=1,-1", "hydra/launcher=joblib"], "(job 1: sampler.k=-1)"),
        (["train", "-m", "sampler=standard,random", "distillation=none,forward_kl"], "(job 1: sampler=standard dist"),
        (["train", "-m", "experiment=glob(ablation_samplers/*)", "seed=1,-1"], "seed=-1 is not allowed"),
        (
            ["train", "-m", "experiment=glob(nothing/*)"],
            "matches none of experiment's options: ablation_distillation, ",
        ),
        (["train", "-m", "experiment=quickstart,quickstrat"], "did you mean experiment=quickstart?"),
        (["train", "-m", "sampler=random,sandwhich"], "did you mean sampler=sandwich?"),
        (["train", "--multi-run"], "unrecognized arguments: --multi-run"),
        (["train", "--config-dir", "nowhere"], "--config-dir nowhere is no folder"),
        (["train", "ckpt_path=last"], "name it with run_dir=DIR"),
        (["train", "ckpt_path=last", "run_dir=nowhere"], "run_dir=nowhere holds no run"),
        (["search"], "nas-llm search goes on with a run: name it with run_dir=DIR"),
        (["search", "run_dir=nowhere"], "run_dir=nowhere holds no run"),
        (["train", "--cfg", "job", "samplr=random"], "did you mean sampler?"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    nas: Nas, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert nas(*arguments) == 2
    line = error_line(capsys)
    assert line.startswith("nas-llm: error: ")
    assert says in line
    assert not list(Path.cwd().iterdir())


def test_a_run_and_its_record(nas: Nas) -> None:
    assert nas("train", "seed=3", "search=none", "run_dir=here") == 0
    assert asked("here", "train")["seed"] == 3
    assert OmegaConf.load("here/.hydra/overrides.yaml") == ["seed=3", "search=none"]
    assert OmegaConf.load("here/.hydra/config.yaml").run_dir == "here"
    (entry,) = json.loads(Path("here/provenance.json").read_text())["stages"]
    assert entry["status"] == "finished"
    assert entry["argv"][:4] == ["nas-llm", "train", "seed=3", "search=none"]
    assert not list(Path("here").rglob("*.log"))


def test_the_default_run_dir_is_readable(nas: Nas) -> None:
    assert nas("train", "name=mine") == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("train-mine-20")
    assert asked(run, "train")["run_dir"] == str(run.parent / run.name)


def test_later_stages_start_from_the_runs_overrides(nas: Nas) -> None:
    assert nas("train", "run_dir=a", "sampler.k=5", "search.evaluations=7", "search.population=4", "seed=2") == 0
    before = Path("a/.hydra/overrides.yaml").read_text()
    assert nas("search", "run_dir=a", "seed=9", "architecture=000012345678") == 0
    first = asked("a", "search")
    assert (first["seed"], first["k"], first["architecture"]) == (9, 5, "000012345678")
    assert first["search"]["evaluations"] == 7  # type: ignore[index]
    assert nas("search", "run_dir=a", "search=none") == 0
    assert asked("a", "search")["search"] == {}
    assert nas("report", "run_dir=a") == 0
    assert asked("a", "report")["seed"] == 2
    assert Path("a/.hydra/overrides.yaml").read_text() == before
    assert Path("a/.hydra/search/overrides.yaml").exists()
    stages = json.loads(Path("a/provenance.json").read_text())["stages"]
    assert [entry["stage"] for entry in stages] == ["train", "search", "search", "report"]


def test_resuming_merges_and_starting_anew_is_refused(nas: Nas, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("train", "run_dir=a", "sampler.k=5", "trainer.max_steps=10") == 0
    assert nas("train", "run_dir=a") == 2
    assert "already holds a run (checkpoints)" in error_line(capsys)
    assert nas("train", "run_dir=a", "ckpt_path=last", "trainer.max_steps=20") == 0
    assert (asked("a", "train")["k"], asked("a", "train")["steps"]) == (5, 20)
    assert nas("search", "run_dir=a") == 0
    assert asked("a", "search")["steps"] == 20


def test_a_directory_in_use_is_refused(nas: Nas, capsys: pytest.CaptureFixture[str]) -> None:
    with locked("a"):
        assert nas("train", "run_dir=a") == 2
    assert f"run_dir=a is in use by another process (pid {os.getpid()}" in error_line(capsys).replace(
        str(Path.cwd()), ""
    )
    assert not Path("a/.hydra").exists()


def test_a_refused_second_process_changes_nothing_of_the_run_in_use(nas: Nas) -> None:
    Path("a").mkdir()
    Path("a/fingerprints.json").write_text('{"data": "of the run under way"}')
    with locked("a"):
        assert nas("train", "run_dir=a") == 2
        assert Path("a/fingerprints.json").read_text() == '{"data": "of the run under way"}'
    assert nas("train", "run_dir=a") == 0  # nobody holds it now, and it had come to nothing
    assert not Path("a/fingerprints.json").exists()


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("value", 2, "nas-llm: error: name=value is refused by the stage"),
        ("full", 2, "nas-llm: error: some.bin could not be written: No space left on device"),
        (
            "'full log'",
            2,
            "run_dir=a: a file there could not be written (No space left on device): mend that, or choose",
        ),
        ("stopped", 130, "go on with: nas-llm train run_dir=a name=stopped"),
        ("'stopped late'", 130, "go on with: nas-llm train run_dir=a ckpt_path=last"),
    ],
)
def test_how_a_stage_ends(nas: Nas, capsys: pytest.CaptureFixture[str], name: str, code: int, says: str) -> None:
    assert nas("train", "run_dir=a", f"name={name}") == code
    assert says in error_line(capsys)
    (entry,) = json.loads(Path("a/provenance.json").read_text())["stages"]
    assert entry["status"] == ("failed" if code == 2 else "interrupted")


def test_input_that_a_stage_refuses_leaves_nothing(nas: Nas, rehearsed: Path) -> None:
    source = (rehearsed / "train.py").read_text()
    (rehearsed / "train.py").write_text(
        source.replace("    run_dir = Path", "    raise ValueError('no data')\n    run_dir = Path")
    )
    assert nas("train", "run_dir=runs/deep/a") == 2
    assert not list(Path.cwd().iterdir())
    Path("mine").mkdir()
    assert nas("train", "run_dir=mine") == 2
    assert Path("mine/provenance.json").exists()


def test_a_refused_resumption_leaves_the_record_as_it_was(nas: Nas) -> None:
    assert nas("train", "run_dir=a", "sampler.k=5") == 0
    assert nas("train", "run_dir=a", "ckpt_path=last", "sampler.k=6", "name=value") == 2
    assert OmegaConf.load("a/.hydra/overrides.yaml") == ["sampler.k=5"]
    assert OmegaConf.load("a/.hydra/config.yaml").sampler.k == 5
    assert nas("train", "run_dir=a", "ckpt_path=last", "sampler.k=7", "name=stopped") == 130
    assert OmegaConf.load("a/.hydra/overrides.yaml") == ["sampler.k=7", "name=stopped"]


def test_bugs_show_their_traceback(nas: Nas) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        nas("train", "run_dir=a", "name=bug")


def test_a_traceback_can_be_asked_for(
    nas: Nas, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cli.FULL_TRACEBACK, "1")
    assert nas("train", "run_dir=a", "name=value") == 2
    assert "Traceback" in capsys.readouterr().err


def test_cfg_shows_the_configuration_and_writes_nothing(nas: Nas, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("train", "--cfg", "job", "sampler.k=5") == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert shown.sampler.k == 5
    assert "hydra" not in shown
    assert not list(Path.cwd().iterdir())


def test_own_options_by_config_dir_and_in_later_stages(nas: Nas) -> None:
    Path("mine/sampler").mkdir(parents=True)
    Path("mine/sampler/wide.yaml").write_text("_target_: nas_llm.samplers.sandwich.SandwichSampler\nk: 40\n")
    assert nas("train", "--config-dir", "mine", "sampler=wide", "run_dir=a") == 0
    assert asked("a", "train")["k"] == 40
    assert nas("search", "run_dir=a") == 0
    assert asked("a", "search")["k"] == 40


def test_a_sweep_gives_every_job_its_own_run(nas: Nas) -> None:
    assert nas("train", "-m", "seed=1,2", "sampler.k=3", "run_dir=sweep") == 0
    for number, seed in enumerate((1, 2)):
        run = Path("sweep") / f"{number}-seed-{seed}"
        assert (asked(run, "train")["seed"], asked(run, "train")["k"]) == (seed, 3)
        assert Path(str(asked(run, "train")["run_dir"])).samefile(run)
        assert (run / "provenance.json").exists()
        assert OmegaConf.load(run / ".hydra" / "overrides.yaml") == [f"seed={seed}", "sampler.k=3"]
    assert nas("search", "run_dir=sweep/1-seed-2") == 0
    assert asked("sweep/1-seed-2", "search")["k"] == 3


def test_jobs_whose_values_are_no_folder_names_are_numbered(nas: Nas) -> None:
    assert nas("train", "-m", "experiment=ablation_samplers/random,ablation_samplers/standard", "run_dir=sweep") == 0
    assert sorted(record.parent.name for record in Path("sweep").glob("*/train.json")) == ["0", "1"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("seed=0,1 hydra.sweep.subdir=same", "puts jobs that differ in seed into one folder of run_dir=sweep"),
        ("seed=0,1 hydra.sweep.subdir=${sampler.k}", "write hydra.sweep.subdir=${hydra.job.num}-${sampler.k}"),
        ("seed=0,1 sampler.k=2,3 hydra.sweep.subdir=s${seed}", "jobs that differ in sampler.k into one folder"),
        ("seed=0,1 run_dir=runs/s${seed}", "run_dir=runs/s${seed} would be another one for every job"),
    ],
)
def test_seeds_that_would_share_a_folder_are_refused_before_the_first(
    nas: Nas, capsys: pytest.CaptureFixture[str], settings: str, says: str
) -> None:
    given = settings.split() if "run_dir=" in settings else [*settings.split(), "run_dir=sweep"]
    assert nas("train", "-m", *given) == 2
    line = error_line(capsys)
    assert says in line
    assert "run_dir=" in line
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("subdir", ["s${seed}", "${hydra.job.num}", "${hydra:runtime.choices.sampler}-${seed}"])
def test_folders_of_own_names_keep_the_jobs_apart(nas: Nas, subdir: str) -> None:
    sweep = ["seed=1,2", "run_dir=sweep", f"hydra.sweep.subdir={subdir}"]
    assert nas("train", "-m", *sweep, "sampler=random") == 0
    found = [asked(record.parent, "train") for record in sorted(Path("sweep").glob("*/train.json"))]
    assert [record["seed"] for record in found] == [1, 2]


def test_a_sweep_of_a_later_stage_works_on_the_one_run(nas: Nas, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("train", "run_dir=a", "sampler.k=6") == 0
    assert nas("search", "-m", "run_dir=a", "seed=4,5") == 0
    assert (asked("a", "search")["seed"], asked("a", "search")["k"]) == (5, 6)
    assert Path("a/.hydra/overrides.yaml").exists()
    capsys.readouterr()
    assert nas("search", "-m", "run_dir=a,b") == 2
    assert "run_dir cannot be swept" in error_line(capsys)


def test_a_key_misspelt_in_one_of_a_sweeps_experiments_is_refused_before_the_first_job(
    nas: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/good.yaml").write_text("# @package _global_\nseed: 3\n")
    Path("mine/experiment/bad.yaml").write_text("# @package _global_\ntrainr:\n  max_steps: 3\n")
    assert nas("train", "--config-dir", "mine", "-m", "experiment=glob([good,ba*])", "run_dir=sweep") == 2
    assert "trainr.max_steps cannot take effect, no stage reads it: did you mean trainer?" in error_line(capsys)
    assert not Path("sweep").exists()


def test_a_setting_that_only_the_swept_options_have_is_set_in_every_job(
    nas: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine/experiment").mkdir(parents=True)
    for name, method in {"one": "wanda", "two": "magnitude"}.items():
        chosen = f"defaults: [override /sparsity: {method}, override /peft: lora]\n"
        Path(f"mine/experiment/{name}.yaml").write_text(f"# @package _global_\n{chosen}")
    sweep = ["train", "--config-dir", "mine", "-m", "experiment=one,two", "run_dir=sweep"]
    assert nas(*sweep, "sparsity.sparsty=0.8") == 2
    assert "sparsity.sparsty=0.8 is not known: did you mean sparsity.sparsity?" in error_line(capsys)
    assert nas(*sweep, "sparsity.sparsity=null", "sparsity.pattern=2:4") == 0
    for number, name in enumerate(["one", "two"]):
        cfg = OmegaConf.load(f"sweep/{number}-experiment-{name}/.hydra/config.yaml")
        assert (cfg.sparsity.sparsity, cfg.sparsity.pattern) == (None, "2:4")


def test_a_sweep_that_an_experiment_describes_is_checked_before_the_first_job(
    nas: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine/experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 1,-1\n"
    Path("mine/experiment/swept.yaml").write_text(text)
    assert nas("train", "--config-dir", "mine", "-m", "experiment=swept", "run_dir=sweep") == 2
    assert "seed=-1 is not allowed" in error_line(capsys)
    assert not Path("sweep").exists()


def test_what_jobs_of_a_sweep_refuse_is_one_line_and_the_others_run(
    nas: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nas("train", "-m", "name=value,fine", "run_dir=sweep") == 2
    assert error_line(capsys) == "nas-llm: error: name=value is refused by the stage (job 0: name=value)"
    assert asked("sweep/1-name-fine", "train")["seed"] == 0
    assert not list(Path("sweep").glob(".refused"))


def test_a_job_of_a_sweep_is_checked_in_the_time_of_its_configuration(nas: Nas) -> None:
    ratios = []
    for name in ("first", "second"):  # what is imported once, is imported; the machine may be busy
        begin = time.process_time()
        assert nas("train", "-m", "seed=1,-3", "experiment=glob(ablation_samplers/*)", f"run_dir={name}") == 2  # job 6
        several = time.process_time() - begin
        begin = time.process_time()
        checked(["stage=train", "experiment=ablation_samplers/grid-params"])
        ratios.append(several / 7 / (time.process_time() - begin))
    print(ratios)
    assert min(ratios) < 3, ratios


def test_the_command_to_go_on_is_one_that_the_stage_takes(nas: Nas, capsys: pytest.CaptureFixture[str]) -> None:
    assert nas("train", "run_dir=a", "sampler.k=5", "search.evaluations=7") == 0
    stages = json.loads(Path("a/provenance.json").read_text())["stages"]
    assert "sampler.k=5" in stages[0]["argv"]
    assert nas("search", "run_dir=a", "seed=2") == 0
    again = json.loads(Path("a/provenance.json").read_text())["stages"][1]["argv"]
    assert again[:2] == ["nas-llm", "search"]
    assert nas(*again[1:]) == 0


def test_other_ranks_run_what_the_main_one_runs(rehearsed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(CHILD_ARGUMENTS, json.dumps(["train", "seed=8", "run_dir=of-rank-0"]))
    monkeypatch.setattr(sys, "argv", ["nas-llm", "train", "-m", "seed=8,9"])
    Path("of-rank-0").mkdir()
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 0
    assert asked("of-rank-0", "train")["seed"] == 8
    assert {path.name for path in Path("of-rank-0").iterdir()} == {"train.json", "checkpoints"}


def test_the_command_in_a_process_of_its_own_from_any_directory(
    shell: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = shell("train", "seed=abc")
    assert done.returncode == 2
    assert done.stderr == "nas-llm: error: seed=abc is not allowed: it must be a whole number\n"
    done = shell("train", "run_dir=a", "seed=4")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert asked("a", "train")["seed"] == 4


LAUNCHERS = {  # what installs each, and what keeps it small
    "joblib": ("sweep", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("sweep", "hydra.launcher.timeout_min=5"),
    "ray": ("ray", "+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_of_a_sweep_run_in_other_processes_by_a_launcher(
    launcher: str, shell: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    extra, *settings = LAUNCHERS[launcher]
    package = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    pytest.importorskip(package, reason=f"{package} is not installed: pip install nas-llm[{extra}]")
    done = shell("train", "-m", "name=fine,value", f"hydra/launcher={launcher}", *settings, "run_dir=sweep")
    jobs = ("0-name-fine", "1-name-value")
    assert [asked(f"sweep/{job}", "train")["seed"] for job in jobs] == [0, 0], done.stderr
    assert (Path("sweep/0-name-fine/checkpoints/last.ckpt")).exists()
    assert os.getpid() not in [asked(f"sweep/{job}", "train")["parent"] for job in jobs], "in the launching process"
    assert done.returncode == 2
    assert "nas-llm: error: name=value is refused by the stage" in done.stderr
    assert "Traceback" not in done.stderr
