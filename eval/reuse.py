"""What the reuse of documents' KV entries costs and gains: the figures of eval/reuse_study, and what they say in words."""

import dataclasses
import json
import math

import plots
import results
from page import document, note, table, text

COMPUTED = "everything computed"
NOTHING = "nothing recomputed"
_BY = {"none": "", "random": "at random", "values": "by values", "routes": "by routing"}


class TasksError(Exception):
    """A file of tasks is not what it should be; the message names it."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Which tokens of documents are computed in full context, of those whose entries could be reused."""

    by: str  # none, random, values, routes; "": all are computed, without a policy
    recompute: float = 0.0  # the share of the tokens
    first: int = 0  # tokens of each document, before others and within that share
    floor: str = ""  # flags of another arithmetic

    def policy(self):
        names = {"none": "epic", "random": "randomblend", "values": "cacheblend", "routes": "routeblend"}
        share = f"recompute={self.recompute:g}," if self.recompute else ""
        return f"{names[self.by]}({share}first={self.first})" if self.by else ""

    def method(self):
        """What a line of a plot has: all but the share."""
        if not self.by:
            return f"{COMPUTED}, {self.floor}" if self.floor else COMPUTED
        parts = [f"the first {self.first}" if self.first else "", _BY[self.by]]
        return ", then ".join(filter(None, parts)) or NOTHING

    def recomputed(self):
        """What is wanted, in words."""
        if self.first and not self.recompute:
            return f"{self.first} tokens each"
        return f"{100 * self.recompute:g} %{' with the first' * bool(self.first)}" if self.by else "100 %"


def settings(shares, first, floor):
    """All that a study runs: what the others are compared with, the noise floor, and then every way to recompute."""
    yield Setting("", floor="")
    yield Setting("", floor=floor)
    yield Setting("none")
    yield Setting("none", first=first)
    for by, some in (("random", 0), ("values", 0), ("routes", 0), ("values", first), ("routes", first)):
        for share in shares:
            yield Setting(by, share, some)


@dataclasses.dataclass(frozen=True)
class Mean:
    """Of values that are independent of each other."""

    value: float
    error: float  # two standard errors; infinite of a single value
    count: int

    @classmethod
    def of(cls, values):
        values = list(values)
        count = len(values)
        mean = sum(values) / count
        if count == 1:
            return cls(mean, math.inf, 1)
        variance = sum((value - mean) ** 2 for value in values) / (count - 1)
        return cls(mean, 2 * math.sqrt(variance / count), count)


class Tasks:
    """Which documents the tasks of a file have. Raises TasksError, OSError and UnicodeDecodeError."""

    def __init__(self, path):
        self.texts = {}  # by id: a number for each set of documents
        self.found = set()  # ids of tasks whose documents were all in tasks before
        numbers, seen = {}, set()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                task = json.loads(line)
                documents, name = task.get("documents"), task["id"]
            except (ValueError, KeyError, AttributeError) as error:
                raise TasksError(f"{path}: line {number}: no task") from error
            if not documents:
                raise TasksError(f'{path}: line {number}: no "documents"')
            self.texts[name] = numbers.setdefault(tuple(sorted(documents)), len(numbers))
            if seen.issuperset(documents):
                self.found.add(name)
            seen.update(documents)


class Study:
    """Results of all settings, of the same tasks; those that the model refused are not among them."""

    def __init__(self, tasks, found):
        """`found`: {Setting: samples}, of which the first two are what others are compared with, and the noise floor."""
        self.tasks = tasks
        self.found = {setting: {sample.id: sample for sample in samples} for setting, samples in found.items()}
        self.reference, self.floor = list(self.found)[:2]

    def is_same(self, sample):
        return sample.reply == self.found[self.reference][sample.id].reply

    def right(self, setting):
        return results.Tally(list(self.found[setting].values())).right

    def same(self, setting):
        share = results.Share()
        for sample in self.found[setting].values():
            share.add(self.is_same(sample))
        return share

    def first_token(self, setting):
        """Seconds to the first token, of the tasks whose documents were found; None where there are none."""
        seconds = [self.found[setting][name].first_token_seconds for name in sorted(self.tasks.found)]
        seconds = [one for one in seconds if one is not None]
        return Mean.of(seconds) if seconds else None

    def computed_again(self, setting):
        """Share of the tokens with reused entries that were computed again; None where no document was reused."""
        told = [sample.kv_reuse for sample in self.found[setting].values() if sample.kv_reuse]
        tokens = sum(one["tokens"] for one in told)
        return sum(one["recomputed"] for one in told) / tokens if tokens else None

    def noise(self, measure):
        """How much another arithmetic changes a measure of a reply, on average."""
        reference = self.found[self.reference]
        changes = [abs(measure(sample) - measure(reference[name])) for name, sample in self.found[self.floor].items()]
        return sum(changes) / len(changes)

    def difference(self, pairs, measure):
        """Mean by which a measure of a reply is larger with the first of each pair of settings. Tasks with the same documents
        are no samples of their own: each text counts once."""
        by_text = {}
        for one, other in pairs:
            for name, sample in self.found[one].items():
                change = measure(sample) - measure(self.found[other][name])
                by_text.setdefault(self.tasks.texts[name], []).append(change)
        return Mean.of(sum(changes) / len(changes) for changes in by_text.values())

    def pairs(self, one, other):
        """Settings that differ in what chooses the tokens, `one` or `other`, and in nothing else."""
        same = [(setting, dataclasses.replace(setting, by=other)) for setting in self.found if setting.by == one]
        return [pair for pair in same if pair[1] in self.found]

    def measures(self):
        return {"replies word for word": self.is_same, "right answers": lambda sample: sample.share_right()}


