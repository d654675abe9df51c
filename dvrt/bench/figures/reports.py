"""What figures made of a benchmark's report share: ratios by name, and circumstances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dvrt.bench.figures.figure import Row, number, times


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a promised ratio means, and what the paper has."""

    what: str
    how: str
    paper: str = ""
    is_headline: bool = False
    unit: str = ""


def ratio_rows(
    report: Mapping[str, Any], known: Mapping[str, Known], *, others: str = ""
) -> Iterator[Row]:
    """A row for each known ratio that is there, in the order of ``known``.

    Ratios that nobody knows follow under their own names as ``others``; empty leaves them out.
    """
    ratios: Mapping[str, float] = report["ratios"]
    for name, about in known.items():
        if name in ratios:
            value = ratios[name]
            ours = f"{number(value)} {about.unit}" if about.unit else times(value)
            yield Row(
                what=about.what,
                paper=about.paper,
                ours=ours,
                how=about.how,
                is_headline=about.is_headline,
            )
    for name in ratios:
        if others and name not in known:
            yield Row(what=f"`{name}`", ours=number(ratios[name]), how=others)


def circumstances(report: Mapping[str, Any]) -> str:
    """On what a benchmark ran, how busy that was, and by which command."""
    machine = report["machine"]
    load, cores = machine["load"][0], machine["usable_cpus"]
    busy = " More was running than there were cores: times that are measured are rough."
    quick = " The quick form: fewer requests and repeats."
    return (
        f"`{report['command']}` on {cores} cores ({machine['cpu']}), load average {load:.1f} at "
        f"its end.{busy * (load > cores)}{quick * ('--quick' in report['command'])}"
    )


def bench_notes(report: Mapping[str, Any]) -> Iterator[str]:
    """Where the benchmark ran, and as a list what it says of its own figures."""
    yield circumstances(report)
    if report["notes"]:
        yield "\n".join(f"- {note}" for note in report["notes"])
