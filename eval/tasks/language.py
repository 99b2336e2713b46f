"""Plain language: short stories from a grammar, for sentences to come out as sentences, and as filler for needles."""

import re

from . import lexicon
from .sample import NoRoom, Sample

_PRONOUN = {True: ("She", "she", "her"), False: ("He", "he", "his")}
_WOMEN = frozenset("""
    Ada Alice Amy Anna Beth Carol Clara Diana Dora Doris Ella Emma Erin Eva Fiona Gina Grace Helen Ida Iris Jane Jean Jill
    Joan Judy Julia Karen Kate Lara Laura Linda Lisa Lucy Mara Maria Mary Mia Molly Nancy Nina Nora Olga Paula Rachel Rita
    Rosa Rose Ruth Sandra Sara Sofia Sonia Susan Tanya Tina Vera Wendy Zoe
""".split())  # fmt: skip


_A_BEFORE_VOWEL = re.compile(r"\b([Aa])( [aeiou])")


class _Story:
    """A person, a friend, a place and a thing, about which each sentence says something that fits."""

    def __init__(self, rng):
        self.rng = rng
        self.hero, self.friend = rng.sample(lexicon.NAMES, 2)
        self.She, self.she, self.her = _PRONOUN[self.hero in _WOMEN]
        self.place, self.other_place = rng.sample(lexicon.PLACES, 2)
        self.thing = rng.choice(lexicon.THINGS)
        self.color = rng.choice(lexicon.COLORS)
        self.food, self.other_food = rng.sample(lexicon.FOODS, 2)
        self.animal = rng.choice(lexicon.ANIMALS)
        self.adjective, self.other_adjective = rng.sample(lexicon.ADJECTIVES, 2)
        self.town = rng.choice(lexicon.TOWNS)
        self.day = rng.choice(lexicon.DAYS)
        self.month = rng.choice(lexicon.MONTHS)

    OPENINGS = (
        "For a year {hero} lived in {town} near the {place}.",
        "On {day} {hero} went to the {place} in {town}.",
        "Once there was a man named {friend} who had a {adjective} {animal}, and {hero} was with him.",
        "In {month} {hero} walked to the {place} with {friend}.",
        "Both {hero} and {friend} were good friends and worked in the same {place}.",
        "This is the story of {hero}, who wanted a {color} {thing}.",
    )
    MIDDLE = (
        "{She} saw a {adjective} {animal} behind the {other_place}.",
        "{She} bought a {color} {thing} for {her} friend {friend}.",
        "{friend} asked {hero} for some {food}.",
        "The {animal} was {adjective} and ate all the {food}.",
        "{She} lost {her} {thing} on the way to the {other_place}.",
        "{friend} found the {thing} under a {color} {other_thing}.",
        "The weather was {adjective}, so {she} stayed inside and ate {food} with {other_food}.",
        "{She} likes {food} more than {other_food}.",
        "When the rain stopped, {hero} walked slowly back to the {place}.",
        "{She} told {friend} about the {animal}, and they laughed together.",
        "The {place} was closed because it was {day}.",
        "{friend} gave {hero} the {color} {thing} and said thank you.",
        "There was nothing left in the {other_place} but a {adjective} {other_thing}.",
        "{She} thought that the {thing} was too {adjective} and put it back.",
        "After that they looked for the {animal} in the {other_place}, but it was not there.",
        "{She} did not know why {friend} was so {adjective}.",
        "Every {day} {she} sings a song for the {animal}.",
        "{hero} opened the door of the {other_place} and heard some music.",
        "They talked about {town} until late in the evening.",
        "{She} has a {adjective} {other_thing} made of {color} glass.",
    )
    ENDINGS = (
        "In the end {hero} went home and was very {other_adjective}.",
        "Then it was night, and {she} closed the door of the {place}.",
        "From that day on they meet at the {place} every {day}.",
        "That was the best day of the year for {hero}.",
        "{hero} smiled, and everyone was {other_adjective} again.",
        "It was a {other_adjective} day, and they will remember it.",
    )

    def sentence(self, templates):
        text = self.rng.choice(templates).format(**vars(self), other_thing=self.rng.choice(lexicon.THINGS))
        return _A_BEFORE_VOWEL.sub(r"\1n\2", text)

    def sentences(self):
        middle = self.rng.sample(self.MIDDLE, self.rng.randint(2, 6))
        return [self.sentence(self.OPENINGS), *map(self.sentence, ([text] for text in middle)), self.sentence(self.ENDINGS)]


def filler(rng, room, reserve):
    """Sentences of stories, for join(), until less than `reserve` tokens of the room are left."""
    sentences = []
    while True:
        for sentence in _Story(rng).sentences():
            if room.left - room.count(sentence + "\n") < reserve:
                return sentences
            room.need(sentence + "\n")
            sentences.append(sentence)


def join(rng, sentences):
    """Paragraphs of the sentences. No paragraph begins with a name: it is one token only after a space."""
    parts = []
    for sentence, following in zip(sentences, [*sentences[1:], "The"]):
        ends = following == "The" or (rng.random() < 0.2 and following.split()[0] in lexicon.OPENING)
        parts.append(sentence + ("\n" if ends else " "))
    return "".join(parts)


def story(rng, room):
    """Stories, each in a paragraph, as text to learn."""
    paragraphs = []
    while True:
        paragraph = " ".join(_Story(rng).sentences()) + "\n"
        if not room.take(paragraph):
            break
        paragraphs.append(paragraph)
    if not paragraphs:
        raise NoRoom(f"{room.tokens} tokens")
    return Sample("language", "story", "".join(paragraphs), ())


VARIANTS = {"story": story}