_NAMES = {"routes": "Routing", "values": "Values", "random": "Chance"}
_COMPARED = (("routes", "values"), ("values", "random"), ("routes", "random"))


def _winner(one, other, difference, noise):
    """Which of two is better: one, other or neither, None."""
    if abs(difference.value) <= max(difference.error, noise):
        return None
    return one if difference.value > 0 else other


def _points(difference):
    error = f" ± {100 * difference.error:.1f}" if difference.count > 1 else ", of a single text"
    return f"{100 * difference.value:+.1f} points{error}"


def comparisons(study):
    """[dict] of each pair of ways to choose tokens, at each share and over all, by each measure."""
    found = []
    for one, other in _COMPARED:
        pairs = study.pairs(one, other)
        for chosen in [*([pair] for pair in pairs), *([pairs] if len(pairs) > 1 else [])]:
            for measure, of_sample in study.measures().items():
                difference, noise = study.difference(chosen, of_sample), study.noise(of_sample)
                found.append({"one": one, "other": other, "measure": measure,
                              "is_overall": len(chosen) == len(pairs),
                              "recomputed": chosen[0][0].recomputed() if len(chosen) == 1 else "every share",
                              "difference": difference, "noise": noise,
                              "better": _winner(one, other, difference, noise)})  # fmt: skip
    return found


def in_words(study):
    """What the figures say, a sentence or two each: at every share for routing against values, which is what the last is on,
    over all shares for the others."""
    reference, (same, right) = study.found[study.reference], map(study.noise, study.measures().values())
    changed = study.same(study.floor)
    yield (f"Noise floor: {study.floor.floor} alone changes the words of {changed.whole - changed.part} of {changed.whole} "
           f"replies ({100 * same:.1f} %), and whether answers are right of {100 * right:.1f} %. Differences that are no "
           "larger say nothing.")  # fmt: skip
    if not study.right(study.reference).part:
        yield "Nothing is right with everything computed: these tasks are too hard for the model to tell methods apart."
    every = comparisons(study)
    for found in every:
        if found["is_overall"] or found["one"] == "routes" and found["other"] == "values":
            yield (f"{_NAMES[found['one']]} against {_NAMES[found['other']].lower()}, {found['recomputed']} recomputed: "
                   f"{found['measure']} {_points(found['difference'])}, {_said(found)}.")  # fmt: skip
    yield _verdict(every, len(set(study.tasks.texts[name] for name in reference)))


def _said(found):
    if found["better"]:
        return f"{_NAMES[found['better']].lower()} {'are' if found['better'] == 'values' else 'is'} better"
    if found["difference"].value == found["difference"].error == 0:
        return "no difference in any text"
    if abs(found["difference"].value) <= found["difference"].error:
        return "which may be chance"
    return "which is within the noise floor"


def _verdict(every, num_texts):
    overall = [found for found in every if found["is_overall"] and (found["one"], found["other"]) == ("routes", "values")]
    if not overall:
        return "No verdict on routing against values: not both ran."
    winners = {found["better"] for found in overall} - {None}
    figures = " and ".join(f"{found['measure']} {_points(found['difference'])}" for found in overall)
    if winners == {"routes"}:
        said = "Routing beats values at equal recomputation, beyond the noise floor"
    elif winners == {"values"}:
        said = "Values beat routing at equal recomputation, beyond the noise floor"
    elif winners:
        said = "Routing and values are each better by one measure, beyond the noise floor"
    elif all(found["difference"].value == found["difference"].error == 0 for found in overall):
        said = "No verdict on routing against values: no text tells them apart; take tasks that reuse makes harder"
    else:
        said = "Routing does not beat values at equal recomputation, nor values routing: what differs is within the noise"
    return f"{said} ({figures}; two standard errors over {num_texts} texts)."


_HEAD = ("method", "recomputed", "right answers", "replies word for word", "first token")


def _share(share):
    low, high = share.interval()
    return f"{plots.percent(share)} ({share.part} of {share.whole}; {100 * low:.1f} to {100 * high:.1f})"


