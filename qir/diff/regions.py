"""What replaced what: regions of nodes for regions, and one node for one, among those that matching left over."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from qir.diff.describe import foreign_sources
from qir.diff.neighbours import Around, GraphMatch, around, problems
from qir.diff.view import View

__all__ = ["Region", "components", "find_regions", "pair_replacements"]

_LEAST = 3
"""Nodes on the larger side of a region that only its boundary tells."""
_MOST_PAIRS = 10_000
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Small fusions: operators on one side, the operator on the other.
_FUSIONS: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(parts.split("+")), frozenset(whole.split("|")))
    for parts, whole in (
        ("MatMul+Add", "Gemm|FusedGemm"),
        ("Sigmoid+Mul", "Swish|Silu|QuickGelu"),
        ("HardSigmoid+Mul", "HardSwish"),
        ("Tanh+Softplus+Mul", "Mish"),
        ("Mul+Relu", "PRelu"),
        ("MatMul+Transpose", "Gemm|FusedMatMul"),
        ("ReduceMean+Squeeze", "GlobalAveragePool"),
        ("Add+LayerNormalization", "SkipLayerNormalization"),
        ("Conv+Relu", "FusedConv"),
        ("Conv+Add", "FusedConv"),
        ("Pad+Conv", "Conv"),
    )
)


@dataclass(slots=True)
class Region:
    """Nodes of ``a`` for nodes of ``b``, by number; ``pairs`` are the matched ones among them (a Conv that took in a
    BatchNormalization). No nodes of ``b``: ``a``'s became a constant."""

    a: list[int] = field(default_factory=list)
    b: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)


def find_regions(match: GraphMatch) -> list[Region]:
    """Regions by provenance, then by equal boundary; a node is in one at most. Also constants that were computed."""
    taken_a: set[int] = set()
    taken_b: set[int] = set()
    regions: list[Region] = []

    def take(region: Region) -> None:
        regions.append(region)
        taken_a.update(region.a)
        taken_b.update(region.b)

    for region in _by_provenance(match):
        take(region)
    for region in _by_scaling(match, taken_a):
        take(region)
    _grow(match, regions)
    for region in regions:
        taken_a.update(region.a)
        taken_b.update(region.b)
    for rest_a, rest_b in problems(match):
        if len(rest_a) * len(rest_b) > _MOST_PAIRS:
            continue
        parts_a = components(match, 0, [n for n in rest_a if n not in taken_a])
        parts_b = components(match, 1, [n for n in rest_b if n not in taken_b])
        around_b = [around(match, 1, part) for part in parts_b]
        for part in parts_a:
            mine = around(match, 0, part)
            for index, other in enumerate(parts_b):
                if other and _alike(mine, around_b[index]) and _is_region(match, part, other):
                    take(Region(part, other))
                    parts_b[index] = []
                    break
    left = [n for n, mate in enumerate(match.forward) if mate < 0 and n not in taken_a]
    outputs = {slot.value for slot in match.a.outputs}
    for part in components(match, 0, left):
        if _became_constant(match, part, outputs):
            take(Region(part))
    return regions


def _by_provenance(match: GraphMatch) -> list[Region]:
    links: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    for side, (mine, theirs) in enumerate(((match.b, match.a), (match.a, match.b))):
        partner = (match.backward, match.forward)[side]
        others = (match.forward, match.backward)[side]
        telling = [(n, sources) for n, node in enumerate(mine.nodes) if (sources := foreign_sources(node))]
        if not telling:
            continue
        names: dict[str, int] = {}
        for number, node in enumerate(theirs.nodes):
            name = node.name or (node.outputs[0].name if node.outputs else "")
            names[name] = -1 if name in names else number
        for number, sources in telling:
            found = [names[s] for s in sources if names.get(s, -1) >= 0]
            # A source that has a counterpart of its own was not replaced, unless that is this very node.
            found = [n for n in found if others[n] < 0 or others[n] == number]
            if not any(others[n] < 0 for n in found):
                continue
            me = (1 - side, number)
            for n in [*found, *([partner[number]] if partner[number] >= 0 else [])]:
                links[me].add((side, n))
                links[side, n].add(me)
    regions = []
    seen: set[tuple[int, int]] = set()
    for start in links:
        if start in seen:
            continue
        group, work = {start}, [start]
        while work:
            for other in links[work.pop()]:
                if other not in group:
                    group.add(other)
                    work.append(other)
        seen |= group
        a, b = (sorted(n for side, n in group if side == which) for which in (0, 1))
        if len(a) + len(b) > 2:
            inside = set(b)
            regions.append(Region(a, b, [(n, match.forward[n]) for n in a if match.forward[n] in inside]))
    return regions


def _by_scaling(match: GraphMatch, taken: set[int]) -> list[Region]:
    """A normalization or a bias that stood behind a product and is in its constants now: its bias is new, or not only
    the weights differ."""
    a, b = match.a, match.b
    found = []
    for x in [x for x, mate in enumerate(match.forward) if mate < 0]:
        if x in taken or a.ops[x][0] or a.ops[x][1] not in ("BatchNormalization", "Add"):
            continue
        makers = [p for slot in a.slots[x] if (p := a.values[slot.value].producer) >= 0]
        if len(makers) != 1 or a.ops[makers[0]][1] not in _PRODUCTS or match.forward[makers[0]] < 0:
            continue
        p = makers[0]
        q = match.forward[p]
        readers = {reader for made in a.results[p] for reader, _ in a.consumers[made]}
        if readers != {x} or p in taken or a.ops[p] != b.ops[q]:
            continue
        old, new = _constants_of(a, p), _constants_of(b, q)
        if len(new) > len(old) or (len(new) == len(old) > 1 and not old & new):
            found.append(Region([p, x], [q], [(p, q)]))
    return found


