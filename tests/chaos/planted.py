"""Mistakes in the protocol, planted on purpose: each takes one check or one message away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dvrt.cluster.dispatch import Dispatcher
from dvrt.cluster.restoration import Restorer
from dvrt.control.pipeline import Pipeline
from dvrt.control.recovery import Recovery
from dvrt.stages.replica_copy import ReplicaCopy

Plant = Callable[[pytest.MonkeyPatch], None]


def rewind_is_not_told(patch: pytest.MonkeyPatch) -> None:
    """Survivors go on with steps that a loss has made void."""
    patch.setattr(Dispatcher, "_rewind", lambda self, rewind: self._chronicle.rewound(rewind))


def restored_is_what_was_wanted(patch: pytest.MonkeyPatch) -> None:
    """The length of a restored log is believed to be what was asked for."""
    settle = Restorer._settle

    def overstate(self: Any, seat: Any, wishes: Any, name: Any, length: int) -> None:
        settle(self, seat, wishes, name, wishes.open[name].length if length else 0)

    patch.setattr(Restorer, "_settle", overstate)


def copies_are_believed(patch: pytest.MonkeyPatch) -> None:
    """The digests of a copy are not looked at when it is wanted."""
    patch.setattr(ReplicaCopy, "sound_bytes", lambda self: self.nbytes)


def nothing_is_shipped_again(patch: pytest.MonkeyPatch) -> None:
    """What was shipped to a stage that is replaced is believed to be there still."""
    ready = Recovery.ready

    def forgetful(self: Recovery, pipeline: Pipeline, stage: int, now: float) -> Any:
        before = [(each, each.must_reship, set(each.arrived)) for each in pipeline.expected()]
        commands = ready(self, pipeline, stage, now)
        for each, must_reship, arrived in before:
            each.must_reship, each.arrived = must_reship, arrived
        return commands

    patch.setattr(Recovery, "ready", forgetful)


def copies_are_not_cut(patch: pytest.MonkeyPatch) -> None:
    """A copy keeps the entries that its log has given up."""
    patch.setattr(ReplicaCopy, "cut", lambda self, nbytes: None)


def silence_after_a_restore(patch: pytest.MonkeyPatch) -> None:
    """Logs that nobody has are not answered for."""
    settle = Restorer._settle

    def only_good_news(self: Any, seat: Any, wishes: Any, name: Any, length: int) -> None:
        if length:
            settle(self, seat, wishes, name, length)
        else:
            wishes.open.pop(name)

    patch.setattr(Restorer, "_settle", only_good_news)


def in_flight_counts_as_done(patch: pytest.MonkeyPatch) -> None:
    """Entries count as soon as the step that makes them has left."""
    next_step = Pipeline.next_step

    def hasty(self: Pipeline, microbatch: int, **given: Any) -> Any:
        step = next_step(self, microbatch, **given)
        for sequence in self.sitting(microbatch) if step is not None else ():
            sequence.n_done = max(sequence.n_done, sequence.n_logged)
        return step

    patch.setattr(Pipeline, "next_step", hasty)


LINE = {"stages": 3, "batch_size": 2}
PAIR = {"stages": 2, "batch_size": 3}
SPLIT = {"prompt_stages": 2, "token_stages": 2, "batch_size": 2}
PLANTS: dict[Plant, tuple[tuple[str, ...], dict[str, Any]]] = {
    rewind_is_not_told: (("kill",), {}),
    restored_is_what_was_wanted: (("kill",), {}),
    copies_are_believed: (("corrupt", "kill"), PAIR),
    nothing_is_shipped_again: (("kill",), SPLIT),
    copies_are_not_cut: (("cut",), LINE),
    silence_after_a_restore: (("kill",), {}),
    in_flight_counts_as_done: (("oom",), LINE),
}
"""Each with faults that can show it and a shape, by default any, in which they soon do."""
