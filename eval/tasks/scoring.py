"""How replies are scored, exactly: what is not there is wrong, and what comes in another place is too.

A rule turns a reply into the list of values that it gives; each is compared with the value expected in the same place.
"""

import re

_WORD = re.compile(r"-?\d[\d,]*(?:\.\d+)?|[A-Za-z]+")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_LABEL = re.compile(r"Answer_(\d+)\s*:")


def normalize(value):
    """Numbers without commas, trailing zeros and signs of plus; words in lower case."""
    value = value.strip()
    if not _NUMBER.fullmatch(value):
        return value.lower()
    value = value.replace(",", "")
    return value.rstrip("0").rstrip(".") if "." in value else value


def _last(text, expected):
    """The last number of the text where a number is expected, its last word otherwise; None where there is none."""
    pattern = _NUMBER if _NUMBER.fullmatch(expected) else _WORD
    # "12-3" is a range or a difference: a sign follows no digit.
    found = pattern.findall(re.sub(r"(?<=\d)-(?=\d)", " ", text))
    return found[-1] if found else None


def _by_parts(parts, expected):
    return [_last(part, value) for part, value in zip(parts, expected)]


def last(reply, expected):
    """One value: the last of the reply."""
    return [_last(reply, expected[0])]


def each(reply, expected):
    """The last value of each sentence."""
    return _by_parts([part for part in re.split(r"[.;]\s+|[.;]?\n|[.;]$", reply) if part.strip()], expected)


def items(reply, expected):
    """The items of a comma-separated list, after a colon where there is one."""
    return _by_parts(reply.strip().rstrip(".").rpartition(":")[2].split(","), expected)


def numbered(reply, expected, first_label=1):
    """The last value of each block `Answer_N: ...`, by its number; the first block of a number counts."""
    blocks = {}
    labels = [*_LABEL.finditer(reply)]
    for label, following in zip(labels, [*labels[1:], None]):
        blocks.setdefault(int(label[1]), reply[label.end() : following.start() if following else len(reply)])
    return [_last(blocks.get(i, ""), value) for i, value in enumerate(expected, first_label)]


def text(reply, expected):
    """One value: the whole reply after a colon, white space as one space."""
    found = " ".join(reply.partition(":")[2].split()).rstrip(".") if ":" in reply else ""
    return [found or None]


def contains(reply, expected):
    """The values that appear anywhere in the reply, whatever else it says: as RULER scores."""
    return [value if value.lower() in reply.lower() else None for value in expected]


RULES = {rule.__name__: rule for rule in (last, each, items, numbered, text, contains)}


def score(reply, expected, rule, first_label=1):
    """For each expected value whether the reply gives it in its place; None where the reply gives nothing there.

    first_label: the number of the first answer, for the rule `numbered`.
    """
    found = numbered(reply, expected, first_label) if rule == "numbered" else RULES[rule](reply, expected)
    found += [None] * (len(expected) - len(found))
    return [None if f is None else normalize(f) == normalize(e) for f, e in zip(found, expected)]
