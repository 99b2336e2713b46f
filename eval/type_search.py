"""Which type the KV entries of each layer get, after KVTuner (Li et al., arXiv 2502.04420): what a layer loses alone leaves it
few types, layers that are alike get the same one, and combinations of these are tried.

The caller measures what is lost; the paper takes the error of a layer's attention for the first step. It groups layers by
DBSCAN; here those of a group have the same types left and mean losses that follow each other closely. It leaves the search to
a library; here it starts with what the layers' own losses promise, and goes on with children of the best so far.
"""

import dataclasses
import itertools
import math
import random


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers that get the same type."""

    layers: tuple
    types: tuple  # those to choose from, rising bits


def front(points):
    """Of (bits, loss, what), those that no other has fewer bits than and no more loss, or less loss and no more bits: rising
    bits, falling loss. Of equal ones the first stays."""
    best = []
    for point in sorted(points, key=lambda point: point[:2]):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def grouped(losses, bits, near):
    """The Groups of layers, `losses` being of each layer {type: its loss with that type alone}. Layers with the same types on
    their front are together as long as each one's mean loss is within `near` of the next one's."""
    alike = {}
    for layer, by_type in enumerate(losses):
        types = tuple(name for _, _, name in front((bits[name], loss, name) for name, loss in by_type.items()))
        alike.setdefault(types, []).append((sum(by_type.values()) / len(by_type), layer))
    groups = []
    for types, members in alike.items():
        members.sort()
        layers = [members[0][1]]
        for (before, _), (loss, layer) in itertools.pairwise(members):
            if loss - before > near:
                groups.append(Group(tuple(sorted(layers)), types))
                layers = []
            layers.append(layer)
        groups.append(Group(tuple(sorted(layers)), types))
    return sorted(groups, key=lambda group: group.layers)


def table_of(groups, choice):
    """The type of each layer, `choice` being an index into the types of each group."""
    types = {layer: group.types[i] for group, i in zip(groups, choice) for layer in group.layers}
    return tuple(types[layer] for layer in sorted(types))


def mean_bits(table, bits):
    return sum(bits[name] for name in table) / len(table)


def promised(groups, losses, bits):
    """The front of choices if the losses of layers just add up, rising bits."""
    best = [(0.0, 0.0, ())]
    for group in groups:
        best = front((total + bits[name] * len(group.layers), loss + sum(losses[layer][name] for layer in group.layers),
                      (*choice, i))
                     for total, loss, choice in best for i, name in enumerate(group.types))  # fmt: skip
    return [choice for _, _, choice in best]


def _spread(items, count):
    """As many of the items, evenly, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def _child(first, second, groups, rng):
    """Each group as one of both has it; on average, one of them a step up or down."""
    child = []
    for pair, group in zip(zip(first, second), groups):
        i = rng.choice(pair)
        if rng.random() < 1 / len(groups):
            i = min(max(i + rng.choice((-1, 1)), 0), len(group.types) - 1)
        child.append(i)
    return tuple(child)


def search(groups, losses, bits, measure, most, seed):
    """Calls measure(table), which returns a loss, for all combinations, or for `most` of them where there are more."""
    sizes = [range(len(group.types)) for group in groups]
    if math.prod(map(len, sizes)) <= most:
        for choice in itertools.product(*sizes):
            measure(table_of(groups, choice))
        return
    rng = random.Random(seed)
    found = {}

    def try_out(choice):
        table = table_of(groups, choice)
        found[choice] = (mean_bits(table, bits), measure(table), choice)

    for choice in _spread(promised(groups, losses, bits), (most + 1) // 2):
        try_out(choice)
    while len(found) < most:
        best = [choice for _, _, choice in front(found.values())]
        child = _child(rng.choice(best), rng.choice(best), groups, rng)
        while child in found:  # there are more than `most`
            child = _child(child, tuple(map(rng.choice, sizes)), groups, rng)
        try_out(child)
