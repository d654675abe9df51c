"""A plan in words: why the winner wins, and why the others lose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dvrt.planner.equation_report import EquationReport, report_equations
from dvrt.planner.judge import Candidate
from dvrt.planner.memory import MemoryNeed, missing_bytes
from dvrt.planner.plan import Plan, PlanInput
from dvrt.planner.split import CHUNKED, COLOCATED, DATA_PARALLEL, DISAGGREGATED, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapVerdict:
    """Appendix G for a pipeline that doubles its batch by swapping.

    ``pays`` is ``2 N t >= sum_i max(t, transf_i)``, both sides in seconds for one microbatch;
    ``hidden_context`` is i*, the longest context whose swap-in a step hides.
    """

    batch: int
    doubled_s: float
    swapped_s: float
    hidden_context: float

    @property
    def pays(self) -> bool:
        return self.doubled_s >= self.swapped_s

    def describe(self) -> str:
        verdict = "pays" if self.pays else "does not pay"
        return (
            f"Swapping {verdict} for batch {self.batch} in place of {self.batch // 2}: "
            f"2Nt = {self.doubled_s:.3g} s against sum max(t, transf_i) = {self.swapped_s:.3g} s; "
            f"a step hides the swap-in of contexts up to i* = {self.hidden_context:.0f} tokens."
        )


def explain(plan: Plan) -> list[str]:
    """Sentences, the most important first."""
    lines = [_winner_line(plan)]
    lines += [line for family in plan.given.families if (line := _family_line(plan, family))]
    lines += _equation_lines(plan)
    verdict = swap_verdict(plan)
    lines.append(verdict.describe() if verdict else "Swapping saves nothing below three stages.")
    lines += _option_lines(plan)
    if plan.given.profile.machine.gpus > 1:
        lines.append(
            f"dvrt has no tensor parallelism: {plan.given.profile.machine.gpus} GPUs a machine are "
            "an extrapolation, and the launch line starts stages of one device each."
        )
    if plan.given.profile.origin != "measured":
        lines.append(f"The profile is {plan.given.profile.origin}: {plan.given.profile.note}")
    return lines


def _winner_line(plan: Plan) -> str:
    best = plan.best
    line = (
        f"{best.split.describe()} delivers {best.cost.requests_per_s:.4g} requests/s "
        f"({best.cost.tokens_per_s:.4g} tokens/s): the best of {plan.n_costed} splits that fit"
    )
    line += f", {plan.n_too_large} do not." if plan.n_too_large else "."
    if not plan.keeps_slo:
        line += f" No split keeps the limits; this one misses: {'; '.join(best.violations)}."
    if best.split.family == DISAGGREGATED:
        return f"{line} {_side_line(best)}"
    if best.split.family == CHUNKED:
        share = best.cost.bubble_share
        return (
            f"{line} Chunks spread a prompt over steps that run anyway; bubbles take {share:.0%}."
        )
    return line


def _side_line(candidate: Candidate) -> str:
    cost = candidate.cost
    side = "prompt" if cost.prompt_side_s > cost.token_side_s else "token"
    other = min(cost.prompt_side_s, cost.token_side_s) / cost.inverse_s
    return f"Its {side} side sets the pace; the other is busy {other:.0%} of the time."


def _family_line(plan: Plan, family: str) -> str | None:
    best = plan.best
    if family == best.split.family:
        return None
    candidate = plan.families.get(family)
    if candidate is None:
        return _absent_line(plan.nearest_misses.get(family), family)
    ratio = candidate.cost.requests_per_s / best.cost.requests_per_s
    line = f"{candidate.split.describe()}: {_compared(ratio)}{_reason(candidate, best)}"
    if candidate.violations:
        line += f"; misses: {'; '.join(candidate.violations)}"
    return f"{line}."


def _compared(ratio: float) -> str:
    if abs(ratio - 1) < 5e-4:
        return "as many requests/s"
    return f"{abs(ratio - 1):.1%} {'more' if ratio > 1 else 'fewer'} requests/s"


def _absent_line(miss: tuple[Split, MemoryNeed] | None, family: str) -> str:
    if miss is None:
        return f"{family}: no such split of these machines."
    split, need = miss
    return f"{family}: nothing fits; nearest is {split.describe()}, where {need.describe()}."


def _reason(candidate: Candidate, best: Candidate) -> str:
    """The term that makes the difference: the bubble, or the side that sets the pace."""
    cost, split = candidate.cost, candidate.split
    if split.family == DISAGGREGATED:
        return f"; {_side_line(candidate)[0].lower()}{_side_line(candidate)[1:-1]}"
    if cost.bubble_share > 0.01:
        return f"; prompts tear bubbles of {cost.bubble_share:.0%} into its pipeline"
    if split.batch < best.split.batch:
        return f"; its memory holds only batches of {split.batch}"
    return ""


def equation_report(plan: Plan) -> EquationReport | None:
    """Equations 1 to 6 at the winner's batch; None where one pipeline of all machines cannot be."""
    given = plan.given
    if not 2 <= given.machines <= given.profile.model.layers:
        return None
    return report_equations(
        given.profile,
        given.workload,
        machines=given.machines,
        batch=plan.best.split.batch,
        stream_overhead=_stream_overhead(plan),
        usable_share=given.usable_share,
    )


