"""Logs on their way from the prompts' stages to the tokens' stages, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dvrt.simulator.deployment import LineFigures, LinkFigures
from dvrt.simulator.machine import Machine, transfer

Arrived = Callable[[float, int, int, int, int, int, Callable[[], bool]], None]
"""(when, target stage, slot, sequence, epoch, length, whether it really came)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Entries of one log: ``n_tokens`` up to ``stop``, made between the two moments."""

    slot: int
    seq: int
    epoch: int
    n_tokens: int
    stop: int
    commits: bool
    begin_s: float
    end_s: float


@dataclass(slots=True)
class _Coming:
    """What a target stage still waits for of one log."""

    n_sources: int
    latest_s: float = 0.0
    lives: list[tuple[Machine, int]] = field(default_factory=list)


class Shipping:
    """The links between two pipelines' machines, and the logs that are on them."""

    def __init__(
        self,
        source: LineFigures,
        target: LineFigures,
        machines: tuple[list[Machine], list[Machine]],
        links: LinkFigures,
        on_arrived: Arrived,
    ) -> None:
        self._links = links
        self._machines = machines
        self._on_arrived = on_arrived
        self._layers = [stage.layers for stage in source.stages]
        self._layer_bytes = [stage.timing.entry_bytes / stage.layers for stage in source.stages]
        self._shares = [
            [(q, n) for q, to in enumerate(target.stages) if (n := stage.overlap(to))]
            for stage in source.stages
        ]
        self._n_sources = [
            sum(stage.overlap(to) > 0 for stage in source.stages) for to in target.stages
        ]
        self._coming: dict[tuple[int, int, int, int], _Coming] = {}

    def send(self, stage: int, piece: Piece) -> None:
        """A source stage sends its layers' part of a piece to all stages that have these layers."""
        source = self._machines[0][stage]
        layer_s = (piece.end_s - piece.begin_s) / self._layers[stage]
        for target, n_layers in self._shares[stage]:
            last_bytes = piece.n_tokens * self._layer_bytes[stage]
            end_s = transfer(
                source,
                self._machines[1][target],
                last_bytes * n_layers,
                self._links.network,
                begin_s=piece.begin_s + layer_s,
                last_s=piece.end_s,
                last_bytes=last_bytes,
            )
            if piece.commits:
                self._commit(piece, stage, target, end_s + self._links.latency_s)

    def _commit(self, piece: Piece, stage: int, target: int, end_s: float) -> None:
        key = (target, piece.slot, piece.seq, piece.epoch)
        coming = self._coming.get(key)
        if coming is None:
            coming = self._coming[key] = _Coming(self._n_sources[target])
        sender, receiver = self._machines[0][stage], self._machines[1][target]
        coming.lives += [(sender, sender.life), (receiver, receiver.life)]
        coming.latest_s = max(coming.latest_s, end_s)
        coming.n_sources -= 1
        if not coming.n_sources:
            del self._coming[key]
            lives = coming.lives
            self._on_arrived(
                coming.latest_s,
                target,
                piece.slot,
                piece.seq,
                piece.epoch,
                piece.stop,
                lambda: all(machine.life == life for machine, life in lives),
            )

    def forget(self) -> None:
        """A machine is lost: what had not come whole will be sent again under another epoch."""
        self._coming.clear()
