"""Minimum cut of a network, by Dinic's algorithm (1970): on which of two sides each node stands, at least cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

_SOURCE, _SINK = 0, 1
_EPSILON = 1e-9


class Network:
    """Nodes are made by their first mention; capacities of repeated arcs add up."""

    def __init__(self) -> None:
        self._index: dict[Hashable, int] = {}
        self._arcs: list[list[int]] = [[], []]  # of each node: arcs by number, an arc's reverse is its number ^ 1
        self._head: list[int] = []
        self._room: list[float] = []

    def cost(self, node: Hashable, *, on_source_side: float, on_sink_side: float) -> None:
        """What ``node`` costs on either side; ``math.inf`` forbids one."""
        self._arc(_SOURCE, self._node(node), on_sink_side)
        self._arc(self._node(node), _SINK, on_source_side)

    def cost_between(self, a: Hashable, b: Hashable, cost: float) -> None:
        """What it costs to have ``a`` on the source's side and ``b`` on the sink's."""
        self._arc(self._node(a), self._node(b), cost)

    def cut(self) -> tuple[set[Hashable], float]:
        """The nodes on the source's side of a minimum cut, of several the one with the fewest, and what it costs."""
        cost = 0.0
        while flow := self._augment():
            cost += flow
        levels = self._levels()  # the sink is out of reach, so that this finds all that is not
        return {name for name, node in self._index.items() if levels[node] >= 0}, cost

    def _node(self, name: Hashable) -> int:
        if name not in self._index:
            self._index[name] = len(self._arcs)
            self._arcs.append([])
        return self._index[name]

    def _arc(self, tail: int, head: int, room: float) -> None:
        for a, b, capacity in ((tail, head, room), (head, tail, 0.0)):
            self._arcs[a].append(len(self._head))
            self._head.append(b)
            self._room.append(capacity)

    def _levels(self) -> list[int]:
        """Distance of each node from the source along arcs with room; -1 where there is no way.

        Nodes that are not nearer than the sink have -1, too: no shortest way leads through them.
        """
        levels = [-1] * len(self._arcs)
        levels[_SOURCE] = 0
        reached = [_SOURCE]
        for node in reached:
            if node == _SINK:
                break
            for arc in self._arcs[node]:
                head = self._head[arc]
                if levels[head] < 0 and self._room[arc] > _EPSILON:
                    levels[head] = levels[node] + 1
                    reached.append(head)
        return levels

    def _augment(self) -> float:
        """One blocking flow; 0 where the sink is out of reach."""
        levels = self._levels()
        if levels[_SINK] < 0:
            return 0.0
        total = 0.0
        at = [0] * len(self._arcs)  # the arcs of each node before this one lead nowhere
        path: list[int] = []
        node = _SOURCE
        while True:
            if node == _SINK:
                flow = min(self._room[arc] for arc in path)
                total += flow
                for arc in path:
                    self._room[arc] -= flow
                    self._room[arc ^ 1] += flow
                # Go on from the tail of the first arc that is full.
                full = next(i for i, arc in enumerate(path) if self._room[arc] <= _EPSILON)
                node = self._head[path[full] ^ 1]
                del path[full:]
            elif at[node] < len(self._arcs[node]):
                arc = self._arcs[node][at[node]]
                if self._room[arc] > _EPSILON and levels[self._head[arc]] == levels[node] + 1:
                    path.append(arc)
                    node = self._head[arc]
                else:
                    at[node] += 1
            elif path:
                node = self._head[path.pop() ^ 1]
                at[node] += 1
            else:
                return total
