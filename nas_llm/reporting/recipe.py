"""How the networks of a run were made, in sentences, as far as its configuration tells."""

from collections.abc import Sequence

from nas_llm.atomic_files import read_json
from nas_llm.reporting import numbers
from nas_llm.reporting.operator_files import NETWORKS_FILE, NetworkRow
from nas_llm.reporting.run_files import RunFiles
from nas_llm.run_directory import BASELINE_FILE, OPERATORS

STANDARD = "standard sampler"  # trains the largest network alone
TEACHERS = {  # training.teacher
    "in_place": "the in-place teacher (the largest network as it trains)",
    "frozen": "a frozen teacher (the network as it was before training)",
}
ADAPTERS = {"lora": "LoRA", "sparse lora": "SparsePEFT", "qa sparse lora": "QA-SparsePEFT"}  # classes of the group peft
METHODS = {"wanda": "Wanda", "sparse GPT": "SparseGPT", "round to nearest": "round-to-nearest"}
DISTANCES = {"mse": "MSE", "cosine": "cosine"}  # hidden_matching.distance


def recipe(run: RunFiles, found: Sequence[NetworkRow] = ()) -> list[str]:
    """How the networks of a run were made, one sentence per step, as far as its configuration tells; ``found``: one of
    them, of operators, by its budgets."""
    if (run.path / BASELINE_FILE).is_file():
        return recipe_of_baseline(run, read_json(run.path / BASELINE_FILE, "summary")["summary"])
    steps = []
    if base := run.setting("model.path"):
        given = run.setting("model.adapter_path")
        merged = f", into which the adapters of {given} were merged" if given and not run.strategy("peft") else ""
        steps.append(f"The pre-trained model is {base}{merged}.")
    if importance := run.strategy("importance"):
        steps.append(
            f"Its units were sorted by {_named(importance, 'importance')}, so that sub-networks keep the best."
        )
    steps += _prepared(run)
    max_steps = run.setting("trainer.max_steps")
    max_steps = -1 if max_steps is None else max_steps
    if (run.path / OPERATORS).is_dir():
        steps += _of_operators(run, found)
    elif max_steps == 0:
        steps.append("It was not trained.")
    elif sampler := run.strategy("sampler"):
        length = f" for {numbers.counted(max_steps, 'step')}" if max_steps > 0 else ""
        data = f" on {run.setting('data.path')}" if run.setting("data.path") else ""
        losses = _taught(run)
        teacher = _teacher(run) if losses else None
        by, whose = _listed([_named(sampler, "sampler"), *losses]), f" from {teacher}" if teacher else ""
        trained = "The adapters alone were" if run.strategy("peft") else "It was"
        if sampler == STANDARD:
            by = _listed(losses) if losses else "labels' cross-entropy"
            steps.append(f"{trained} trained as a whole, and no sub-network of it, with the {by}{whose}{length}{data}.")
        else:
            steps.append(f"{trained} trained as a super-network with the {by}{whose}{length}{data}.")
        if run.setting("training.zeros") == "keep":
            steps.append("Weights that were zero stayed so.")
    if run.search is not None:
        compared, facts = _listed([numbers.label(name) for name in run.search.objectives]), run.search.facts
        networks = numbers.counted(facts["evaluations"], "sub-network")
        steps.append(f"{numbers.searcher(facts['searcher'])} compared {networks} by {compared}.")
    return steps


def recipe_of_baseline(run: RunFiles, summary: str) -> list[str]:
    """Of the network that a baseline has made; ``summary``: what it did, in one sentence."""
    return [f"The pre-trained model is {run.setting('model.path')}.", summary, "It was not trained after that."]


def _of_operators(run: RunFiles, found: Sequence[NetworkRow]) -> list[str]:
    """How networks of operators come about: candidates, programme, training."""
    loss, learnt, rounds = (run.setting(key) for key in ("local_loss._target_", "distill.steps", "select.steps"))
    how = f", for {numbers.counted(learnt, 'step')} with {loss.rpartition('.')[2]}" if learnt and loss else ""
    steps = [f"Candidates for every sublayer learnt what the teacher's sublayer writes{how}."]
    if found:
        budgets, rounds_of = " and for ".join(row.asked for row in found), found[-1].rounds
        steps.append(
            "An integer programme chose one candidate for every sublayer within a budget; this network is the best for "
            f"{budgets} (a part of what the teacher's {'whole' if found[-1].of == 'whole' else 'blocks'} cost, or an "
            "absolute limit)."
        )
        trained = numbers.counted(rounds_of, "round") + f" of {numbers.counted(found[-1].steps or 0, 'step')}"
        steps.append(
            f"It was trained as a whole for {trained} with the {_listed(_taught(run))}, beside others that were left "
            "behind on the way."
            if rounds_of and _taught(run)
            else f"It was trained as a whole for {trained}."
            if rounds_of
            else "It was not trained as a whole."
        )
    elif (run.path / NETWORKS_FILE).is_file():
        training = (
            f", after rounds of {numbers.counted(rounds, 'step')} with the {_listed(_taught(run))}," if rounds else ""
        )
        steps.append(
            "An integer programme chose one candidate for every sublayer within the budgets; the best of its networks"
            f"{training} was exported."
        )
    return steps


def _teacher(run: RunFiles) -> str | None:
    external = run.setting("training.teacher_path")
    return f"the teacher {external}" if external else TEACHERS.get(run.setting("training.teacher"))


def _prepared(run: RunFiles) -> list[str]:
    """What became of the weights before training, and what stands beside them."""
    steps = []
    if sparsity := run.strategy("sparsity"):
        pattern, share = run.setting("sparsity.pattern"), run.setting("sparsity.sparsity")
        amount = f"{pattern} of the weights stay" if pattern else f"{numbers.percent(share)} of the weights are zero"
        steps.append(f"Its linear layers were made sparse by {METHODS.get(sparsity, sparsity)}: {amount}.")
    if quantization := run.strategy("quantization"):
        bits = run.setting("quantization.bits")
        steps.append(f"Its linear layers were quantised to {bits} bits by {METHODS.get(quantization, quantization)}.")
    if peft := run.strategy("peft"):
        rank, alpha = run.setting("peft.r"), run.setting("peft.lora_alpha")
        kind = ADAPTERS.get(peft, peft) + (", DoRA" if run.setting("peft.use_dora") else "")
        given = run.setting("model.adapter_path")
        begun = f" Training began with those of {given}." if given else ""
        steps.append(
            f"Low-rank adapters ({kind}) of rank {rank} and alpha {alpha:g} were put beside its weights, which stay as "
            f"they are.{begun}"
        )
    return steps


def _taught(run: RunFiles) -> list[str]:
    """What the sub-networks learnt from a teacher, by its losses; nothing where they learnt from the labels alone."""
    distillation, distance = run.strategy("distillation"), run.setting("hidden_matching.distance")
    losses = [] if distillation in (None, "labels") else [_named(distillation, "distillation")]
    return losses if distance is None else [*losses, f"{DISTANCES.get(distance, distance)} hidden matching"]


def _listed(words: Sequence[str]) -> str:
    """a, b and c."""
    *first, last = words
    return " and ".join(filter(None, [", ".join(first), last]))


def _named(strategy: str | None, kind: str) -> str:
    """activation importance, sandwich sampler, forward KL distillation."""
    return strategy if strategy is not None and kind in strategy else f"{strategy} {kind}"