def _equation_lines(plan: Plan) -> Iterator[str]:
    report = equation_report(plan)
    if report is None:
        yield "Disaggregation needs two machines and at most one per layer to be weighed by Eq. 4."
        return
    yield report.describe()
    yield from _integer_line(plan)


def _stream_overhead(plan: Plan) -> float:
    if plan.given.stream_overhead is not None:
        return plan.given.stream_overhead
    candidate = plan.families.get(DISAGGREGATED)
    return candidate.cost.times.stream_overhead if candidate else 1.0


def _integer_line(plan: Plan) -> Iterator[str]:
    """The best disaggregated plan against the best that keeps prompts and tokens together."""
    apart = plan.families.get(DISAGGREGATED)
    together = [c for family, c in plan.families.items() if family in (COLOCATED, DATA_PARALLEL)]
    if apart is None or not together:
        return
    rival = max(together, key=lambda candidate: candidate.cost.requests_per_s)
    gain = apart.cost.requests_per_s / rival.cost.requests_per_s
    verdict = "pays" if gain > 1 else "does not pay"
    yield (
        f"With whole layers, batches and memory disaggregation {verdict}: "
        f"{apart.split.describe()} delivers {gain:.3f} times the requests of "
        f"{rival.split.describe()}."
    )


def swap_verdict(plan: Plan) -> SwapVerdict | None:
    """Appendix G for the winner's pipeline; None below three stages, where it saves nothing."""
    split = plan.best.split
    if split.stages < 3:
        return None
    batch = split.batch if split.swap and split.batch > 1 else 2 * split.batch
    given = plan.given
    swapped = replace(split, batch=batch, swap=True)
    times = plan.model.stage_times(swapped)
    outputs = given.workload.mean_output
    transfers = plan.model.transfer_times(swapped)
    longest = max(given.workload.contexts)
    per_token_s = transfers[-1] / longest
    return SwapVerdict(
        batch=batch,
        doubled_s=2 * outputs * times.token_s,
        swapped_s=times.decode_s,
        hidden_context=times.token_s / per_token_s,
    )


def _option_lines(plan: Plan) -> Iterator[str]:
    """What the winner would deliver with its options the other way."""
    best, given = plan.best, plan.given
    if best.split.swap:
        costs = map(plan.model.cost, _without_swap(given, best.split))
        rate = max((cost.requests_per_s for cost in costs), default=0.0)
        yield f"Without swapping the same shape delivers {rate:.4g} requests/s."
    if best.split.replicas:
        bare = plan.model.cost(replace(best.split, replicas=0))
        yield (
            f"{best.split.replicas} replicas keep it available {best.cost.availability:.3%} of the "
            f"time against {bare.availability:.3%} without."
        )


def _without_swap(given: PlanInput, like: Split) -> Iterator[Split]:
    shape = (like.family, like.groups, like.prompt_stages, like.stages, like.replicas)
    for split in given.splits():
        same = (split.family, split.groups, split.prompt_stages, split.stages, split.replicas)
        if same == shape and not split.swap and not missing_bytes(given.needs(split)):
            yield split
