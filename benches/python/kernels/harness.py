"""Fair timing of kernels beside their peers on one shared core.

A row holds contestants that do the same work. Every round times each of them once, by CPU time of the thread, between
two runs of a register-only loop of the multiply-add that the GEMM kernel in use is made of: a round in which that loop
was slower than 94 % of its best is taken again, since something else had the core. Figures are medians over rounds.
Where no round was quiet, they are of those in which that loop was fastest, and the row says so.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    #: Does a contestant's work once.
    Run = Callable[[], Any]

ROOT = Path(__file__).resolve().parents[3]
PEAK = "peak"
QUIET = 0.94
SAMPLE_SECONDS = 0.02
TRIES = 6  # rounds that may be taken for one that counts


@dataclass(frozen=True)
class Claim:
    """``own`` is at least so many times as fast as ``peer``; for the peer ``peak``, at least that share of it."""

    own: str
    peer: str
    at_least: float


@dataclass(frozen=True)
class Row:
    """Contestants at one piece of work of ``amount`` units: operations (two to a multiply-add) or values."""

    group: str
    name: str
    amount: float
    unit: str
    runs: Mapping[str, Run]
    claims: tuple[Claim, ...] = ()
    note: str = ""
    clock: Callable[[], float] = time.thread_time


@dataclass
class Result:
    """Billions of units a second: of each contestant, and of the peak loop in the same rounds."""

    row: Row
    rates: dict[str, float]
    rounds: int
    rejected: int
    #: Least share of its best speed that the peak loop reached around a round that counts.
    quiet: float
    verdicts: list[tuple[Claim, float]] = field(default_factory=list)

    @property
    def disturbed(self) -> str:
        """What has to be known of figures taken beside other work; empty where the core was quiet."""
        if not self.quiet < QUIET:  # where there is no such loop its speed is no number
            return ""
        return f"disturbed: in its best {self.rounds} rounds the core ran at {self.quiet:.0%} of its speed or more"

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return {
            "group": self.row.group,
            "name": self.row.name,
            "unit": f"G{self.row.unit}/s",
            "note": self.row.note,
            "rounds": self.rounds,
            "rejected": self.rejected,
            "quiet": round(self.quiet, 3),
            "rates": {name: round(rate, 4) for name, rate in self.rates.items()},
            "claims": [
                {"own": c.own, "peer": c.peer, "at_least": c.at_least, "ratio": round(ratio, 3)}
                for c, ratio in self.verdicts
            ],
        }


@cache
def peak_binary() -> Path:
    """The loop, built."""
    command = ["cargo", "build", "--quiet", "--release", "--package", "requant-core", "--example", "peak"]
    subprocess.run(command, cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "examples" / "peak"


def peak() -> float:
    """GOPS of the loop, now."""
    return float(subprocess.run([peak_binary()], capture_output=True, text=True, check=True).stdout)


def measure(row: Row, rounds: int) -> Result:
    """Times every contestant of ``row``."""
    repeats = {}
    for name, run in row.runs.items():
        run()
        start = row.clock()
        run()
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(row.clock() - start, 1e-6)))
    best = peak()
    taken: list[tuple[float, dict[str, float]]] = []
    while len(taken) < rounds * TRIES:
        before, sample = peak(), {}
        for name, run in row.runs.items():
            run()  # the operands are in the cache, if they fit, and not those of the one before
            start = row.clock()
            for _ in range(repeats[name]):
                run()
            sample[name] = row.amount * repeats[name] / (row.clock() - start) / 1e9
        after = peak()
        best = max(best, before, after)
        taken.append((min(before, after), {PEAK: statistics.fmean((before, after)), **sample}))
        if sum(not slowest < QUIET * best for slowest, _ in taken) == rounds:
            break
    taken.sort(key=lambda entry: entry[0], reverse=True)
    counted = [entry for entry in taken if not entry[0] < QUIET * best] or taken[:rounds]
    kept = {name: [sample[name] for _, sample in counted] for name in (PEAK, *row.runs)}
    rates = {name: statistics.median(values) for name, values in kept.items()}
    result = Result(row, rates, len(counted), len(taken) - len(counted), counted[-1][0] / best)
    for claim in row.claims:
        ratios = [own / peer for own, peer in zip(kept[claim.own], kept[claim.peer], strict=True)]
        result.verdicts.append((claim, statistics.median(ratios)))
    return result


def show(result: Result) -> Iterator[str]:
    """Lines for people."""
    row, rates = result.row, result.rates
    again = f", {result.rejected} rounds taken again" if result.rejected else ""
    quiet = "" if result.disturbed else "quiet "
    yield f"{row.group}: {row.name}   ({result.rounds} {quiet}rounds{again})"
    for name, rate in rates.items():
        if name != PEAK or row.unit == "op":
            share = f"{100 * rate / rates[PEAK]:6.0f} % of peak" if row.unit == "op" else ""
            yield f"    {name:34}{rate:9.2f} G{row.unit}/s{share}"
    for claim, ratio in result.verdicts:
        met = "met" if ratio >= claim.at_least else "MISSED"
        yield f"    {claim.own} over {claim.peer}: {ratio:.2f}, aim {claim.at_least:g}: {met}"
    for note in filter(None, (row.note, result.disturbed)):
        yield f"    ({note})"


def markdown(results: list[Result]) -> Iterator[str]:
    """The claims as a table, and what has to be known of its rows."""
    yield "| operation | | peer | own | peer's | ratio | aim | |"
    yield "|---|---|---|---|---|---|---|---|"
    for result in results:
        unit = "GOPS" if result.row.unit == "op" else f"G{result.row.unit}/s"
        for claim, ratio in result.verdicts:
            own, peer = (f"{result.rates[name]:.3g} {unit}" for name in (claim.own, claim.peer))
            verdict = "met" if ratio >= claim.at_least else "**missed**"
            yield (
                f"| {result.row.group} | {result.row.name}: {claim.own} | {claim.peer} | {own} | {peer} | "
                f"{ratio:.2f} | {claim.at_least:g} | {verdict} |"
            )
    yield ""
    for result in results:
        for note in filter(None, (result.row.note, result.disturbed)):
            yield f"- {result.row.group}, {result.row.name}: {note}."
