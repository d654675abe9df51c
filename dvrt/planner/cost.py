"""What a split delivers: Equations 3 to 6 with whole layers, real bandwidths and both batch sizes;
with unequal outputs, how fast single rows are refilled in the place of Equation 3.

Times are of the slowest stage, which has ceil(L / D) layers. All is a steady-state estimate from
means; the simulator is the one that plays a trace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dvrt.planner import equations
from dvrt.planner.profile import Profile
from dvrt.planner.refill import Pipeline, Refill, held_rows, refilled
from dvrt.planner.split import CHUNKED, Split
from dvrt.planner.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds of one microbatch on the slowest stage: Y, t, and N t with swapping's waits in it.

    ``stream_overhead`` is the paper's m, 1 where prompts and tokens share a pipeline.
    """

    prompt_s: float
    token_s: float
    decode_s: float
    stream_overhead: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Steady state of a split. ``inverse_s`` is seconds a request for all groups together.

    ``prompt_side_s`` and ``token_side_s`` are the same for the two sides alone, equal to
    ``inverse_s`` where one pipeline does both. ``availability`` is the share of time not lost to
    failures; requests and tokens a second count it. ``bubble_share`` is how long prompts leave a
    stage of a shared pipeline idle; ``stall_s`` what they add to each step where rows are refilled
    one by one. Dollars are for the tokens that are asked for, at most those delivered.
    """

    split: Split
    times: StageTimes
    prompt_side_s: float
    token_side_s: float
    availability: float
    requests_per_s: float
    tokens_per_s: float
    dollars_per_million_tokens: float | None
    bubble_share: float = 0.0
    stall_s: float = 0.0

    @property
    def inverse_s(self) -> float:
        return max(self.prompt_side_s, self.token_side_s)


class CostModel:
    """Costs the splits of one profile and workload; says nothing about whether they fit.

    ``stream_overhead`` is the paper's m where somebody measured it; None derives it from the
    network. ``mtbf_hours`` is the mean time between failures of one machine, None for no failures.
    """

    def __init__(
        self,
        profile: Profile,
        workload: Workload,
        *,
        stream_overhead: float | None = None,
        mtbf_hours: float | None = None,
        price_per_hour: float | None = None,
    ) -> None:
        self.profile = profile
        self.workload = workload
        self._stream_overhead = stream_overhead
        self._mtbf_hours = mtbf_hours
        self._price_per_hour = price_per_hour
        self._times: dict[tuple[int, int, int, int, bool], StageTimes] = {}
        self._refilled: dict[tuple[int, int, int, bool], Refill] = {}

    def cost(self, split: Split) -> Cost:
        """What this split delivers in the steady state."""
        times = self.stage_times(split)
        refill = self._refill(split, times)
        bubble_s = 0.0 if split.prompt_stages or refill else self._bubble_s(split, times)
        prompt_side_s, token_side_s = self._sides(split, times, refill, bubble_s)
        availability = self._availability(split, times)
        requests_per_s = availability / max(prompt_side_s, token_side_s)
        tokens_per_s = requests_per_s * self.workload.mean_output
        dollars = None
        if self._price_per_hour is not None:
            sold_per_s = min(requests_per_s, self.workload.rate_per_s or math.inf)
            dollars_per_s = self._price_per_hour * split.machines / 3600
            dollars = dollars_per_s / (sold_per_s * self.workload.mean_output) * 1e6
        return Cost(
            split=split,
            times=times,
            prompt_side_s=prompt_side_s,
            token_side_s=token_side_s,
            availability=availability,
            requests_per_s=requests_per_s,
            tokens_per_s=tokens_per_s,
            dollars_per_million_tokens=dollars,
            bubble_share=refill.bubble_share if refill else bubble_s / (bubble_s + _work_s(times)),
            stall_s=refill.stall_s if refill else 0.0,
        )

    def stage_times(self, split: Split) -> StageTimes:
        """Y and t of this split's slowest stages, and m from the network if it is not given."""
        prompt_batch = split.prompt_batch or split.batch
        key = (split.prompt_stages, split.stages, prompt_batch, split.batch, split.swap)
        if key not in self._times:
            self._times[key] = self._new_stage_times(split, prompt_batch)
        return self._times[key]

    def transfer_times(self, split: Split) -> tuple[float, ...]:
        """Appendix G's transf_i of a stage at the workload's contexts, all equally frequent."""
        token_kv = self._layers(split.stages) * self.profile.model.kv_bytes_per_token
        return tuple(
            equations.transfer_time(
                context,
                batch=split.batch,
                token_kv=token_kv,
                bandwidth=self.profile.machine.host_to_device,
            )
            for context in self.workload.contexts
        )

    def _new_stage_times(self, split: Split, prompt_batch: int) -> StageTimes:
        profile, workload = self.profile, self.workload
        prompt_layers = self._layers(split.prompt_stages or split.stages)
        prompt_s = profile.mean_prompt_s(
            prompt_layers, prompt_batch, workload.mean_prompt, workload.mean_square_prompt
        )
        token_layers = self._layers(split.stages)
        token_s = profile.stage_token_s(token_layers, split.batch, workload.mean_context)
        per_token_s = self._swapped_token_s(split, token_layers) if split.swap else token_s
        return StageTimes(
            prompt_s=prompt_s,
            token_s=token_s,
            decode_s=workload.mean_output * per_token_s,
            stream_overhead=self._overhead(split, prompt_layers, prompt_s),
        )

    def _layers(self, stages: int) -> int:
        return math.ceil(self.profile.model.layers / stages)

    def _swapped_token_s(self, split: Split, layers: int) -> float:
        """The mean of max(t, transf_i) over the workload's contexts: t and the mean wait."""
        profile, batch = self.profile, split.batch
        waits = [
            max(0.0, transfer_s - profile.stage_token_s(layers, batch, context))
            for context, transfer_s in zip(
                self.workload.contexts, self.transfer_times(split), strict=True
            )
        ]
        token_s = profile.stage_token_s(layers, batch, self.workload.mean_context)
        return token_s + math.fsum(waits) / len(waits)

    def _overhead(self, split: Split, layers: int, prompt_s: float) -> float:
        """The paper's m: streaming by layers costs only what does not hide behind the prompt."""
        if not split.prompt_stages:
            return 1.0
        if self._stream_overhead is not None:
            return self._stream_overhead
        sent = split.prompt_batch * self.workload.mean_prompt
        sent *= layers * self.profile.model.kv_bytes_per_token
        return max(1.0, sent / self.profile.machine.network / prompt_s)

    def _sides(
        self, split: Split, times: StageTimes, refill: Refill | None, bubble_s: float
    ) -> tuple[float, float]:
        """Seconds a request on the prompt side and on the token side, over all groups."""
        rows = split.batch * split.groups
        network_s = self._network_s(split) / rows
        if split.prompt_stages:
            prompt_s = times.stream_overhead * times.prompt_s / split.prompt_batch
            decode_s = self._held_s(split, times) / split.groups
            return prompt_s / split.groups, max(decode_s, network_s)
        if refill is not None:
            both_s = max(refill.request_s / split.groups, network_s)
        else:
            both_s = max(self._together_s(split, times, bubble_s) / rows, network_s)
        return both_s, both_s

    def _refill(self, split: Split, times: StageTimes) -> Refill | None:
        """Of one pipeline for both whose rows end one by one; else None."""
        if split.prompt_stages or self.workload.has_equal_outputs:
            return None
        key = (split.stages, split.batch, split.chunk, split.swap)
        if key not in self._refilled:
            self._refilled[key] = self._new_refill(split, times)
        return self._refilled[key]

    def _new_refill(self, split: Split, times: StageTimes) -> Refill:
        workload, profile = self.workload, self.profile
        layers = self._layers(split.stages)
        chunk = split.chunk or profile.chunk_tokens
        reread_s = self._reread_s(split) / split.batch if split.chunk else 0.0
        prompts_s = tuple(
            reread_s + profile.stage_prompt_s(layers, 1, length)
            for length in workload.prompt_quantiles
        )
        waits_s = times.decode_s / workload.mean_output - times.token_s

        def token_s(rows: float) -> float:
            return waits_s + profile.stage_token_s(layers, round(rows), workload.mean_context)

        return refilled(
            Pipeline(
                stages=split.stages,
                rows=split.batch,
                decodes=workload.mean_output - 1,
                chunks=workload.mean_chunks(chunk) if chunk else 1.0,
                prompts_s=prompts_s,
                token_s=token_s,
            )
        )

    def _held_s(self, split: Split, times: StageTimes) -> float:
        """Seconds a request on the token side of one group.

        With unequal outputs single rows are refilled, each set aside while one prompt passes the
        prompt stages and its last layers come.
        """
        workload = self.workload
        if workload.has_equal_outputs:
            return times.decode_s / split.batch
        sent = workload.mean_prompt * self._layers(split.stages)
        sent *= self.profile.model.kv_bytes_per_token
        prompt_s = self.profile.mean_prompt_s(
            self._layers(split.prompt_stages),
            1,
            workload.mean_prompt,
            workload.mean_square_prompt,
        )
        return held_rows(
            times.decode_s / workload.mean_output,
            stages=split.stages,
            rows=split.batch,
            decodes=workload.mean_output - 1,
            held_s=split.prompt_stages * prompt_s + sent / self.profile.machine.network,
        )

    def _bubble_s(self, split: Split, times: StageTimes) -> float:
        """Equation 3's for one microbatch; prompts shorter than a token step tear none.

        Of chunks' bubble there is less, the more steps carry one: when every step does, all steps
        take equally long and nothing is torn; when a share p does, 1 - p of it is left.
        """
        bubble_s = max(0.0, (split.stages - 1) * (times.prompt_s - times.token_s) / split.stages)
        if split.family != CHUNKED:
            return bubble_s
        return max(0.0, 1 - self._chunks_per_step(split)) * bubble_s

    def _together_s(self, split: Split, times: StageTimes, bubble_s: float) -> float:
        """One microbatch, its rows filled all at once: Equation 3, with less of the bubble for
        chunks. More chunks than token steps make steps that decode less at the same price."""
        if split.family != CHUNKED:
            return _work_s(times) + bubble_s
        prompt_s = times.prompt_s + self._reread_s(split)
        return prompt_s + times.decode_s * max(1.0, self._chunks_per_step(split)) + bubble_s

    def _chunks_per_step(self, split: Split) -> float:
        workload = self.workload
        return split.batch * workload.mean_prompt / split.chunk / workload.mean_output

    def _reread_s(self, split: Split) -> float:
        """Reading earlier chunks' KV: a prompt of P in chunks of c reads about P^2 / 2c again.

        Nothing where the prompt's times were measured in chunks.
        """
        if self.profile.chunk_tokens:
            return 0.0
        per_entry_s = self.profile.token.coefficients[2]
        workload = self.workload
        again = max(0.0, workload.mean_square_prompt / split.chunk - workload.mean_prompt)
        return self._layers(split.stages) * split.batch * per_entry_s * again / 2

    def _network_s(self, split: Split) -> float:
        """Receiving on a token stage for one microbatch: prompts' KV if apart, and replicas."""
        workload, model = self.workload, self.profile.model
        entries = workload.mean_prompt if split.prompt_stages else 0.0
        entries += split.replicas * (workload.mean_prompt + workload.mean_output)
        received = entries * split.batch * self._layers(split.stages) * model.kv_bytes_per_token
        return received / self.profile.machine.network

    def _availability(self, split: Split, times: StageTimes) -> float:
        """The share of time left when each machine fails every ``mtbf_hours`` and stops its group.

        Without replicas half of the work in flight is done again on average; with them the lost
        stage's KV is copied back.
        """
        if self._mtbf_hours is None:
            return 1.0
        profile, workload = self.profile, self.workload
        layers = self._layers(split.stages)
        lost_s = profile.recovery.detect_s + profile.recovery.restart_s + profile.load_s(layers)
        if split.replicas:
            entries = split.stages * split.batch * (workload.mean_prompt + workload.mean_output)
            kv_bytes = entries * layers * profile.model.kv_bytes_per_token
            lost_s += kv_bytes / profile.restore
        else:
            lost_s += split.stages * (times.prompt_s + times.decode_s) / 2
        failures_per_s = split.group_machines / (self._mtbf_hours * 3600)
        return 1 / (1 + failures_per_s * lost_s)


def _work_s(times: StageTimes) -> float:
    """One microbatch's prompts and tokens on a stage, and nothing idle."""
    return times.prompt_s + times.decode_s
