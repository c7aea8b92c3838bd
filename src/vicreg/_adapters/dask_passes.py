"""One pass over the chunks of Dask arrays after another, each of which reads them anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from typing import Any

import dask.array
from dask._task_spec import DataNode, GraphNode, Task, TaskRef, convert_legacy_graph
from dask.base import clone_key, tokenize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph

Array = Any
Arrays = tuple[Array, ...]
Key = Any
Nodes = dict[Key, GraphNode]
Needed = dict[Key, frozenset[Key]]  # what each task needs
_da: Any = dask.array


def in_another_pass(outputs: Arrays, known: Arrays) -> Arrays:
    """Return `outputs`, computed from copies of their tasks that begin once all is `known`.

    Else each chunk that was read for what is known would be kept until it is needed once more.
    `dask.graph_manipulation.bind` is for this too, but leaves copies of slices without what they
    are slices of (Dask 2026.8).
    """
    if not known:
        return outputs
    graph = HighLevelGraph.merge(*(array.dask for array in (*outputs, *known)))
    nodes = convert_legacy_graph(graph.to_dict())
    keys, ends = list(_keys(outputs)), set(_keys(known))
    needed = _needed(nodes, keys, ends)
    # What is in memory is no task, here or, of a persisted array, on a cluster.
    data = {key for key in needed if isinstance(nodes.get(key), DataNode | None)}
    # Zeros and the like: what needs nothing, and was not read for what is known.
    roots = {key for key, needs in needed.items() if not needs}
    constants = roots - data - _needed(nodes, ends, set()).keys()
    derived = _derived(needed, ends, constants)
    stay = derived | constants | data
    copied = needed.keys() - stay | set(keys)
    # All that follows from what is known comes first: else chunks would wait for it, one by one.
    before = sorted(ends.union(*(nodes[key].dependencies & derived for key in copied)), key=str)
    mark = f"known-{tokenize(keys, before)}"
    # Of each by itself: they need not fit in memory together.
    marks = {(mark, i): Task((mark, i), _nothing, TaskRef(key)) for i, key in enumerate(before)}
    names = {key: clone_key(key, mark) for key in copied}
    tasks: Nodes = {key: nodes[key] for key in stay - ends if key in nodes}
    tasks |= marks | {mark: Task(mark, _nothing, *map(TaskRef, marks))}
    # Constants become part of the tasks that need them, or chunks would wait for those too.
    new = names | {key: nodes[key] for key in constants}
    tasks |= {name: _copy(nodes[key], name, new, mark) for key, name in names.items()}
    return tuple(_of(tasks, output, clone_key(output.name, mark), known) for output in outputs)


def _keys(arrays: Arrays) -> Iterator[Key]:
    for array in arrays:
        yield from flatten(array.__dask_keys__())


def _needed(nodes: Nodes, keys: Iterable[Key], ends: set[Key]) -> Needed:
    """Return what the tasks of `keys` need and those need in turn, down to `ends`."""
    needed: Needed = {}
    left = list(keys)
    while left:
        key = left.pop()
        if key not in needed and key not in ends:
            needed[key] = nodes[key].dependencies if key in nodes else frozenset()
            left += needed[key]
    return needed


def _derived(needed: Needed, ends: set[Key], constants: set[Key]) -> set[Key]:
    """Return `ends` and what follows from them, with constants but nothing else."""
    derived = set(ends)
    for key in TopologicalSorter(needed).static_order():
        needs = needed.get(key, frozenset()) - constants
        if needs and needs <= derived:
            derived.add(key)
    return derived


def _copy(node: GraphNode, name: Key, new: dict[Key, Key | GraphNode], mark: str) -> GraphNode:
    """Return `node` as `name`, which comes after `mark` if it needs nothing that is copied."""
    needs = {key: new[key] for key in node.dependencies if key in new}
    copy: GraphNode = node.substitute(needs, key=name)
    is_after = any(not isinstance(need, GraphNode) for need in needs.values())
    return copy if is_after else Task(name, _first, copy, TaskRef(mark))


def _of(tasks: Nodes, output: Array, name: str, known: Arrays) -> Array:
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=known)
    return _da.Array(graph, name, output.chunks, dtype=output.dtype, meta=output._meta)


def _first(value: Any, _: None) -> Any:
    return value


def _nothing(*_: Any) -> None:
    """Return nothing: what has been computed is not sent anywhere."""
