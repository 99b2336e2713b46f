"""A page of HTML from result files: tables, plots and examples, with all that it needs inside."""

import collections.abc
import dataclasses
import html
import math
import pathlib

import plots
import results

_STYLE = pathlib.Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_POLICY = "default-src 'none';style-src 'unsafe-inline'"  # whatever a file holds, nothing is loaded and no script runs

_LONGEST_REPLY = 4000  # characters of an example
_LONGEST_LABEL = 13  # characters beside a plot

_MARKS = {True: ("right", "✓"), False: ("wrong", "✗"), None: ("missing", "–")}

_INTERVALS = (
    "Intervals are Wilson's at 95 % and take every answer for a sample of its own; answers of one reply depend on each "
    "other, so where replies have several, the true interval is wider."
)


def text(value):
    return html.escape(str(value))


def percent(share):
    return plots.percent(share) if share.whole else "–"


def interval(share):
    if not share.whole:
        return "–"
    low, high = share.interval()
    return f"{100 * low:.1f}–{100 * high:.1f} %"


def number(value, digits=0):
    return "–" if value is None else f"{value:,.{digits}f}"


def mebibytes(value):
    return "–" if value is None else f"{value / 2**20:,.1f} MiB"


def table(label, head, rows):
    """Of texts that are HTML; the first cell of a row is its heading. It scrolls by itself where it is too wide."""
    parts = [f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}"><table><thead><tr>']
    parts += [f'<th scope="col">{cell}</th>' for cell in head]
    parts.append("</tr></thead><tbody>")
    for first, *cells in rows:
        parts.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "".join(parts) + "</tbody></table></div>"


def note(content):
    return f'<p class="note">{text(content)}</p>'