def _constants_of(view: View, node: int) -> set[tuple[int, int]]:
    values = view.values
    return {(slot.index, c.key) for slot in view.slots[node] if (c := values[slot.value]).constant is not None}


def _grow(match: GraphMatch, regions: list[Region]) -> None:
    """Let regions take in the nodes without a counterpart that touch them: what was simplified on the way."""
    owners: list[dict[int, Region]] = [{}, {}]
    for region in regions:
        for side, nodes in enumerate((region.a, region.b)):
            owners[side].update(dict.fromkeys(nodes, region))
    for side, (view, partner) in enumerate(((match.a, match.forward), (match.b, match.backward))):
        left = [n for n, mate in enumerate(partner) if mate < 0 and n not in owners[side]]
        for part in components(match, side, left):
            for node in part:
                near = [view.values[slot.value].producer for slot in view.slots[node]]
                near += [reader for made in view.results[node] for reader, _ in view.consumers[made]]
                region_or_none = next((owners[side][n] for n in near if n in owners[side] and partner[n] < 0), None)
                if region_or_none is not None:
                    nodes = region_or_none.b if side else region_or_none.a
                    nodes.extend(part)
                    nodes.sort()
                    break


def components(match: GraphMatch, side: int, nodes: list[int]) -> list[list[int]]:
    """The nodes of one graph in parts that hang together."""
    view = (match.a, match.b)[side]
    inside = set(nodes)
    parts = []
    for start in nodes:
        if start not in inside:
            continue
        inside.discard(start)
        part, work = [start], [start]
        while work:
            here = work.pop()
            near = [view.values[slot.value].producer for slot in view.slots[here]]
            near += [reader for made in view.results[here] for reader, _ in view.consumers[made]]
            for other in near:
                if other in inside:
                    inside.discard(other)
                    part.append(other)
                    work.append(other)
        parts.append(sorted(part))
    return parts


def _alike(one: Around, two: Around) -> bool:
    return bool(one.sinks) and one.sinks == two.sinks and one.sources == two.sources


def _is_region(match: GraphMatch, a: list[int], b: list[int]) -> bool:
    if max(len(a), len(b)) >= _LEAST and not _mostly_alike(match, a, b):
        return True
    ops_a, ops_b = {match.a.ops[n][1] for n in a}, {match.b.ops[n][1] for n in b}
    return any(
        (one == parts and len(two) == 1 and two <= whole)
        for parts, whole in _FUSIONS
        for one, two in ((ops_a, ops_b), (ops_b, ops_a))
    )


def _mostly_alike(match: GraphMatch, a: list[int], b: list[int]) -> bool:
    """Rather edits of single nodes: as many nodes, or the operators of one side among the other's."""
    ops_a, ops_b = Counter(match.a.ops[n] for n in a), Counter(match.b.ops[n] for n in b)
    return len(a) == len(b) or ops_a <= ops_b or ops_b <= ops_a


def _became_constant(match: GraphMatch, part: list[int], outputs: set[int]) -> bool:
    """Every reader of these nodes has a counterpart that reads a constant there. ``outputs``: of the graph."""
    a, b, inside, found = match.a, match.b, set(part), False
    for node in part:
        for made in a.results[node]:
            if made in outputs:
                return False
            for reader, _ in a.consumers[made]:
                if reader in inside:
                    continue
                mate = match.forward[reader]
                places = {slot.index for slot in a.slots[reader] if slot.value == made}
                others = [slot for slot in b.slots[mate] if slot.index in places] if mate >= 0 else []
                if len(others) < len(places) or any(b.values[slot.value].constant is None for slot in others):
                    return False
                found = True
    return found


def pair_replacements(match: GraphMatch, taken_a: Iterable[int], taken_b: Iterable[int]) -> None:
    """Pair what is left between the same neighbours, by maximum weight matching: another operator in the old one's
    place."""
    gone_a, gone_b = set(taken_a), set(taken_b)
    for rest_a, rest_b in problems(match):
        left_a, left_b = ([n for n in rest if n not in gone] for rest, gone in ((rest_a, gone_a), (rest_b, gone_b)))
        if not left_a or not left_b or len(left_a) * len(left_b) > _MOST_PAIRS:
            continue
        around_b = [around(match, 1, [y]) for y in left_b]
        edges: list[tuple[tuple[int, int], tuple[int, int], int]] = []
        for i, x in enumerate(left_a):
            mine = around(match, 0, [x])
            for j, y in enumerate(left_b):
                other = around_b[j]
                if not (_meet(mine.sources, other.sources) and _meet(mine.sinks, other.sinks)):
                    continue
                weight = 10 + 4 * len(mine.near & other.near)
                weight += 2 * (mine.sources == other.sources) + 2 * (mine.sinks == other.sinks)
                weight += 8 * (match.a.op_keys[x] == match.b.op_keys[y])
                weight += match.a.nodes[x].name == match.b.nodes[y].name != ""
                edges.append(((0, x), (1, y), 1000 * weight - min(abs(i - j), 999)))
        for one, two in _heaviest(edges):
            x, y = (one[1], two[1]) if one[0] == 0 else (two[1], one[1])
            match.forward[x] = y
            match.backward[y] = x


def _heaviest(
    edges: list[tuple[tuple[int, int], tuple[int, int], int]],
) -> Iterable[tuple[tuple[int, int], tuple[int, int]]]:
    if len(edges) <= 1:
        return [(one, two) for one, two, _ in edges]
    import networkx

    graph = networkx.Graph()
    graph.add_weighted_edges_from(edges)
    return list(networkx.max_weight_matching(graph))


def _meet(one: set[object], two: set[object]) -> bool:
    return bool(one & two) or (not one and not two)
