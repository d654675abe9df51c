"""Equations 1 to 6 for one pipeline of all machines, as the paper writes them: no whole layers.

What the planner itself uses is ``cost``; this is the page to hold beside the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dvrt.planner import equations
from dvrt.planner.profile import Profile
from dvrt.planner.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLine:
    """One split of Equation 3, seconds a microbatch; ``fits`` by Equations 1 and 2."""

    prompt_machines: int
    token_machines: int
    prompt_s: float
    token_s: float
    fits: bool

    @property
    def inverse_s(self) -> float:
        return max(self.prompt_s, self.token_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class EquationReport:
    """Y and t on a D-deep pipeline and what follows; None means that no number is enough."""

    machines: int
    batch: int
    stream_overhead: float
    prompt_time_s: float
    token_time_s: float
    min_prompt_machines: int | None
    min_token_machines: int | None
    colocated_s: float
    ideal_s: float
    ideal_prompt_machines: float
    ideal_token_machines: float
    gain_threshold: float | None
    splits: tuple[SplitLine, ...]

    @property
    def ideal_gains(self) -> bool:
        """Equation 4."""
        return equations.disaggregation_gains(
            self.machines,
            prompt_time=self.prompt_time_s,
            token_time=self.token_time_s,
            stream_overhead=self.stream_overhead,
        )

    def best_split(self) -> SplitLine | None:
        """The fitting split with the least max(Ip, It); None when none fits."""
        fitting = [line for line in self.splits if line.fits]
        return min(fitting, key=lambda line: line.inverse_s, default=None)

    def describe(self) -> str:
        """Whether disaggregation pays, ideally (Eq. 4) and in whole machines (Eq. 3)."""
        ratio = self.prompt_time_s / self.token_time_s
        threshold = self.gain_threshold
        needed = "no ratio is enough" if threshold is None else f"it must exceed {threshold:.3g}"
        text = (
            f"Eq. 4: over one {self.machines}-stage pipeline with batch {self.batch} an ideal "
            f"split {'gains' if self.ideal_gains else 'does not pay'}: Y/t = {ratio:.3g} at "
            f"m = {self.stream_overhead:.3g}, {needed}."
        )
        best = self.best_split()
        if best is None:
            return f"{text} No whole split fits (Eqs. 1 and 2)."
        verdict = "pays" if best.inverse_s < self.colocated_s else "does not pay"
        return (
            f"{text} The best whole split, {best.prompt_machines}-{best.token_machines}, {verdict}"
            f": max(Ip, It) = {best.inverse_s:.4g} s against Ic = {self.colocated_s:.4g} s."
        )

    def to_json(self) -> dict[str, Any]:
        """All figures; times in seconds a microbatch."""
        return {
            "machines": self.machines,
            "batch": self.batch,
            "m": self.stream_overhead,
            "Y_s": self.prompt_time_s,
            "t_s": self.token_time_s,
            "dp_min": self.min_prompt_machines,
            "dt_min": self.min_token_machines,
            "Ic_s": self.colocated_s,
            "Idis_ideal_s": self.ideal_s,
            "Dp_ideal": self.ideal_prompt_machines,
            "Dt_ideal": self.ideal_token_machines,
            "gain_threshold": self.gain_threshold,
            "ideal_gains": self.ideal_gains,
            "splits": [
                {
                    "Dp": line.prompt_machines,
                    "Dt": line.token_machines,
                    "Ip_s": line.prompt_s,
                    "It_s": line.token_s,
                    "Idis_s": line.inverse_s,
                    "fits": line.fits,
                }
                for line in self.splits
            ],
        }


def report_equations(
    profile: Profile,
    workload: Workload,
    *,
    machines: int,
    batch: int,
    stream_overhead: float = 1.0,
    usable_share: float = 1.0,
) -> EquationReport:
    """Equations 1 to 6 at one batch size; ``machines`` is D, at least 1."""
    share = profile.model.layers / machines
    prompt_s = profile.mean_prompt_s(
        share, batch, workload.mean_prompt, workload.mean_square_prompt
    )
    token_s = profile.stage_token_s(share, batch, workload.mean_context)
    tokens = workload.mean_output
    least = _least_machines(profile, workload, batch, usable_share)
    sides = {"prompt_time": prompt_s, "token_time": token_s, "tokens": tokens}
    streamed = sides | {"stream_overhead": stream_overhead}
    return EquationReport(
        machines=machines,
        batch=batch,
        stream_overhead=stream_overhead,
        prompt_time_s=prompt_s,
        token_time_s=token_s,
        min_prompt_machines=least[0],
        min_token_machines=least[1],
        colocated_s=equations.colocated_inverse_throughput(machines, **sides),
        ideal_s=equations.ideal_disaggregated_inverse_throughput(**streamed),
        ideal_prompt_machines=equations.ideal_prompt_machines(machines, **streamed),
        ideal_token_machines=equations.ideal_token_machines(machines, **streamed),
        gain_threshold=equations.gain_threshold(machines, stream_overhead),
        splits=_lines(machines, prompt_s, token_s, tokens, stream_overhead, least),
    )


def _least_machines(
    profile: Profile, workload: Workload, batch: int, usable_share: float
) -> tuple[int | None, int | None]:
    model = profile.model
    memory = profile.machine.memory_bytes * usable_share
    entry = batch * model.kv_bytes_per_token
    least_prompt = equations.min_prompt_machines(
        model.layers,
        memory,
        layer_weights=model.layer_weight_bytes,
        prompt_kv=entry * workload.longest_prompt,
    )
    least_token = equations.min_token_machines(
        model.layers,
        memory,
        layer_weights=model.layer_weight_bytes,
        microbatch_kv=entry * workload.longest_context,
    )
    return least_prompt, least_token


def _lines(
    machines: int,
    prompt_s: float,
    token_s: float,
    tokens: float,
    stream_overhead: float,
    least: tuple[int | None, int | None],
) -> tuple[SplitLine, ...]:
    lines = []
    for prompt_machines in range(1, machines):
        token_machines = machines - prompt_machines
        enough = least[0] is not None and prompt_machines >= least[0]
        lines.append(
            SplitLine(
                prompt_machines=prompt_machines,
                token_machines=token_machines,
                prompt_s=equations.prompt_inverse_throughput(
                    machines,
                    prompt_machines,
                    prompt_time=prompt_s,
                    stream_overhead=stream_overhead,
                ),
                token_s=equations.token_inverse_throughput(
                    machines, token_machines, token_time=token_s, tokens=tokens
                ),
                fits=enough and least[1] is not None and token_machines >= least[1],
            )
        )
    return tuple(lines)