def settings(files):
    """What is the same in all of the files."""
    rows = []
    for name, value in results.common_traits(files).items():
        if value not in ("", []):
            value = value if isinstance(value, str) else results.short(value)
            rows.append(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>")
    return "<dl>" + "".join(rows) + "</dl>"


def task_name(task):
    return task or "(no task name)"


def page(files, title=None):
    """The page of these result files."""
    models = dict.fromkeys(results.short(file.header["model"]) for file in files)
    title = title or "Results of " + ", ".join(models)
    tasks = [file for file in files if file.samples or file.not_run or not file.perplexities]
    perplexities = [file for file in files if file.perplexities]
    body = [f"<h1>{text(title)}</h1>"]
    for file in files:
        if file.is_cut_off:
            body.append(note(f"{file.path}: its last line is incomplete and left out; the run was interrupted."))
    if tasks:
        body += _Tasks(tasks).sections()
    if perplexities:
        body += _perplexity(perplexities, results.common_traits(tasks) if tasks else None)
    return document(title, body)


def document(title, body):
    """A page with this title, of the HTML texts in `body`."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title>\n<style>\n{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _perplexity(files, shown_traits):
    names = results.names(files) if len(files) > 1 else [""]
    rows = []
    for file, name in zip(files, names):
        for one in file.perplexities:
            heading = text(results.short(one.file)) + (f"<br>{text(name)}" if name else "")
            rows.append((heading, number(one.value, 4), number(one.nll, 5), number(one.tokens), number(one.window)))
    yield "<h2>Perplexity</h2>"
    if results.common_traits(files) != shown_traits:
        yield settings(files)
    yield table("Perplexity", ("text", "perplexity", "nats per token", "tokens", "window (tokens)"), rows)


@dataclasses.dataclass(frozen=True)
class _Plot:
    """Shares along an axis."""

    heading: str
    note: str
    shares_of: collections.abc.Callable  # (samples, shown_length) -> {key: Share}
    axis_of: collections.abc.Callable  # keys -> plots.Axis
    x_of: collections.abc.Callable  # key -> place on the axis
    name_of: collections.abc.Callable  # key -> str
    is_together: bool = False  # all tasks of one file

    def line(self, style, label, shares):
        return plots.Line(style, label, [(self.x_of(key), share, self.name_of(key)) for key, share in shares.items()])


_PLOTS = (
    _Plot(
        "Right answers by length",
        "Vertical lines are 95 % intervals.",
        results.by_length,
        plots.length_axis,
        math.log2,
        "{} tokens".format,
        is_together=True,
    ),
    _Plot(
        "Right answers by their number in the reply",
        "Of replies with several answers; not all may have as many, so that later ones can be fewer.",
        lambda samples, _: results.by_index(samples),
        lambda numbers: plots.index_axis(max(numbers)),
        float,
        "answer {}".format,
    ),
    _Plot(
        "Right answers by place of the evidence",
        "By tenths of the document; 0 % is its beginning.",
        lambda samples, _: results.by_place(samples),
        lambda _: plots.place_axis(),
        lambda tenth: tenth + 0.5,
        lambda tenth: f"{10 * tenth} to {10 * tenth + 10} %",
    ),
)


class _Tasks:
    """The part of a page about files with tasks. Where there are several, they are A, B, C ... with names."""

    def __init__(self, files):
        self.files = files
        self.is_several = len(files) > 1
        self.letters = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(files))]
        self.names = results.names(files)
        self.by_task = [results.groups(file.samples, lambda sample: sample.task) for file in files]
        self.tasks = sorted({task for groups in self.by_task for task in groups})
        self.shown_length = {task: results.length_groups(self._all_samples(task)) for task in self.tasks}

    def sections(self):
        yield from self._head()
        yield self._summary()
        yield from self._not_run()
        if self.tasks:
            yield from self._plots()
            yield from self._tables()
            yield from self._examples()

    def _all_samples(self, task):
        return [sample for groups in self.by_task for sample in groups.get(task, ())]

    def _legend(self, names):
        items = [f"<li>{plots.swatch(i)}<span>{text(name)}</span></li>" for i, name in enumerate(names)]
        return f'<ul class="legend">{"".join(items)}</ul>'

    def _file_legend(self):
        return self._legend(f"{letter}: {name}" for letter, name in zip(self.letters, self.names))

    def _head(self):
        if self.is_several:
            yield self._file_legend()
            if len({frozenset(sample.id for sample in file.samples) for file in self.files}) > 1:
                yield note("Not every task ran in all of them; each counts those that it has.")
            yield note("The same in all:")
        yield settings(self.files)

    def _summary(self):
        columns = []
        for file in self.files:
            tally = results.Tally(file.samples)
            columns.append((
                number(tally.num_samples),
                number(len(file.not_run)),
                number(tally.right.whole),
                percent(tally.right),
                percent(tally.given),
                number(tally.mean_tokens, 1),
                number(tally.num_cut_off),
                number(results.throughput(file.runs, "prompt_tokens", "prefill_seconds")),
                number(results.throughput(file.runs, "decode_tokens", "decode_seconds")),
                mebibytes(results.largest(file.runs, "kv_peak_bytes")),
                mebibytes(results.largest(file.runs, "weight_bytes")),
                _experts(file.runs),
            ))  # fmt: skip
        headings = ("tasks that ran", "tasks that did not run", "answers expected", "answers right",
                    "answers given (completion)", "mean tokens of a reply", "replies cut off", "prefill, tokens/s",
                    "decode, tokens/s", "KV cache, peak", "weights", "experts used")  # fmt: skip
        head = [f'<span class="path">{text(file.path)}</span>' for file in self.files]
        if self.is_several:
            head = [f"{letter}<br>{head}" for letter, head in zip(self.letters, head)]
        explained = note("Right and given are shares of the answers expected; one that is not given counts as wrong. Cut off "
                         "are replies that max_tokens or the context ended.")  # fmt: skip
        return "<h2>Summary</h2>" + table("Summary", ("", *head), zip(headings, *columns)) + explained

    def _not_run(self):
        if not any(file.not_run for file in self.files):
            return
        yield "<h2>Not run</h2>"
        for file in self.files:
            if file.not_run:
                items = "".join(f"<li><b>{text(one.id)}</b>: {text(one.error)}</li>" for one in file.not_run)
                yield f"<details><summary>{text(file.path)}: {len(file.not_run)} not run</summary><ul>{items}</ul></details>"

    def _plots(self):
        for plot in _PLOTS:
            panels = list(self._panels(plot))
            if not panels:
                continue
            yield f"<h2>{plot.heading}</h2>"
            yield note(plot.note)
            is_together = self._is_together(plot)
            if self.is_several:
                yield self._file_legend()
            elif is_together:
                yield self._legend(map(task_name, self.tasks))
            figures = []
            for name, axis, lines in panels:
                drawn = plots.panel(f"{plot.heading}: {name}", axis, lines)
                figures.append(f"<figure><figcaption>{text(name)}</figcaption>{drawn}</figure>")
            yield f'<div class="panels{" single" if is_together else ""}">{"".join(figures)}</div>'

    def _is_together(self, plot):
        return plot.is_together and not self.is_several

    def _panels(self, plot):
        """(name, axis, lines) of each: a line per file for every task, or of one file all tasks together."""
        shares = {}
        for task, shown in self.shown_length.items():
            of_files = [plot.shares_of(groups.get(task, ()), shown) for groups in self.by_task]
            if any(of_files):
                shares[task] = of_files
        styles = {task: i for i, task in enumerate(self.tasks)}
        if self._is_together(plot) and shares:
            axis = plot.axis_of({key for (found,) in shares.values() for key in found})
            yield "all tasks", axis, [plot.line(styles[task], _label(task), found) for task, (found,) in shares.items()]
            return
        for task, of_files in shares.items():
            axis = plot.axis_of({key for found in of_files for key in found})
            if self.is_several:
                lines = [plot.line(i, self.letters[i], found) for i, found in enumerate(of_files) if found]
            else:
                lines = [plot.line(styles[task], "", of_files[0])]
            yield task_name(task), axis, lines

    def _tables(self):
        yield "<h2>Tasks and variants</h2>"
        yield note(_INTERVALS)
        for task in self.tasks:
            shown = self.shown_length[task]
            lengths = sorted({shown(sample.length) for sample in self._all_samples(task)})
            lengths = lengths if len(lengths) > 1 else []
            head = ["variant", "right", "95 % interval", "given", "tasks", "answers", *(f"at {n}" for n in lengths)]
            variants = sorted({sample.variant for sample in self._all_samples(task)})
            rows = []
            for variant in variants + ([None] if len(variants) > 1 else []):
                for letter, groups in zip(self.letters, self.by_task):
                    samples = [s for s in groups.get(task, ()) if variant in (None, s.variant)]
                    heading = "<b>all</b>" if variant is None else text(variant or "–")
                    rows.append(_row(heading + (f"&nbsp;{letter}" if self.is_several else ""), samples, lengths, shown))
            yield f"<h3>{text(task_name(task))}</h3>"
            yield table(task_name(task), head, rows)
            if any(shown(sample.length) != sample.length for sample in self._all_samples(task)):
                yield note("Lengths differ from task to task; each counts at the nearest power of two.")

    def _examples(self):
        yield "<h2>Examples</h2>"
        yield note("Of each task the first reply with the most right answers, and the first with the fewest. "
                   "✓ right, ✗ wrong, – missing.")  # fmt: skip
        for task in self.tasks:
            parts = []
            for letter, groups in zip(self.letters, self.by_task):
                samples = [sample for sample in groups.get(task, ()) if sample.correct]
                if not samples:
                    continue
                best, worst = max(samples, key=results.Sample.share_right), min(samples, key=results.Sample.share_right)
                for sample in [best] if best is worst else [best, worst]:
                    parts.append(_example(f"{letter}: " if self.is_several else "", sample))
            yield f"<details><summary>{text(task_name(task))}</summary>{''.join(parts)}</details>"


def _row(heading, samples, lengths, shown):
    tally, by_length = results.Tally(samples), results.groups(samples, lambda sample: shown(sample.length))
    return (heading, percent(tally.right), interval(tally.right), percent(tally.given), number(tally.num_samples),
            number(tally.right.whole), *(percent(results.Tally(by_length.get(n, [])).right) for n in lengths))  # fmt: skip


def _experts(runs):
    used, there = (results.largest(runs, name) for name in ("distinct_experts", "all_experts"))
    return f"{number(used)} of {number(there)}" if there else "–"


def _label(task):
    name = task_name(task)
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"


def _example(prefix, sample):
    marks = []
    for expected, mark in zip(sample.answers, sample.correct):
        kind, sign = _MARKS[mark]
        marks.append(f'<li><span class="{kind}">{sign}</span> {text(expected)}</li>')
    reply = sample.reply[:_LONGEST_REPLY]
    shortened = note(f"{len(sample.reply) - len(reply)} characters more") if reply != sample.reply else ""
    return (f"<h4>{prefix}{text(sample.id)}: {sample.correct.count(True)} of {len(sample.correct)} right</h4>"
            f'<ul class="marks" aria-label="expected">{"".join(marks)}</ul><pre>{text(reply)}</pre>{shortened}')  # fmt: skip
