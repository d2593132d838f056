"""The search over a library of operators, behind `nas-llm distill`: scores, costs, programme, training, exports.

Everything that takes long is kept in the run directory as it is measured: scores by operator, latencies by shape,
losses by network; a new budget is solved from them in seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.atomic_files import write_text
from nas_llm.config import build, config_dir
from nas_llm.lightning.supernet_search import validation_batches
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.loss import mean_token_loss
from nas_llm.operator_network import Operator, OperatorNetwork, Teacher
from nas_llm.operators import Place
from nas_llm.operators.budgets import limits
from nas_llm.operators.cost_table import CostTable
from nas_llm.operators.costs import OperatorCosts
from nas_llm.operators.latency_comparison import as_text, compare
from nas_llm.operators.latency_measurement import LatencyMeasurement
from nas_llm.operators.latency_table import LatencyTable
from nas_llm.operators.library import Library
from nas_llm.operators.programme_search import ProgrammeSearch, teacher_first
from nas_llm.operators.score_file import FILE as SCORES_FILE
from nas_llm.operators.score_file import ScoreFile
from nas_llm.operators.selection import Ranked, SuccessiveHalving, restore, weights_file
from nas_llm.reporting import write_report
from nas_llm.reporting.operator_files import (
    COLUMNS,
    COSTS,
    NETWORKS_FILE,
    OPERATORS_CSV,
    PAPER,
    NetworkRow,
    read_networks,
)
from nas_llm.reporting.operator_tables import networks_table
from nas_llm.run_directory import OPERATORS
from nas_llm.stages.export import NETWORKS, export_subnetwork

if TYPE_CHECKING:
    from nas_llm.operators.programme import Solution

SELECTION = "selection"
PROVEN = 1.0  # gaps above say nothing: the bound is less than half of the objective, of another sign, or none


@dataclass(frozen=True)
class Found:
    """A network of a budget, and what is known of it."""

    budget: Mapping[str, float]
    network: OperatorNetwork
    solution: Solution
    ranked: Ranked
    of: str = "body"  # what the budget is a limit of
    pool: str = ""  # of the operators that it was sought among
    winner: bool = False
    path: Path | None = None


def search_operators(
    cfg: DictConfig, run_dir: Path, supernet: Supernet, tokenizer: PreTrainedTokenizerBase, data: Any
) -> None:
    """Solve every budget of the configuration on the run's library, train and rank what is found, export the best.

    Args:
        supernet: the teacher of the library, on the device to work on.

    Raises:
        ValueError: no budget, one that no network meets, a library of another teacher, and what the parts raise.
    """
    search: ProgrammeSearch = build(cfg.search)
    halving: SuccessiveHalving = build(cfg.select)
    budgets = asked_budgets(cfg)
    library = Library(run_dir / OPERATORS)
    library.refuse_other_teacher(supernet)
    operators = candidates(cfg, supernet, library)
    costs = cost_tables(cfg, supernet, operators)
    for budget in budgets:  # what is counted is refused before anything is measured
        limits({name: value for name, value in budget.items() if name != "latency"}, costs, cfg.budget.of)
    costs |= latencies(cfg, run_dir, supernet, operators, asked=any("latency" in budget for budget in budgets))
    bounds = [limits(budget, costs, cfg.budget.of) for budget in budgets]
    batches = validation_batches(data, cfg.trainer.limit_val_batches)
    show = cfg.trainer.enable_progress_bar
    scores = measured_scores(library, supernet, operators, list(data.calibration_dataloader()), data.fingerprint, show)
    write_operators(run_dir, library, operators, scores, costs)
    make = partial(assemble, supernet, make=library.make(supernet))
    distillation = build(cfg.distillation)
    folder, key = selection_folder(cfg, run_dir, data.fingerprint, library.manifest["teacher"]), keys_of(library)

    def untrained_loss(network: OperatorNetwork) -> float:
        return mean_token_loss(make(network), batches)

    layers = supernet.largest().num_layers
    sums = {
        (place, operator): _score(search, library, scores, place, operator)
        for place, listed in operators.items()
        for operator in listed
    }
    found, pool = list[Found](), pool_name(cfg.pool)
    for budget, limit in zip(budgets, bounds, strict=True):
        said = _said(budget)
        pairs, shortfall = search(operators, sums, costs, limit, layers, untrained_loss)
        if shortfall:
            print(f"budget {said}: {shortfall}")
        with tqdm(total=len(pairs), desc=f"{said}: train and rank", unit="network", disable=not show) as bar:
            ranked = halving(
                [network for network, _ in pairs],
                make=make,
                teacher=supernet if distillation.uses_teacher else None,
                loss=distillation,
                batches=partial(training_batches, data, halving),
                evaluate=partial(mean_token_loss, batches=batches),
                folder=folder,
                key=key,
                progress=partial(_advance, bar),
            )
        solutions = dict(pairs)
        of_budget = [Found(budget, each.network, solutions[each.network], each, cfg.budget.of, pool) for each in ranked]
        best = replace(of_budget[0], winner=True, path=run_dir / NETWORKS / of_budget[0].network.id)
        trained = weights_file(folder, key(best.network), best.ranked.rounds) if best.ranked.rounds else None
        export(best, make, tokenizer, run_dir, trained, record_of(best, costs, run_dir, halving.steps))
        found += [best, *of_budget[1:]]
    teacher_loss = mean_token_loss(supernet.model, batches)
    for file in folder.parent.glob("*/*.safetensors"):
        if file.parent != folder:  # of other settings; their losses stay, and what is asked for again is trained again
            file.unlink()
    records = [record_of(each, costs, run_dir, halving.steps) for each in found]
    write_networks(run_dir, records, costs, OperatorNetwork.teacher(layers), teacher_loss)
    if unlisted := unlisted_networks(run_dir):
        print(
            f"{run_dir / NETWORKS} also holds {', '.join(unlisted)}: of earlier searches, whose place in "
            f"{NETWORKS_FILE} others have taken since; delete what is not needed"
        )
    page = write_report(run_dir)
    print(networks_table(run_dir))
    winners = [each.network for each in found if each.winner]
    if "latency" in costs and cfg.latency_table.path is None and not cfg.latency_table.force:
        print(compared(cfg, run_dir, supernet, winners, library))
    print(f"report: {page}")


def asked_budgets(cfg: DictConfig) -> list[dict[str, float]]:
    """The budgets of the configuration, one after the other; a list of values is as many budgets.

    Raises:
        ValueError: none, or lists of different lengths.
    """
    given = {str(key): value for key, value in cfg.budget.items() if key != "of" and value is not None}
    for name in given.keys() - set(COSTS):
        raise ValueError(f"budget.{name}={given[name]} is not known: allowed are {', '.join(COSTS)}")
    if not given:
        names = ", ".join(f"budget.{key}" for key in cfg.budget if key != "of")
        raise ValueError(f"search=ilp: there is no budget; set one of {names}, as budget.latency=0.6")
    lists = {key: list(value) for key, value in given.items() if isinstance(value, ListConfig)}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(
            f"{', '.join(f'budget.{key}={values}' for key, values in lists.items())}: lists of budgets are gone "
            "through together: give as many values to each, at least one"
        )
    return [
        {key: float(lists[key][i] if key in lists else value) for key, value in given.items()}
        for i in range(lengths.pop() if lengths else 1)
    ]


def candidates(cfg: DictConfig, supernet: Supernet, library: Library) -> dict[Place, tuple[Operator, ...]]:
    """The finished operators that are in the pool of the configuration, in every place, the teacher's own first.

    Raises:
        ValueError: the library has none of them.
    """
    finished, wanted = library.operators, build(cfg.pool)(supernet)
    left = {
        place: [operator for operator in pool if operator in finished.get(place, ())] for place, pool in wanted.items()
    }
    if not any(left.values()):
        raise ValueError(
            f"{library.path} has no operator of this pool: distil it first, nas-llm distill "
            f"run_dir={library.path.parent}"
        )
    return teacher_first(left)


def cost_tables(
    cfg: DictConfig, supernet: Supernet, operators: Mapping[Place, Sequence[Operator]]
) -> dict[str, CostTable]:
    """What every operator costs by counting."""
    sizes = {"batch_size": cfg.latency.batch_size, "sequence_length": cfg.latency.sequence_length}
    return dict(OperatorCosts.of(supernet, operators, **sizes).tables)


def latencies(
    cfg: DictConfig, run_dir: Path, supernet: Supernet, operators: Mapping[Place, Sequence[Operator]], *, asked: bool
) -> dict[str, CostTable]:
    """Latencies of the operators: measured where a budget has ``asked`` for them, else those that are known, if any.

    Raises:
        ValueError: a table that was given, or that is asked for, holds for something else.
    """
    measurement: LatencyMeasurement = build(cfg.latency)
    given, force = cfg.latency_table.path, cfg.latency_table.force
    file = Path(given or latency_file(run_dir, measurement))
    table = None
    if given is not None or file.exists():
        conditions = measurement.conditions(supernet)
        if not asked and given is None and not force:
            differing = LatencyTable.load(file, None).conditions.differing(conditions)
            if differing:
                print(f"no latencies are shown: {file} was measured with {differing}")
                return {}
        anew = f"delete {file}" if given is None else "set latency_table.path=null"
        table = LatencyTable.load(file, conditions, force=force, anew=anew)
        table.refuse_other_teacher(supernet)
    if given is None and (table is None or not table.covers(operators)):
        if not asked:
            return {}
        print(f"latencies on {measurement.conditions(supernet).device}:", end=" ", flush=True)
        table = measurement(supernet, operators, np.random.default_rng(cfg.search.seed), print)
        table.save(file)
    assert table is not None
    return {"latency": replace(table.costs(operators), name="latency")}


def compared(
    cfg: DictConfig, run_dir: Path, supernet: Supernet, networks: Sequence[OperatorNetwork], library: Library
) -> str:
    """Latencies of the chosen networks, as the table predicts them and as they are; also in latency_check.txt."""
    measurement: LatencyMeasurement = build(cfg.latency)
    table = LatencyTable.load(latency_file(run_dir, measurement), None)
    distinct = list(dict.fromkeys(networks))
    rng = np.random.default_rng(cfg.search.seed)
    text = as_text(compare(supernet, distinct, table, measurement, rng, library.make(supernet)))
    write_text(run_dir / "latency_check.txt", text + "\n")
    return text


def latency_file(run_dir: Path, measurement: LatencyMeasurement) -> Path:
    """Where the latencies of operators are kept that were measured so."""
    sizes = f"{measurement.batch_size}x{measurement.sequence_length}"
    return run_dir / OPERATORS / f"latency-{measurement.phase}-{sizes}.json"


def measured_scores(
    library: Library,
    supernet: Supernet,
    operators: Mapping[Place, Sequence[Operator]],
    batches: Sequence[Mapping[str, Tensor]],
    measured_on: str,
    show: bool,
) -> dict[tuple[Place, Operator], Any]:
    """Global scores of all operators; those that are not known yet are measured."""
    scores = ScoreFile(library.path / SCORES_FILE, measured_on, library.made)
    with tqdm(desc="score operators", unit="operator", disable=not show) as bar:
        return scores.complete(supernet, operators, partial(library.load, supernet), batches, partial(_advance, bar))


def selection_folder(
    cfg: DictConfig,
    run_dir: Path,
    measured_on: str,
    teacher: str,
) -> Path:
    """Where losses and weights of short training are kept: one folder for everything that they follow from beside the
    network, so that other steps, losses or data never meet what was measured before."""
    follows = {
        "select": OmegaConf.to_container(cfg.select, resolve=True),
        "distillation": OmegaConf.to_container(cfg.distillation, resolve=True),
        "data": [measured_on, cfg.data.batch_size, cfg.data.seed, cfg.trainer.limit_val_batches],
        "teacher": teacher,
    }
    key = hashlib.sha256(json.dumps(follows, sort_keys=True).encode()).hexdigest()[:12]
    return run_dir / SELECTION / key


def keys_of(library: Library) -> Callable[[OperatorNetwork], str]:
    """What tells networks apart by their operators and by the weights of these."""
    made = cache(library.made)

    def key(network: OperatorNetwork) -> str:
        chosen = [(place, operator) for place, operator in network.operators.items() if operator != Teacher()]
        follows = [[*place, operator.name, made(place, operator)] for place, operator in chosen]
        return hashlib.sha256(json.dumps([network.id, follows]).encode()).hexdigest()[:12]

    return key


def training_batches(data: Any, halving: SuccessiveHalving, number: int) -> Iterator[Mapping[str, Tensor]]:
    """Those of a round: as many as it has steps, behind those of the rounds before it."""
    loader = data.train_dataloader()
    loader.load_state_dict(loader.state_dict() | {"step": number * halving.steps})
    yield from islice(_endless(loader), halving.steps)


def _endless(loader: Any) -> Iterator[Mapping[str, Tensor]]:
    while True:
        yield from loader


def export(
    best: Found,
    make: Callable[[OperatorNetwork], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    run_dir: Path,
    trained: Path | None,
    record: Mapping[str, Any],
) -> None:
    """The network with the weights that its last round left in ``trained``; its card says what ``record`` does."""
    model = make(best.network)
    if trained is not None:
        restore(model, trained)
    small = Supernet(model)
    row = NetworkRow.of_record(record)
    export_subnetwork(
        small, small.largest(), tokenizer, run_dir=run_dir, path=best.path, setting="run_dir", found=[row]
    )


def write_operators(
    run_dir: Path,
    library: Library,
    operators: Mapping[Place, Sequence[Operator]],
    scores: Mapping[tuple[Place, Operator], Any],
    costs: Mapping[str, CostTable],
) -> None:
    """operators.csv."""
    lines = [",".join(COLUMNS)]
    for place, pool in operators.items():
        for operator in pool:
            values = {"local": library.record(place, operator)["local"], **scores[place, operator].to_dict()}
            values |= {name: table.values[place][operator] for name, table in costs.items()}
            cells = [str(values.get(column, "")) for column in COLUMNS[3:]]
            lines.append(",".join([str(place[0]), place[1], operator.name, *cells]))
    write_text(run_dir / OPERATORS_CSV, "\n".join(lines) + "\n")


def record_of(found: Found, costs: Mapping[str, CostTable], run_dir: Path, steps: int) -> dict[str, Any]:
    """Its line of networks.jsonl."""
    solution, network = found.solution, found.network
    gap = solution.gap if solution.gap <= PROVEN else None
    return (
        {"id": network.id, **network.to_dict(), "budget": dict(found.budget), "of": found.of, "pool": found.pool}
        | {"objective": solution.objective, "gap": gap, "status": solution.status}
        | {"costs": {name: table.body(network) / table.teacher_body for name, table in costs.items()}}
        | {"losses": list(found.ranked.losses), "steps": steps, "winner": found.winner}
        | {"path": None if found.path is None else str(found.path.relative_to(run_dir))}
    )


def write_networks(
    run_dir: Path,
    found: Sequence[Mapping[str, Any]],
    costs: Mapping[str, CostTable],
    teacher: OperatorNetwork,
    teacher_loss: float,
) -> None:
    """networks.jsonl: the budgets of this search in the place of the same ones before it, among the same pool; all
    others stay."""
    file = run_dir / NETWORKS_FILE
    before = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    asked = [_asked(record) for record in found]
    records = [record for record in before if record["budget"] and _asked(record) not in asked] + list(found)
    records.append(
        {"id": teacher.id, **teacher.to_dict(), "budget": {}, "of": "body", "status": "teacher"}
        | {"pool": "", "objective": None, "gap": None}
        | {"costs": dict.fromkeys(costs, 1.0), "losses": [teacher_loss], "winner": False, "path": None}
    )
    write_text(file, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def unlisted_networks(run_dir: Path) -> list[str]:
    """Exported networks that networks.jsonl does not name."""
    listed = {row.path for row in read_networks(run_dir)}
    return sorted(
        folder.name
        for folder in (run_dir / NETWORKS).glob("*")
        if (folder / "config.json").is_file() and str(folder.relative_to(run_dir)) not in listed
    )


def pool_name(pool: DictConfig) -> str:
    """Its option of the group ``pool``; "own-<hash>" where it is none of them as it stands."""
    for file in sorted((config_dir() / "pool").glob("*.yaml")):
        option = OmegaConf.load(file)
        assert isinstance(option, DictConfig)
        if {"layout": None, **option} == {"layout": None, **pool}:
            return file.stem
    settings = json.dumps(OmegaConf.to_container(pool, resolve=True), sort_keys=True)
    return f"own-{hashlib.sha256(settings.encode()).hexdigest()[:6]}"


def _score(
    search: ProgrammeSearch,
    library: Library,
    scores: Mapping[tuple[Place, Operator], Any],
    place: Place,
    operator: Operator,
) -> float:
    if search.score == "local":
        return float(library.record(place, operator)["local"])
    return float(getattr(scores[place, operator], search.score))


def _asked(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["budget"], record["of"], record.get("pool", PAPER)


def _said(budget: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {limit:g}" for name, limit in budget.items())


def _advance(bar: Any, done: int, of: int) -> None:
    bar.total = of
    bar.update(done - bar.n)
