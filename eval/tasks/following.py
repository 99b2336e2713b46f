"""Variable following and lookups of several hops. The reply writes every hop."""

from . import language, lexicon, records
from .sample import MARKUP_TOKENS, Sample, Turn, ask_about, insert_anywhere


def _document(rng, room, reserve, lines):
    """(text, place of each line in it): the lines, among filler where they leave much of the room."""
    if room.left - reserve < 64:
        return "".join(line + "\n" for line in lines), {line: i / len(lines) for i, line in enumerate(lines)}
    sentences, where = insert_anywhere(rng, language.filler(rng, room, reserve), lines)
    return language.join(rng, sentences), {line: i / len(sentences) for line, i in zip(lines, where)}


def variables(rng, room):
    """`Set Dora = Carl.`: chains of one to four assignments that end in a number."""
    names = list(lexicon.NAMES + lexicon.LETTERS) if room.tokens < 1024 else list(lexicon.KEYS + lexicon.LETTERS)
    rng.shuffle(names)
    longest = 2 if room.tokens < 128 else 4
    hop = room.count("Set Dora = Carl. Dora = Carl.")
    reserve = room.reserve(MARKUP_TOKENS + 12 + longest * hop)
    lines, chains = [], []
    while len(names) > longest:
        chain = [names.pop() for _ in range(rng.randint(1, longest))]
        chain.append(records.number(rng, rng.randint(1, 3)))
        statements = [f"Set {a} = {b}." for a, b in zip(chain, chain[1:])]
        if chains and room.left - sum(map(room.count, statements)) < reserve:
            break
        room.need(*statements)
        lines.append(statements)
        chains.append(chain)
    # Assignments of one chain stay in the order in which a program would run them; chains are interleaved.
    order = [i for i, statements in enumerate(lines) for _ in statements]
    rng.shuffle(order)
    queues = [iter(statements[::-1]) for statements in lines]
    document, place = _document(rng, room, reserve, [next(queues[i]) for i in order])

    def turn(chain):
        chain = chain[rng.randrange(len(chain) - 1) :] if rng.random() < 0.3 else chain
        steps = [f"{a} = {b}." for a, b in zip(chain, chain[1:])]
        evidence = (place[f"Set {steps[0]}"],)
        return Turn(f"What is {chain[0]}?", "Follow: " + " ".join(steps), (chain[-1],), "last", evidence)

    return Sample("following", "variables", document, ask_about(rng, room, turn, chains))


# Relation -> what it leads from and to. Numbers are drawn, not looked up.
_RELATIONS = {
    "friend": (lexicon.NAMES, "name"),
    "town": (lexicon.NAMES, "town"),
    "animal": (lexicon.NAMES, "animal"),
    "color": (lexicon.ANIMALS, "color"),
    "food": (lexicon.ANIMALS, "food"),
    "level": (lexicon.TOWNS, None),
    "price": (lexicon.FOODS, None),
    "age": (lexicon.NAMES, None),
}
_KINDS = {"name": lexicon.NAMES, "town": lexicon.TOWNS, "animal": lexicon.ANIMALS, "color": lexicon.COLORS,
          "food": lexicon.FOODS}  # fmt: skip
_PATHS = (
    ("friend", "town"), ("friend", "animal"), ("friend", "age"), ("town", "level"), ("animal", "color"),
    ("animal", "food"), ("food", "price"), ("friend", "friend", "age"), ("friend", "town", "level"),
    ("friend", "animal", "color"), ("animal", "food", "price"), ("friend", "animal", "food", "price"),
    ("friend", "friend", "town", "level"),
)  # fmt: skip


def hops(rng, room):
    """`The friend of Ann is Bob.` and other relations, asked for in compositions of two to four."""
    paths = [path for path in _PATHS if len(path) <= (2 if room.tokens < 128 else 4)]
    path = rng.choice(paths)
    facts, lines, starts = {}, [], []

    def fact(relation, key):
        if (relation, key) not in facts:
            to = _RELATIONS[relation][1]
            others = [k for k in _KINDS[to] if k != key] if to else None
            facts[relation, key] = rng.choice(others) if to else records.number(rng, rng.randint(1, 3))
            lines.append(_statement(relation, key, facts[relation, key]))
        return facts[relation, key]

    line_cost = room.count("The friend of Ann is Bob.\n") + 2
    reserve = room.reserve(MARKUP_TOKENS + 10 + 4 * len(path) + line_cost * len(path))
    for start in rng.sample(_RELATIONS[path[0]][0], len(_RELATIONS[path[0]][0])):
        if starts and room.left - reserve < line_cost * len(path):
            break
        known = len(lines)
        at = start
        for relation in path:
            at = fact(relation, at)
        room.need(*lines[known:])
        starts.append(start)
    _add_distractors(rng, room, reserve, fact, facts)
    rng.shuffle(lines)
    document, place = _document(rng, room, reserve, lines)

    def turn(start):
        steps, at = [], start
        for relation in path:
            steps.append(_statement(relation, at, facts[relation, at]))
            at = facts[relation, at]
        asked = "".join(f"the {relation} of " for relation in reversed(path))
        return Turn(f"What is {asked}{start}?", " ".join(steps), (at,), "last", (place[steps[-1]],))

    return Sample("following", "hops", document, ask_about(rng, room, turn, starts))


def _statement(relation, key, value):
    return records.Record(relation, key, value).statement()


def _add_distractors(rng, room, reserve, fact, known):
    """More facts of any relation, until the room is full or nothing new is left to say."""
    line_cost = room.count("The friend of Ann is Bob.\n") + 2
    for relation, key in records.pairs(rng, tuple(_RELATIONS), lexicon.NAMES + lexicon.ANIMALS + lexicon.TOWNS):
        if room.left - reserve < line_cost:
            return
        if key in _RELATIONS[relation][0] and (relation, key) not in known:
            room.need(_statement(relation, key, str(fact(relation, key))))


VARIANTS = {"variables": variables, "hops": hops}
