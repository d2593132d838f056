"""Searches a finished run's super-network for its Pareto front, or continues a search from the run's archive."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from nas_llm.atomic_files import read_json
from nas_llm.config import build
from nas_llm.lightning.checkpoint import LAST, read_checkpoint
from nas_llm.lightning.identity import refuse_other_network
from nas_llm.lightning.preparation import prepared_again
from nas_llm.lightning.quiet import quiet
from nas_llm.lightning.supernet_search import SPLIT, SupernetSearch, validation_batches
from nas_llm.models.loading import from_pretrained
from nas_llm.models.model_directory import ADAPTER, resolve
from nas_llm.models.supernet import Supernet
from nas_llm.models.tokenizer import load_tokenizer
from nas_llm.objectives import Objective, directions
from nas_llm.peft.given import OPTIONS, GivenAdapter
from nas_llm.peft.lora import Lora
from nas_llm.peft.saving import load_supernet as load_adapted
from nas_llm.peft.saving import recorded_method
from nas_llm.reporting import front_table, write_report
from nas_llm.run_directory import OPERATORS, refuse_baseline
from nas_llm.search import Archive, Initial, Search
from nas_llm.search.directory import ARCHIVE_FILE, SEARCH_FILE
from nas_llm.search_space import SearchSpace
from nas_llm.stages.data import recorded_data

READS = (
    "model",
    "peft",
    "data",
    "search_space",
    "objectives",
    "search",
    "trainer.accelerator",
    "trainer.limit_val_batches",
    "trainer.enable_progress_bar",
    "pool",
    "distillation",
    "budget",
    "select",
    "latency",
    "latency_table",
)
OVERRIDES = {
    "run_dir=DIR": "of the run whose super-network, or distilled operators, are searched",
    "search=nsga2": "how; or another option of the group",
    "search.evaluations=N": "architectures the search may measure; more than before go on with the run's search",
    "objectives=[params,loss]": "what it trades off; any of the group's options",
    "trainer.limit_val_batches=N": "batches of the validation split that each one is measured on; null: all",
    "search=ilp budget.latency=X": "of distilled operators: at most this part of the full latency, or so many ms",
    "search=ilp budget.params=X": "likewise; also budget.memory, budget.kv_cache and budget.macs",
    "search=ilp search.number=N": "networks for every budget, of which the best is kept",
    "search=ilp select.steps=N": "optimizer steps by which those are compared; 0: by their loss as they are",
}
PROGRAMME = "nas_llm.operators.programme_search.ProgrammeSearch"
SETTINGS = ("dtype", "attn_implementation", "trust_remote_code")  # of the model, besides where it lies


def main(cfg: DictConfig) -> None:
    """Run the search of `cfg` on the super-network in `run_dir`, write the front and print it."""
    with quiet():
        _main(cfg, Path(cfg.run_dir))


def _main(cfg: DictConfig, run_dir: Path) -> None:
    if searches_operators(cfg):
        _search_operators(cfg, run_dir)
        return
    supernet = load_supernet(run_dir, cfg)
    refuse_other_adapters(cfg, run_dir)
    space = recorded_space(run_dir, cfg, supernet)
    tokenizer = load_tokenizer(run_dir / "supernet")
    data = recorded_data(cfg, tokenizer, supernet, run_dir)
    batches = validation_batches(data, cfg.trainer.limit_val_batches)
    runtime = {"supernet": supernet, "space": space, "batches": batches, "tokenizer": tokenizer}
    runtime |= {"data": data, "split": SPLIT}
    objectives = [build(node, **runtime) for node in cfg.objectives.values()]
    maker = search_maker(cfg, supernet, space, objectives, run_dir)
    if maker is None:
        raise ValueError("search=none leaves the search stage nothing to do: choose one, as search=nsga2")
    # the truncation baseline's, known after the search
    refuse_other_network(run_dir, cfg.model.path, untrained(cfg, merges=not cfg.peft))
    settings, progress = objective_settings(cfg), cfg.trainer.enable_progress_bar
    run = SupernetSearch(run_dir, maker, objectives, batches, lambda: as_prepared(cfg, run_dir), settings, progress)
    run(supernet, trained_steps(run_dir))
    print(front_table(run_dir))
    print(f"report: {write_report(run_dir)}")


def searches_operators(cfg: DictConfig) -> bool:
    """Whether the search is one over the operators of `nas-llm distill`."""
    return str(cfg.search.get("_target_")) == PROGRAMME


def _search_operators(cfg: DictConfig, run_dir: Path) -> None:
    from nas_llm.stages.operator_search import search_operators

    if not (run_dir / OPERATORS).is_dir():
        raise ValueError(
            f"search=ilp: run_dir={run_dir} holds no operators; make them first: nas-llm distill run_dir=, or choose "
            "search=nsga2 for a trained super-network"
        )
    supernet = load_supernet(run_dir, cfg)
    tokenizer = load_tokenizer(run_dir / "supernet")
    search_operators(cfg, run_dir, supernet, tokenizer, recorded_data(cfg, tokenizer, supernet, run_dir))


def search_maker(
    cfg: DictConfig, supernet: Supernet, space: SearchSpace, objectives: Sequence[Objective], run_dir: Path
) -> Callable[[], Search] | None:
    """Makes the search of the configuration, with the architectures that it starts from; None for `search=none`.

    Raises:
        ValueError: a setting of the search is impossible.
    """
    runtime = {"space": space, "directions": directions(objectives), "num_parameters": supernet.num_parameters}
    runtime |= recorded_population(cfg, run_dir)
    if build(cfg.search, **runtime, initial=()) is None:
        return None

    def make() -> Search:
        starts: Initial | None = build(cfg.search.get("initial"))
        return build(cfg.search, **runtime, initial=() if starts is None else starts(supernet, space))

    return make


def recorded_population(cfg: DictConfig, run_dir: Path) -> dict[str, int]:
    """The population of the run's last NSGA-II, where the configuration names none: its default depends on the budget,
    and with another population a larger budget would not go on with what was measured."""
    if cfg.search.get("population", 0) is not None or not (run_dir / SEARCH_FILE).exists():
        return {}
    before = read_json(run_dir / SEARCH_FILE)
    return {"population": before["population"]} if "population" in before else {}


def load_supernet(run_dir: Path, cfg: DictConfig) -> Supernet:
    """The sorted, trained super-network of a run, where its trainer would put it.

    Raises:
        ValueError: the run has none yet.
    """
    folder = run_dir / "supernet"
    if not folder.is_dir():
        refuse_baseline(run_dir)
        raise ValueError(
            f"run_dir={run_dir} holds no super-network yet: let nas-llm train run_dir={run_dir} finish first"
        )
    supernet = load_adapted(folder, attn_implementation=cfg.model.attn_implementation)
    return supernet.to(device(cfg)).eval()


def device(cfg: DictConfig) -> str:
    """Where the trainer of the configuration would put a network.

    Raises:
        ValueError: it asks for a GPU, and there is none.
    """
    asked, found = cfg.trainer.accelerator, torch.cuda.is_available()
    if asked in ("gpu", "cuda") and not found:
        raise ValueError(f"trainer.accelerator={asked}: there is no CUDA device here; set trainer.accelerator=auto")
    return "cuda" if found and asked in ("auto", "gpu", "cuda") else "cpu"


def refuse_other_adapters(cfg: DictConfig, run_dir: Path) -> None:
    """Refuses a search with adapters that the super-network does not have; the seed that they began with says nothing.

    Raises:
        ValueError: the first setting that differs.
    """
    folder = run_dir / "supernet" / ADAPTER
    made = _settings(recorded_method(folder) if folder.is_dir() else None)
    asked = _settings(build(cfg.peft))
    for key in {**asked, **made}:
        if asked.get(key) != made.get(key):
            raise ValueError(
                f"{key}={asked.get(key)} cannot take effect: {run_dir} was trained with {key}={made.get(key)}; leave "
                "it out, or train with it in another run_dir="
            )


def _settings(lora: Lora | None) -> dict[str, Any]:
    if lora is None:
        return {"peft": "none"}
    named = {f"peft.{field.name}": getattr(lora, field.name) for field in fields(lora) if field.name != "seed"}
    return {"peft": OPTIONS[type(lora)], **named}


def recorded_space(run_dir: Path, cfg: DictConfig, supernet: Supernet) -> SearchSpace:
    """The space that the run was trained on.

    Raises:
        ValueError: the configuration asks for another one.
    """
    space = SearchSpace.from_dict(read_json(run_dir / "search_space.json"))
    asked = build(cfg.search_space, supernet=supernet).to_dict()
    differing = [key for key, value in space.to_dict().items() if asked[key] != value]
    if differing:
        key = differing[0]
        raise ValueError(
            f"search_space.{key}={asked[key]} differs from {space.to_dict()[key]} that {run_dir} was trained with: "
            "search the same space, or train with another one in another run_dir="
        )
    return space


def untrained(cfg: DictConfig, *, merges: bool = True) -> Supernet:
    """The network of `model.path`, neither sorted nor trained; the adapters of `model.adapter_path` are merged into it,
    unless they are to stand beside it.

    Raises:
        ValueError: no such network, adapters that are not its own, or some that lie beside it and are passed over.
    """
    settings = loading(cfg)
    given = given_adapter(cfg)
    model = from_pretrained(cfg.model.path, **{**settings, "dtype": settings["dtype"] or torch.float32})
    if given is not None:
        given.refuse_other_weights(model)
        if merges:
            given.merge_into(model)
    return Supernet(model)


def loading(cfg: DictConfig) -> dict[str, Any]:
    """How `cfg` says networks are loaded: their precision, and the like."""
    return {str(key): value for key, value in cfg.model.items() if key in SETTINGS}


def given_adapter(cfg: DictConfig) -> GivenAdapter | None:
    """The adapters of `model.adapter_path`.

    Raises:
        ValueError: they cannot be read, or none are named and there are some beside the network.
    """
    if cfg.model.adapter_path is not None:
        return GivenAdapter.read(cfg.model.adapter_path)
    beside = Path(resolve(cfg.model.path)) / ADAPTER
    if beside.is_dir():
        raise ValueError(
            f"model.path={cfg.model.path} has low-rank adapters beside its weights, which would be left out: add "
            f"model.adapter_path={beside}, or name a copy of the directory without {ADAPTER}/"
        )
    return None


def add_adapters(cfg: DictConfig, supernet: Supernet) -> Lora | None:
    """Adds the adapters of the configuration, as they are before they are trained, and says what made them."""
    peft: Lora | None = build(cfg.peft)
    if peft is not None:
        peft(supernet)
        start_adapters(cfg, supernet, peft)
    return peft


def start_adapters(cfg: DictConfig, supernet: Supernet, peft: Lora) -> None:
    """Gives the adapters that `peft` has added the values of `model.adapter_path`, where one is named."""
    given = given_adapter(cfg)
    if given is not None:
        given.start(supernet, peft)


def as_prepared(cfg: DictConfig, run_dir: Path) -> Supernet:
    """The network that the run's training began with, in its own order: sparse, quantised, with its adapters."""
    supernet = untrained(cfg, merges=not cfg.peft)
    prepared_again(supernet, run_dir)
    add_adapters(cfg, supernet)
    return supernet


def objective_settings(cfg: DictConfig) -> dict[str, object]:
    """The configuration of each objective, plain."""
    return {str(name): OmegaConf.to_container(node, resolve=True) for name, node in cfg.objectives.items()}


def trained_steps(run_dir: Path) -> int:
    """Optimizer steps of the run's newest checkpoint; without one, what the archive's latest values were measured
    at.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    checkpoint = run_dir / "checkpoints" / LAST
    if not checkpoint.exists():
        return Archive(run_dir / ARCHIVE_FILE).step
    try:
        return int(read_checkpoint(checkpoint)["global_step"])
    except ValueError as error:
        raise ValueError(
            f"{checkpoint} is damaged, and says how long the super-network was trained: put a whole one in its place, "
            "or delete it to go on from the archive"
        ) from error
