"""The search over a library of operators, behind `nas-llm distill`: scores, costs, programme, training, exports.

Everything that takes long is kept in the run directory as it is measured: scores by operator, latencies by shape,
losses by network; a new budget is solved from them in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nas_llm.config import build
from nas_llm.lightning.supernet_search import validation_batches
from nas_llm.models.operator_assembly import assemble
from nas_llm.models.supernet import Supernet
from nas_llm.objectives.loss import mean_token_loss
from nas_llm.operator_network import Operator, OperatorNetwork
from nas_llm.operators import Place
from nas_llm.operators.budgets import is_absolute, limits
from nas_llm.operators.cost_table import CostTable
from nas_llm.operators.costs import OperatorCosts
from nas_llm.operators.library import Library
from nas_llm.operators.programme_search import ProgrammeSearch, teacher_first
from nas_llm.operators.score_file import FILE as SCORES_FILE
from nas_llm.operators.score_file import ScoreFile
from nas_llm.operators.selection import SuccessiveHalving, restore, weights_file
from nas_llm.reporting import write_report
from nas_llm.reporting.operator_files import NETWORKS_FILE, NetworkRow
from nas_llm.reporting.operator_tables import networks_table
from nas_llm.run_directory import OPERATORS
from nas_llm.stages.export import NETWORKS, export_subnetwork
from nas_llm.stages.operator_budgets import asked_budgets, said
from nas_llm.stages.operator_latencies import compared, latencies
from nas_llm.stages.operator_results import (
    Found,
    pool_name,
    record_of,
    unlisted_networks,
    write_networks,
    write_operators,
)
from nas_llm.stages.operator_training import keys_of, selection_folder, training_batches


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
    of_latency = [budget["latency"] for budget in budgets if "latency" in budget]
    measured = latencies(cfg, run_dir, supernet, operators, costs["macs"], of_latency)
    if measured is not None:
        costs["latency"] = measured.costs(operators)
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
        asked = said(budget)
        pairs, shortfall = search(operators, sums, costs, limit, layers, untrained_loss)
        if shortfall:
            print(f"budget {asked}: {shortfall}")
        with tqdm(total=len(pairs), desc=f"{asked}: train and rank", unit="network", disable=not show) as bar:
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
        in_ms = is_absolute(budget.get("latency", 0))
        drift = measured.drift if measured is not None and in_ms else None
        of_budget = [
            Found(budget, each.network, solutions[each.network], each, cfg.budget.of, pool, latency_drift=drift)
            for each in ranked
        ]
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
    if measured is not None and cfg.latency_table.path is None and not cfg.latency_table.force:
        print(compared(cfg, run_dir, supernet, winners, measured.table, library))
    print(f"report: {page}")


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


def _advance(bar: Any, done: int, of: int) -> None:
    bar.total = of
    bar.update(done - bar.n)
