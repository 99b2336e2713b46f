"""What a generated task is: a document, questions on it, and the replies expected.

A generator is a function (rng, room) -> Sample. It draws everything from `rng` (random.Random), so that equal seeds give
equal samples, and fills `room` (how long the sample may be, and how many questions it asks).
"""

import dataclasses
import itertools
import random
from collections.abc import Callable

MARKUP_TOKENS = 12  # at most what a chat template or "Question:", "Answer:" adds to a question and its reply

# Between samples of one purpose and another nothing is shared but the generators: their seeds begin differently.
TRAIN, EVAL = "train", "eval"


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question and its reply."""

    question: str
    answer: str  # the whole reply, reasoning included, as witan-tiny learns to give it
    values: tuple[str, ...]  # what counts in the reply, in order
    scoring: str  # how values are found in a reply: a rule of witan eval (README.md)
    evidence: tuple[float, ...] = ()  # where in the document each value is decided, 0 (start) to 1; empty: nowhere
    labelled: bool = True  # in the raw form, "Question: " and "Answer: " go before question and reply


@dataclasses.dataclass(frozen=True)
class Sample:
    task: str
    variant: str
    document: str  # ends with a newline, or is empty
    turns: tuple[Turn, ...]  # none: the document itself is the text to learn

    def first_user_text(self):
        return self.document + self.turns[0].question

    def messages(self):
        """The turns as chat messages; the last is a reply."""
        messages = []
        for i, turn in enumerate(self.turns):
            messages.append({"role": "user", "content": self.first_user_text() if i == 0 else turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def raw_parts(self):
        """The raw form as (text, reply) pairs; their concatenation is the whole text."""
        if not self.turns:
            return [("", self.document)]
        parts = []
        for i, turn in enumerate(self.turns):
            document = self.document if i == 0 else ""
            if turn.labelled:
                parts.append((f"{document}Question: {turn.question}\nAnswer:", f" {turn.answer}\n"))
            else:
                parts.append((f"{document}{turn.question}\n", f"{turn.answer}\n"))
        return parts


class NoRoom(Exception):
    """The room is too small for even the shortest sample of this kind."""


@dataclasses.dataclass
class Room:
    """The space of one sample: document, questions, replies and markup together take at most `tokens`."""

    tokens: int
    count: Callable[[str], int]  # tokens of a text; additive over lines
    turns: int = 1  # questions to ask, where the task has room for them

    def __post_init__(self):
        self.left = self.tokens

    def take(self, *texts, markup=0):
        """Takes the room of the texts; False, and nothing taken, where they do not fit."""
        cost = markup + sum(self.count(text) for text in texts)
        if cost > self.left:
            return False
        self.left -= cost
        return True

    def reserve(self, per_turn):
        """Tokens to leave for the turns when filling the document: at most half of the room, or it would be no document."""
        return min(self.turns * per_turn, self.left // 2)

    def take_turn(self, turn):
        return self.take(turn.question, turn.answer, markup=MARKUP_TOKENS)

    def need(self, *texts, markup=0):
        if not self.take(*texts, markup=markup):
            raise NoRoom(f"{self.tokens} tokens")


def rng_of(purpose, *names):
    """The random numbers of one sample: the same for the same names, in every Python since 3.2."""
    return random.Random("/".join(map(str, (purpose, *names))))


def fill_turns(room, turns):
    """As many of `turns`, which are made one by one, as are wanted and fit, at least one."""
    taken = []
    try:
        for turn in itertools.takewhile(room.take_turn, itertools.islice(turns, room.turns)):
            taken.append(turn)
    except NoRoom:  # too little is left to make another one
        pass
    if not taken:
        raise NoRoom(f"{room.tokens} tokens")
    return tuple(taken)


def ask_about(rng, room, make_turn, subjects):
    """Turns made by make_turn(subject), for as many randomly chosen subjects as are wanted and fit, at least one."""
    return fill_turns(room, map(make_turn, rng.sample(subjects, min(len(subjects), room.turns))))


def insert_anywhere(rng, lines, extra):
    """`lines` with each of `extra` put in at a random place, in order; returns (lines, index of each extra one)."""
    places = sorted(rng.randint(0, len(lines)) for _ in extra)
    result, where, taken = [], [], 0
    for place, line in zip(places, extra):
        result += lines[taken:place]
        taken = place
        where.append(len(result))
        result.append(line)
    return result + lines[taken:], where
