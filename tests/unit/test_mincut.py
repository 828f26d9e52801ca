"""The minimum cut against trying every cut."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from requant.planning.mincut import Network


@pytest.mark.parametrize("seed", range(60))
def test_no_other_cut_is_cheaper(seed: int) -> None:
    rng = random.Random(seed)
    nodes = list(range(rng.randint(1, 8)))
    sides = {n: (rng.choice([0, 1, 5, 9.5]), rng.choice([0, 2, 4, math.inf])) for n in nodes}
    between = [(rng.choice(nodes), rng.choice(nodes), rng.choice([0.5, 3, 8, math.inf])) for _ in range(12)]
    network = Network()
    for n, (source, sink) in sides.items():
        network.cost(n, on_source_side=source, on_sink_side=sink)
    for a, b, cost in between:
        network.cost_between(a, b, cost)

    def total(chosen: set[object]) -> float:
        own = sum(sides[n][0] if n in chosen else sides[n][1] for n in nodes)
        return own + sum(cost for a, b, cost in between if a in chosen and b not in chosen)

    subsets = (set(c) for k in range(len(nodes) + 1) for c in itertools.combinations(nodes, k))
    side, cost = network.cut()
    assert cost == pytest.approx(total(side)) == pytest.approx(min(total(set(c)) for c in subsets))


def test_of_equal_cuts_the_source_side_is_the_smallest() -> None:
    network = Network()
    network.cost("a", on_source_side=1, on_sink_side=1)
    assert network.cut() == (set(), 1)


def test_a_long_chain_is_cut_at_its_cheapest_link() -> None:
    network = Network()
    length = 3000
    network.cost(0, on_source_side=0, on_sink_side=math.inf)
    network.cost(length, on_source_side=math.inf, on_sink_side=0)
    for i in range(length):
        network.cost_between(i, i + 1, 1 if i == 1234 else 2)
    assert network.cut() == (set(range(1235)), 1)
