"""What a cluster's machines send each other: prompts' logs, copies, and copies coming back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dvrt.control.events import Restore, Wanted
from dvrt.simulator.deployment import PROMPTS, TOKENS
from dvrt.simulator.line import Flight, Line
from dvrt.simulator.machine import Machine, transfer
from dvrt.simulator.replicas import Replication
from dvrt.simulator.shipping import Piece, Shipping

if TYPE_CHECKING:
    from dvrt.simulator.cluster import Cluster


class Network:
    """Machines by pipeline and stage, in a ring with the prompts' first, and their links."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        deployment = cluster.deployment
        self._links = deployment.links
        self.machines = {
            key: [Machine() for _ in figures.stages] for key, figures in deployment.lines
        }
        self.ring = [
            (key, stage) for key, each in self.machines.items() for stage in range(len(each))
        ]
        self._replications = {
            place: self._replication(position) for position, place in enumerate(self.ring)
        }
        self._keeps_copies = deployment.replicas > 0
        self._shipping: Shipping | None = None
        if deployment.prompts is not None:
            self._shipping = Shipping(
                deployment.prompts,
                deployment.tokens,
                (self.machines[PROMPTS], self.machines[TOKENS]),
                deployment.links,
                self._shipped,
            )

    @property
    def sent_bytes(self) -> float:
        return sum(machine.sent_bytes for each in self.machines.values() for machine in each)

    def machine(self, position: int) -> Machine:
        """By its place in the ring."""
        key, stage = self.ring[position]
        return self.machines[key][stage]

    def sent(self, line: Line, flight: Flight) -> None:
        """A step is on its way through a line: what its stages will send, and when."""
        if self._shipping is not None and line.key == PROMPTS:
            self._plan_shipping(self._shipping, line, flight)
        if self._keeps_copies:
            for stage, end_s in enumerate(flight.ends):
                self._plan_copies(line, stage, flight, end_s)

    def lost(self, position: int) -> None:
        """A machine stops: its logs, the copies it kept and what was under way are gone."""
        machine = self.machine(position)
        machine.lose()
        if self._shipping is not None:
            self._shipping.forget()
        self._replications[self.ring[position]].lost_source()
        for each in self._replications.values():
            each.lost_machine(machine)

    def restore(self, order: Restore) -> None:
        """Copies come back to a replaced stage, one after the other; 0 entries where none are."""
        for wanted in order.logs:
            self._restore_one(order.pipeline, order.stage, wanted)

    def _restore_one(self, pipeline: int, stage: int, wanted: Wanted) -> None:
        agenda, target = self._cluster.agenda, self.machines[pipeline][stage]
        copied, holder = self._replications[pipeline, stage].best(wanted.slot, wanted.seq)
        length, end_s, lives = (
            min(copied, wanted.length),
            self._cluster.now,
            [(target, target.life)],
        )
        if holder is not None:
            size_bytes = length * self._entry_bytes(pipeline, stage)
            lives.append((holder, holder.life))
            bandwidth = min(self._links.restore, self._links.network)
            end_s = transfer(holder, target, size_bytes, bandwidth, begin_s=end_s)

        def arrive() -> None:
            if target.life == lives[0][1]:
                came = length if all(each.life == life for each, life in lives) else 0
                self._cluster.arrived(pipeline, stage, wanted.slot, wanted.seq, wanted.epoch, came)

        agenda.put(end_s + self._links.latency_s, arrive)

    def _replication(self, position: int) -> Replication:
        key, stage = self.ring[position]
        n_copies = self._cluster.deployment.replicas
        holders = [
            self.machine((position + step) % len(self.ring)) for step in range(1, n_copies + 1)
        ]
        return Replication(
            self.machines[key][stage],
            holders,
            entry_bytes=self._entry_bytes(key, stage),
            bandwidth=self._links.network,
        )

    def _entry_bytes(self, key: int, stage: int) -> int:
        return dict(self._cluster.deployment.lines)[key].stages[stage].timing.entry_bytes

    def _plan_copies(self, line: Line, stage: int, flight: Flight, end_s: float) -> None:
        logs = list(flight.reached())
        cluster, life = self._cluster, self.machines[line.key][stage].life

        def computed() -> None:
            is_there = self.machines[line.key][stage].life == life
            if is_there and not flight.is_void and not _is_stuck(flight, stage, end_s):
                replication = self._replications[line.key, stage]
                replication.computed(logs, cluster.agenda, end_s, self._links.latency_s)

        cluster.agenda.put(end_s, computed)

    def _plan_shipping(self, shipping: Shipping, line: Line, flight: Flight) -> None:
        for stage in range(len(flight.starts)):
            for ship in flight.step.ships:
                begin_s = flight.starts[stage]
                piece = Piece(
                    slot=ship.target,
                    seq=ship.seq,
                    epoch=ship.epoch,
                    n_tokens=ship.stop,
                    stop=ship.stop,
                    commits=ship.commits,
                    begin_s=begin_s,
                    end_s=begin_s,
                )
                self._put_piece(shipping, line, stage, flight, piece)
            for chunk, begin_s, end_s in line.chunk_windows(flight, stage):
                if chunk.to is not None:
                    piece = Piece(
                        slot=chunk.target,
                        seq=chunk.seq,
                        epoch=chunk.epoch,
                        n_tokens=len(chunk.tokens),
                        stop=chunk.stop,
                        commits=chunk.commits,
                        begin_s=begin_s,
                        end_s=end_s,
                    )
                    self._put_piece(shipping, line, stage, flight, piece)

    def _put_piece(
        self, shipping: Shipping, line: Line, stage: int, flight: Flight, piece: Piece
    ) -> None:
        machine = self.machines[line.key][stage]
        life = machine.life

        def begin() -> None:
            is_running = not (flight.is_void or _is_stuck(flight, stage, piece.end_s))
            if machine.life == life and is_running:
                shipping.send(stage, piece)

        self._cluster.agenda.put(piece.begin_s, begin)

    def _shipped(
        self,
        end_s: float,
        stage: int,
        slot: int,
        seq: int,
        epoch: int,
        length: int,
        came: Callable[[], bool],
    ) -> None:
        """A log is at its stage, which takes it in behind its steps and says so.

        That is left out where messages take no time.
        """
        agenda, latency_s = self._cluster.agenda, self._links.latency_s

        def arrive() -> None:
            if came():
                self._cluster.arrived(TOKENS, stage, slot, seq, epoch, length)

        def take() -> None:
            line = self._cluster.lines[TOKENS]
            agenda.put(line.idle_s(stage, end_s) + latency_s, arrive)

        agenda.put(end_s, take if latency_s else arrive)


def _is_stuck(flight: Flight, stage: int, end_s: float) -> bool:
    """Whether the stage never got to this repetition of the step."""
    is_this_one = bool(flight.ends) and flight.ends[stage] == end_s
    return flight.stuck_at is not None and stage >= flight.stuck_at and is_this_one
