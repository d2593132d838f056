"""What distilling a pool takes, as a table, before anything is loaded: operators, memory, tokens and FLOPs.

1 multiply-accumulate is 2 FLOPs; a candidate's forward and backward pass are three times its forward pass; the teacher
runs once per batch and group, up to the group's last layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from nas_llm.operator_network import Operator, Sublayer
from nas_llm.operators.distilling import Distilling
from nas_llm.operators.groups import Group
from nas_llm.operators.latency_measurement import LatencyMeasurement
from nas_llm.operators.latency_table import key_of, teacher_keys
from nas_llm.operators.needs import Need, Needs
from nas_llm.operators.selection import SuccessiveHalving


def plan_of(groups: Sequence[Group], needs: Needs, settings: Distilling) -> str:
    """A row for every operator of a sublayer, summed over layers, and the totals."""
    members = [member for group in groups for member in group.members]
    rows: dict[tuple[Sublayer, Operator], list[Need]] = {}
    for (_, sublayer), operator, need in members:
        rows.setdefault((sublayer, operator), []).append(need)
    width = max(len(operator.name) for _, operator in rows)
    lines = [f"{'sublayer':<9}  {'operator':<{width}}  layers  parameters of one  GFLOPs per token and step"]
    for (sublayer, operator), found in rows.items():
        params, flops = (sum(values) for values in zip(*((n.params, n.step_flops) for n in found), strict=True))
        work = f"{flops / 1e9:25.3f}" if flops else f"{'not trained':>25}"
        lines.append(f"{sublayer:<9}  {operator.name:<{width}}  {len(found):>6}  {params // len(found):>17,}  {work}")
    return "\n".join([*lines, "", *_totals(groups, needs, settings)])


def _totals(groups: Sequence[Group], needs: Needs, settings: Distilling) -> list[str]:
    members = [need for group in groups for _, _, need in group.members]
    itemsize = needs.supernet.model.dtype.itemsize
    params, trained = sum(need.params for need in members), sum(need.is_trained for need in members)
    step_tokens = needs.tokens * settings.accumulate_grad_batches
    tokens = step_tokens * settings.steps
    teacher = sum(2 * group.teacher_macs for group in groups if group.step_flops)
    flops = sum(group.step_flops for group in groups)
    largest = max(group.bytes for group in groups)
    limit = "no limit: set distill.memory_gib=" if settings.memory_gib is None else f"limit {settings.memory_gib:g} GiB"
    dtype = str(needs.supernet.model.dtype).removeprefix("torch.")
    batch = f"{needs.batch_size} x {needs.sequence_length}"
    parts = f" x {settings.accumulate_grad_batches} batches" if settings.accumulate_grad_batches > 1 else ""
    return [
        f"operators: {len(members)}, {trained} of them trained; {params / 1e9:.3f} billion parameters, at most "
        f"{params * itemsize / 2**30:.2f} GiB in {dtype} (quantised ones take less)",
        f"memory: {len(groups)} group{'s' if len(groups) > 1 else ''}, the largest about {largest / 2**30:.2f} GiB in "
        f"a process ({limit}), {needs.teacher_bytes / 2**30:.2f} GiB of it the teacher",
        f"tokens: {settings.steps} steps of {batch}{parts}: {tokens / 1e6:.3f} million, which each group goes through",
        f"work: {flops * tokens:.2e} FLOPs, {flops:.2e} per token; the teacher's passes are "
        f"{100 * teacher / max(flops, 1):.1f} % of them",
    ]


def search_plan_of(
    groups: Sequence[Group],
    needs: Needs,
    halving: SuccessiveHalving,
    *,
    networks: int,
    budgets: int,
    calibration_records: int,
    latency: LatencyMeasurement | None,
) -> str:
    """What a search over the operators takes beside the solver's seconds, a line each: scores, latencies, training.

    Args:
        networks: that the programme gives for every budget.
        calibration_records: of the batches' length, that operators are scored on.
        latency: how latencies are measured; None: they are not.
    """
    supernet, members = needs.supernet, [member for group in groups for member in group.members]
    head = needs.supernet.largest().hidden * supernet.config.vocab_size
    layers = needs.layer_macs
    records, length = calibration_records, needs.sequence_length
    behind = sum(sum(layers[place[0] :]) + head for place, _, _ in members)
    lines = [
        f"scores: {len(members)} operators, each with the blocks behind it, on {records} x {length} calibration "
        f"tokens: {2 * behind * records * length:.2e} FLOPs"
    ]
    if latency is not None:
        keys = teacher_keys(supernet)
        teacher = {key for layer in keys for key in layer.values()}
        shapes = teacher | {key_of(keys[place[0]][place[1]], place[1], operator) for place, operator, _ in members}
        lines.append(
            f"latencies: {len(shapes)} shapes in stacks of at most {latency.depth} blocks, {latency.warmup} + "
            f"{latency.rounds} passes of {latency.batch_size} x {latency.sequence_length} tokens each ({latency.phase})"
        )
    plan, teacher_macs = halving.plan(networks), sum(layers) + head
    tokens = sum(plan) * halving.steps * needs.tokens
    trained = " + ".join(map(str, plan)) or "no"
    each = f" for each of {budgets} budgets" if budgets > 1 else ""
    lines.append(
        f"selection: {trained} networks x {halving.steps} steps of {needs.batch_size} x {length}{each}: at most "
        f"{8 * teacher_macs * tokens * budgets:.2e} FLOPs (networks as large as the teacher, whose pass is in it)"
    )
    return "\n".join(lines)
