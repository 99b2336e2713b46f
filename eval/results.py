"""Result files of `witan eval` and `witan perplexity`, and what can be counted in them; README.md describes a line."""

import collections
import dataclasses
import json
import math
import pathlib

FORMAT = "witan-eval-1"

_MOST_LENGTHS = 12  # of a task, that are told apart; LongGenBench has another one in every sample
_PLACES = 10  # of a document: tenths


class ResultsError(Exception):
    """A file is not what it should be; the message names it."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A task that ran."""

    id: str
    task: str  # "", variant "" and length 0 where the task has none
    variant: str
    length: int
    correct: list[bool | None]  # None: the reply gives nothing there
    answers: list[str]
    positions: list[float]  # empty, or one per answer
    generated_tokens: int
    finish_reason: str  # "" of replies that another program made
    reply: str
    kv: dict | None = None  # what a KV policy left, where it dropped something
    kv_reuse: dict | None = None  # what it reused of documents
    first_token_seconds: float | None = None  # since it was submitted; None of earlier releases
    kv_read: dict | None = None  # what generated tokens read, where they choose
    prompt_tokens: int | None = None

    def share_right(self):
        return self.correct.count(True) / len(self.correct)


@dataclasses.dataclass(frozen=True)
class NotRun:
    """A task that did not run, or a line that is none."""

    id: str
    error: str


@dataclasses.dataclass(frozen=True)
class Perplexity:
    file: str
    tokens: int
    window: int
    nll: float | None  # None: no finite number
    value: float | None


@dataclasses.dataclass
class ResultFile:
    path: str
    header: dict
    samples: list[Sample] = dataclasses.field(default_factory=list)
    not_run: list[NotRun] = dataclasses.field(default_factory=list)
    perplexities: list[Perplexity] = dataclasses.field(default_factory=list)
    runs: list[dict] = dataclasses.field(default_factory=list)  # the engine's statistics
    is_cut_off: bool = False  # the last line was incomplete, and is not here

    def traits(self):
        """{name: value} of all that was evaluated, and how; settings by their own names."""
        traits = {key: self.header.get(key) for key in ("model", "architecture", "tasks", "version")}
        return traits | self.header["settings"]


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_text(value):
    return isinstance(value, str)


def _is_list_of(is_item):
    return lambda value: isinstance(value, list) and all(map(is_item, value))


def _is_kv(value):
    counts = ("tokens", "bytes_before", "bytes_after")
    return (isinstance(value, dict) and all(_is_count(value.get(name)) for name in counts)
            and _is_list_of(_is_list_of(_is_count))(value.get("kept")))  # fmt: skip


def _is_kv_read(value):
    return isinstance(value, dict) and all(_is_count(value.get(name)) for name in ("bytes", "bytes_of_all"))


def _is_kv_reuse(value):
    return isinstance(value, dict) and all(_is_count(value.get(name)) for name in ("tokens", "found", "recomputed"))


_HEADER = {"model": _is_text, "settings": lambda value: isinstance(value, dict), "tasks": _is_list_of(_is_text)}
_SAMPLE = {
    "id": _is_text,
    "task": _is_text,
    "variant": _is_text,
    "length": _is_count,
    "correct": _is_list_of(lambda mark: mark is None or isinstance(mark, bool)),
    "answers": _is_list_of(_is_text),
    "positions": _is_list_of(lambda place: _is_number(place) and 0 <= place <= 1),
    "generated_tokens": _is_count,
    "finish_reason": _is_text,
    "reply": _is_text,
    "kv": lambda value: value is None or _is_kv(value),
    "kv_read": lambda value: value is None or _is_kv_read(value),
    "kv_reuse": lambda value: value is None or _is_kv_reuse(value),
    "first_token_seconds": lambda value: value is None or _is_number(value) and value >= 0,
    "prompt_tokens": lambda value: value is None or _is_count(value),
}
_NOT_RUN = {"id": _is_text, "error": _is_text}
_PERPLEXITY = {
    "file": _is_text,
    "tokens": _is_count,
    "window": _is_count,
    "nll": lambda value: value is None or _is_number(value),
    "value": lambda value: value is None or _is_number(value),
}
_DEFAULTS = {"task": "", "variant": "", "length": 0, "positions": [], "kv": None, "kv_read": None,
             "kv_reuse": None, "first_token_seconds": None, "prompt_tokens": None}  # fmt: skip


def _fields(value, checks):
    """The fields that `checks` names, of a JSON object. Raises ValueError naming the first that is not right."""
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    fields = {name: value.get(name, _DEFAULTS.get(name)) for name in checks}
    for name, is_right in checks.items():
        if name not in value and name not in _DEFAULTS:
            raise ValueError(f'no "{name}"')
        if not is_right(fields[name]):
            raise ValueError(f'"{name}" is {json.dumps(fields[name])[:60]}')
    return fields


def _sample(value):
    sample = Sample(**_fields(value, _SAMPLE))
    if len(sample.correct) != len(sample.answers):
        raise ValueError(f'{len(sample.correct)} "correct" for {len(sample.answers)} "answers"')
    if sample.positions and len(sample.positions) != len(sample.answers):
        raise ValueError(f'{len(sample.positions)} "positions" for {len(sample.answers)} "answers"')
    return sample