def rows(study):
    """Of the table: texts, without the head."""
    for setting in study.found:
        seconds = study.first_token(setting)
        time = f"{1000 * seconds.value:.1f} ± {1000 * seconds.error:.1f} ms ({seconds.count})" if seconds else "–"
        same = "" if setting is study.reference else _share(study.same(setting))
        again = study.computed_again(setting)
        told = f"{setting.recomputed()} ({100 * again:.1f} %)" if again is not None else setting.recomputed()
        yield setting.method(), told, _share(study.right(setting)), same, time


NOTES = (
    "Recomputed, in brackets: tokens computed again, and those between documents, over tokens with reused entries. What is "
    "behind a document's last whole block of 32 is computed in any case.",
    "Replies word for word are those of everything computed. In brackets: the number, and the 95 % interval (Wilson), which "
    "takes every task for a sample of its own; tasks with the same documents depend on each other, so the true one is wider. "
    "The comparisons in words count each text once.",
    "First token: mean and two standard errors over the tasks whose documents were all in tasks before, one at a time. The "
    "prefix cache helps every row where prompts begin alike.",
)


def markdown(study, refused):
    lines = [_HEAD, ["---"] * len(_HEAD), *rows(study)]
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in lines), *NOTES]
    parts.append("\n".join(f"- {sentence}" for sentence in [*_left_out(refused), *in_words(study)]))
    return "\n\n".join(parts) + "\n"


def _left_out(refused):
    if refused:
        yield f"Left out, as the model refused: {', '.join(setting.policy() for setting in refused)}."


def _mean(mean):
    return {"value": mean.value, "error": mean.error if math.isfinite(mean.error) else None, "count": mean.count}


def as_json(study, refused):
    """All figures, for programs; errors are two standard errors."""

    def of_share(share):
        return {"part": share.part, "whole": share.whole, "interval": share.interval()}

    runs = []
    for setting in study.found:
        seconds = study.first_token(setting)
        runs.append({"method": setting.method(), "policy": setting.policy(), "by": setting.by, "recompute": setting.recompute,
                     "first": setting.first, "computed_again": study.computed_again(setting), "right": of_share(study.right(setting)), "same": of_share(study.same(setting)),
                     "first_token_seconds": _mean(seconds) if seconds else None})  # fmt: skip
    compared = [found | {"difference": _mean(found["difference"])} for found in comparisons(study)]
    return {"runs": runs, "refused": [setting.policy() for setting in refused], "comparisons": compared,
            "noise": {name: study.noise(measure) for name, measure in study.measures().items()},
            "words": list(in_words(study))}  # fmt: skip


def _lines(study, share_of):
    """Of a plot, by the share that is recomputed; those that recompute the same first tokens begin together."""
    methods = {}
    for setting in study.found:
        if setting.by:
            methods.setdefault(setting.method(), []).append(setting)
    starts = {setting.first: setting for setting in study.found if setting.by == "none"}
    for style, (method, chosen) in enumerate(methods.items()):
        start = starts.get(chosen[0].first)
        points = dict.fromkeys([*([start] if start else []), *chosen])
        yield plots.Line(style, "", [(setting.recompute, share_of(setting), f"{method}, {setting.recomputed()}")
                                     for setting in sorted(points, key=lambda setting: setting.recompute)])  # fmt: skip


def _plots(study):
    shares = sorted({setting.recompute for setting in study.found if setting.by})
    if not shares:
        return
    yield "<h2>By the share of the documents' tokens that is recomputed</h2>"
    methods = dict.fromkeys(setting.method() for setting in study.found if setting.by)
    items = [f"<li>{plots.swatch(i)}<span>{text(name)}</span></li>" for i, name in enumerate(methods)]
    yield f'<ul class="legend">{"".join(items)}</ul>'
    axis = plots.Axis("tokens recomputed (%)", shares[0] - 0.02, shares[-1] + 0.02,
                      [(share, f"{100 * share:g}") for share in shares])  # fmt: skip
    figures = []
    for name, share_of in (("replies word for word", study.same), ("right answers", study.right)):
        drawn = plots.panel(f"{name} by the share recomputed", axis, list(_lines(study, share_of)), name)
        figures.append(f"<figure><figcaption>{text(name)}</figcaption>{drawn}</figure>")
    yield f'<div class="panels">{"".join(figures)}</div>'


def page(study, refused, title):
    body = [f"<h1>{text(title)}</h1>", "<h2>In words</h2>"]
    body.append("<ul>" + "".join(f"<li>{text(one)}</li>" for one in [*_left_out(refused), *in_words(study)]) + "</ul>")
    body += _plots(study)
    body.append("<h2>All figures</h2>")
    body.append(table("All figures", _HEAD, [tuple(map(text, row)) for row in rows(study)]))
    body += map(note, NOTES)
    return document(title, body)
