"""Retrieval: many records, later questions on some of them."""

from . import language, lexicon, records
from .records import Record
from .sample import MARKUP_TOKENS, NoRoom, Sample, Turn, ask_about, insert_anywhere

_BULLET = "value"  # the attribute of records written as a list: `- lamp: 12`


def _line(record):
    return f"- {record.key}: {record.value}\n" if record.attribute == _BULLET else record.statement() + "\n"


def _reply(record):
    return f"- {record.key}: {record.value}" if record.attribute == _BULLET else record.statement()


def _attribute(rng):
    return rng.choice((_BULLET, *records.NUMBER_VALUES, *records.WORD_VALUES))


def _turn_cost(room, record, replies=1):
    return room.count(record.question()) + replies * room.count(_reply(record)) + MARKUP_TOKENS + 4


def _fill(rng, room, make, turn_replies=1):
    """Records from the iterator `make` until only the turns fit; none twice."""
    made, reserve = [], None
    for record in make:
        cost = room.count(_line(record))
        if reserve is None:
            reserve = room.reserve(_turn_cost(room, record, turn_replies))
        if made and room.left - cost < reserve:
            break
        room.need(_line(record))
        made.append(record)
    return made


def _sample(variant, rng, room, made):
    place = {record: i / len(made) for i, record in enumerate(made)}

    def turn(record):
        return Turn(record.question(), _reply(record), (record.value,), "last", (place[record],))

    return Sample("retrieval", variant, "".join(map(_line, made)), ask_about(rng, room, turn, made))


def _records(rng, attributes, digits, keys=lexicon.KEYS):
    for attribute, key in records.pairs(rng, attributes, keys):
        value = records.pick_value(rng, attribute, digits)
        if value != key:
            yield Record(attribute, key, value)


def one_key(rng, room):
    """Records of one attribute: the key alone finds the value."""
    return _sample("one_key", rng, room, _fill(rng, room, _records(rng, [_attribute(rng)], rng.randint(1, 4))))


def two_keys(rng, room):
    """Several attributes of few keys: only both together find the value."""
    attributes = rng.sample((*records.NUMBER_VALUES, *records.WORD_VALUES), rng.randint(2, 4))
    lines = max(4, room.tokens // 9)
    keys = rng.sample(lexicon.KEYS, min(len(lexicon.KEYS), -(-lines // len(attributes)) + 1))
    return _sample("two_keys", rng, room, _fill(rng, room, _records(rng, attributes, rng.randint(1, 3), keys)))


def many_values(rng, room):
    """Some keys have two or three records, all of which are asked for, in order."""
    attribute = rng.choice(records.NUMBER_VALUES)
    digits = rng.randint(2, 3)

    def several():
        for _, key in records.pairs(rng, [attribute], lexicon.KEYS):
            for _ in range(rng.choice((1, 2, 2, 3))):
                yield Record(attribute, key, records.number(rng, digits))

    made = _fill(rng, room, several(), turn_replies=3)
    if len(made) < 4:
        raise NoRoom(f"{room.tokens} tokens")
    rng.shuffle(made)
    by_key = {}
    for i, record in enumerate(made):
        by_key.setdefault(record.key, []).append((record, i / len(made)))

    def turn(key):
        found = by_key[key]
        answer = " ".join(_reply(record) for record, _ in found)
        values = tuple(record.value for record, _ in found)
        question = f"What is each {attribute} of {key}? List all in order."
        return Turn(question, answer, values, "each", tuple(place for _, place in found))

    turns = ask_about(rng, room, turn, sorted(by_key))
    return Sample("retrieval", "many_values", "".join(map(_line, made)), turns)


def many_keys(rng, room):
    """Each question asks for several keys at once."""
    attribute = rng.choice(records.NUMBER_VALUES)
    asked = rng.randint(2, 4) if room.tokens > 100 else 2
    made = _fill(rng, room, _records(rng, [attribute], rng.randint(1, 3)), turn_replies=asked + 1)
    if len(made) < asked:
        raise NoRoom(f"{room.tokens} tokens")
    place = {record: i / len(made) for i, record in enumerate(made)}

    def turn(_):
        chosen = rng.sample(made, asked)
        question = f"What is the {attribute} of each of these: {', '.join(record.key for record in chosen)}?"
        values = tuple(record.value for record in chosen)
        return Turn(question, " ".join(map(_reply, chosen)), values, "each", tuple(place[record] for record in chosen))

    return Sample("retrieval", "many_keys", "".join(map(_line, made)), ask_about(rng, room, turn, range(room.turns)))


def needle(rng, room):
    """A few records within filler text."""
    attributes = rng.sample((*records.NUMBER_VALUES, *records.WORD_VALUES), 2)
    source = _records(rng, attributes, rng.randint(1, 4))
    needles = [next(source) for _ in range(max(2, min(24, room.tokens // 64, 2 * room.turns)))]
    for record in needles:
        room.need(_line(record))
    reserve = room.reserve(max(_turn_cost(room, record) for record in needles))
    filler = language.filler(rng, room, reserve)
    sentences, where = insert_anywhere(rng, filler, [record.statement() for record in needles])
    place = {record: i / len(sentences) for record, i in zip(needles, where)}

    def turn(record):
        return Turn(record.question(), _reply(record), (record.value,), "last", (place[record],))

    return Sample("retrieval", "needle", language.join(rng, sentences), ask_about(rng, room, turn, needles))


VARIANTS = {f.__name__: f for f in (one_key, two_keys, many_values, many_keys, needle)}
