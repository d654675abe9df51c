"""A schedule: the requests, the faults and the shape of one run, as a value made from its seed.

Knows nothing of how a run is made. As JSON it is the script that ``chaos --replay`` takes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from dvrt.errors import ConfigError

KINDS = (
    *("kill", "stop", "zombie", "half", "apart", "cut", "slow"),
    *("hang", "oom", "corrupt", "disk", "rebalance"),
)
"""What can happen: kill; silence for good, for a while, in one direction, or between two workers;
links that break; messages that come late; a step that never ends; no memory for one; a copy whose
bytes change; a disk that is full, where logs are persisted; another split."""
N_NUMBERS = 120
"""Requests are drawn from so many, so that the right answers of all can be known beforehand."""
SPAN_S = 2.5
"""Within this time, counted from when the cluster serves, all requests and faults begin."""
MAX_REQUESTS, MAX_ACTIONS = 9, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """At ``at_s`` a fault of this kind meets a worker: of n that live, number ``pick % n``.

    ``seconds`` is how long it lasts, where it does.
    """

    at_s: float
    kind: str
    pick: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Request ``number`` is asked at ``at_s``; its client may leave after so many tokens, hang up
    after so many seconds, or give a deadline."""

    number: int
    at_s: float
    leave_after: int | None = None
    hang_up_s: float | None = None
    deadline_s: float | None = None

    @property
    def is_patient(self) -> bool:
        return (self.leave_after, self.hang_up_s, self.deadline_s) == (None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One run: ``options`` are those of a launch, besides what every run of its kind has.

    With ``persist`` they ask for a directory of this run's own.
    """

    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    asks: tuple[Ask, ...] = ()
    actions: tuple[Action, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ConfigError for anything but what ``to_json`` writes."""
        try:
            known = json.loads(text)
            return cls(
                seed=int(known["seed"]),
                options=dict(known["options"]),
                asks=tuple(Ask(**each) for each in known["asks"]),
                actions=tuple(_checked(Action(**each)) for each in known["actions"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"this is no schedule: {type(error).__name__} {error}") from error


def _checked(action: Action) -> Action:
    check_kinds([action.kind])
    return action


def check_kinds(kinds: Sequence[str], known: Sequence[str] = KINDS) -> None:
    """Raise ConfigError, naming the known ones, for a kind that is unknown."""
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"kind {kind!r} is unknown; known: {', '.join(known)}")


def draw_schedule(
    seed: int,
    *,
    kinds: Sequence[str] = KINDS,
    options: Mapping[str, Any] | None = None,
    n_layers: int = 5,
) -> Schedule:
    """The schedule of a seed; ``options`` are kept, and the rest of the shape is drawn."""
    rng = random.Random(f"schedule {seed}")
    fixed = dict(options or {})
    shape = fixed if _says_shape(fixed) else {**_draw_shape(rng, n_layers), **fixed}
    numbers = rng.sample(range(N_NUMBERS), rng.randint(2, MAX_REQUESTS))
    if not shape.get("persist"):
        kinds = [kind for kind in kinds if kind != "disk"]
    actions = [
        action
        for _ in range(rng.randint(1, MAX_ACTIONS) if kinds else 0)
        for action in _draw_actions(rng, kinds)
    ]
    return Schedule(
        seed=seed,
        options=shape,
        asks=tuple(_draw_ask(rng, number) for number in numbers),
        actions=tuple(sorted(actions, key=lambda action: action.at_s)),
    )


def _says_shape(options: Mapping[str, Any]) -> bool:
    return bool(options.keys() & {"stages", "layers", "prompt_stages", "token_stages"})


def _draw_shape(rng: random.Random, n_layers: int) -> dict[str, Any]:
    shape: dict[str, Any] = {}
    if rng.random() < 0.5:
        shape["stages"] = rng.randint(1, min(4, n_layers))
    else:
        shape["prompt_stages"] = rng.randint(1, min(2, n_layers))
        shape["token_stages"] = rng.randint(1, min(3, n_layers))
    shape["replicas"] = rng.choice((0, 1, 1, 1, 2))
    shape["spares"] = rng.choice((0, 0, 1))
    shape["batch_size"] = rng.randint(1, 3)
    shape["chunk_tokens"] = rng.choice((8, 16, 64))
    if rng.random() < 0.3:
        shape |= {"swap": True, "swap_bandwidth": "200KB"}
    if rng.random() < 0.1:
        shape["replica_memory"] = "4KB"
    if rng.random() < 0.25:
        shape["persist"] = True
    return shape


def _draw_ask(rng: random.Random, number: int) -> Ask:
    at_s = round(rng.random() * SPAN_S / 2, 4)
    match rng.choice(("stay",) * 4 + ("leave", "hang up", "deadline")):
        case "leave":
            return Ask(number=number, at_s=at_s, leave_after=rng.randint(1, 8))
        case "hang up":
            return Ask(number=number, at_s=at_s, hang_up_s=round(rng.random() * 2, 4))
        case "deadline":
            return Ask(number=number, at_s=at_s, deadline_s=round(rng.uniform(0.01, 3), 4))
    return Ask(number=number, at_s=at_s)


def _draw_actions(rng: random.Random, kinds: Sequence[str]) -> list[Action]:
    """One fault; now and then two at the same moment, or one close behind the other."""
    at_s = round(rng.random() * SPAN_S, 4)
    actions = [_draw_action(rng, kinds, at_s)]
    if rng.random() < 0.25:
        later = rng.choice((0.0, 0.0, 0.001, 0.02, 0.1))
        actions.append(_draw_action(rng, kinds, round(at_s + later, 4)))
    return actions


def _draw_action(rng: random.Random, kinds: Sequence[str], at_s: float) -> Action:
    kind = rng.choice(kinds)
    longest = {"stop": 30.0, "slow": 1.0, "apart": 8.0}.get(kind, 1.5)
    return Action(
        at_s=at_s,
        kind=kind,
        pick=rng.randrange(1000),
        seconds=round(longest if kind == "stop" else rng.random() * longest, 4),
    )
