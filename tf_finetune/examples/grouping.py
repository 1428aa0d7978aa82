"""Groups out of pairs: what belongs together with what belongs together with it."""

from __future__ import annotations

from collections.abc import Iterable


def groups(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns name -> smallest name of its group, of all that any pair joins.

    >>> groups([("b", "c"), ("d", "c"), ("x", "y")])
    {'b': 'b', 'c': 'b', 'd': 'b', 'x': 'x', 'y': 'x'}
    """
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            parents[name] = parents[parents[name]]
            name = parents[name]
        return name

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    return {name: root(name) for name in sorted(parents)}