def _header(value):
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f'no header of results of witan eval ("format": "{FORMAT}")')
    _fields(value, _HEADER)
    return value


def _add(value, found):
    """A line after the header."""
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    if "error" in value:
        found.not_run.append(NotRun(**_fields(value, _NOT_RUN)))
    elif "id" in value:
        found.samples.append(_sample(value))
    elif "perplexity" in value:
        found.perplexities.append(Perplexity(**_fields(value["perplexity"], _PERPLEXITY)))
    elif isinstance(value.get("run"), dict):
        found.runs.append(value["run"])
    else:
        raise ValueError('no "id", "error" or "perplexity", and no object "run"')


def read(path):
    """The ResultFile at `path`. Raises ResultsError naming file and line, and OSError."""
    *lines, rest = pathlib.Path(path).read_bytes().split(b"\n")
    found = None
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if found is not None and number > len(lines):
                found.is_cut_off = True
                break
            raise ResultsError(f"{path}: line {number}: not JSON in UTF-8") from error
        try:
            if found is None:
                found = ResultFile(str(path), _header(value))
            else:
                _add(value, found)
        except ValueError as error:
            raise ResultsError(f"{path}: line {number}: {error}") from error
    if found is None:
        raise ResultsError(f"{path}: empty")
    found.samples = list({sample.id: sample for sample in found.samples}.values())  # the last of an id counts
    ran = {sample.id for sample in found.samples}
    found.not_run = list({one.id: one for one in found.not_run if one.id not in ran}.values())
    return found


def short(value):
    """A trait's value for people; of paths, the last part."""
    if isinstance(value, str):
        return pathlib.PurePath(value).name or value or "none"
    if isinstance(value, list):
        return ", ".join(map(short, value)) or "none"
    return json.dumps(value, ensure_ascii=False) if value is not None else "none"


def common_traits(files):
    """{name: value} of what is the same in all."""
    first, *others = (file.traits() for file in files)
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def names(files):
    """What tells each file from the others: the traits in which they differ, or the path where none does."""
    common = common_traits(files)
    differing = dict.fromkeys(key for file in files for key in file.traits() if key not in common)
    found = []
    for file in files:
        traits = file.traits()
        parts = [short(traits.get(key)) if key == "model" else f"{key} {short(traits.get(key))}" for key in differing]
        found.append(", ".join(parts))
    return [name if found.count(name) == 1 else ", ".join(filter(None, (name, file.path)))
            for name, file in zip(found, files)]  # fmt: skip


@dataclasses.dataclass
class Share:
    """So many of so many."""

    part: int = 0
    whole: int = 0

    def add(self, part, whole=1):
        self.part += part
        self.whole += whole

    @property
    def value(self):
        return self.part / self.whole

    def interval(self):
        """The 95 % interval of Wilson, "Probable inference, the law of succession, and statistical inference", 1927."""
        z = 1.959964  # of the normal distribution's middle 95 %
        n, p = self.whole, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


class Tally:
    """Of a group of samples."""

    def __init__(self, samples):
        self.num_samples = len(samples)
        self.right, self.given = Share(), Share()
        for sample in samples:
            self.right.add(sample.correct.count(True), len(sample.correct))
            self.given.add(len(sample.correct) - sample.correct.count(None), len(sample.correct))
        ran_here = [sample for sample in samples if sample.finish_reason]
        self.num_cut_off = sum(sample.finish_reason == "length" for sample in ran_here)
        self.mean_tokens = sum(s.generated_tokens for s in ran_here) / len(ran_here) if ran_here else None


def groups(samples, key):
    """{key(sample): samples}, in the order in which the keys appear."""
    found = collections.defaultdict(list)
    for sample in samples:
        found[key(sample)].append(sample)
    return dict(found)


def length_groups(samples):
    """A function from lengths to those shown: the same, or the nearest power of two where there are too many."""
    if len({sample.length for sample in samples}) <= _MOST_LENGTHS:
        return lambda length: length
    return lambda length: 2 ** round(math.log2(length)) if length > 0 else 0


def _shares(pairs):
    """{key: Share} in the order of keys, of (key, mark) pairs."""
    found = collections.defaultdict(Share)
    for key, mark in pairs:
        found[key].add(mark is True)
    return dict(sorted(found.items()))


def by_length(samples, shown_length):
    return _shares((shown_length(s.length), mark) for s in samples if s.length > 0 for mark in s.correct)


def by_index(samples):
    """By the answer's number in its reply, from 1, of samples with several."""
    return _shares((i, mark) for s in samples if len(s.correct) > 1 for i, mark in enumerate(s.correct, start=1))


def by_place(samples):
    """By the tenth of the document, from 0, in which an answer's evidence lies."""
    return _shares((min(int(place * _PLACES), _PLACES - 1), mark)
                   for s in samples for place, mark in zip(s.positions, s.correct))  # fmt: skip


def throughput(runs, tokens, seconds):
    """Tokens per second over all runs, by the names of two statistics; None where there are none."""
    with_both = [run for run in runs if _is_number(run.get(tokens)) and _is_number(run.get(seconds))]
    time = sum(run[seconds] for run in with_both)
    return sum(run[tokens] for run in with_both) / time if time > 0 else None


def largest(runs, name):
    """A statistic's largest value over all runs; None where there is none."""
    return max((run[name] for run in runs if _is_number(run.get(name))), default=None)
