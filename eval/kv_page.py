"""A page of HTML from the results of eval/kv_sweep: accuracy against the KV cache's bytes, by method and task."""

import dataclasses
import math

import kv_advice
import plots
import results
from kv_advice import budget_name
from page import document, note, number, percent, table, task_name, text

DENSE = "dense"
_UNHARMED = 0.95  # of dense accuracy
_MOST_CURVES = 10  # of methods in a plot: more cannot be told apart
_BYTES = (0.5, 0.3, 0.2, 0.1, 0.05)  # shares of the cache, of which the best method is told


@dataclasses.dataclass
class Run:
    """One method at one budget."""

    method: str
    budget: str  # as kv_sweep was given it; "" of dense
    samples: list
    policy: str = ""  # its text, where the results say
    bytes_before: dict = dataclasses.field(default_factory=dict)  # by sample, as far as any run of the sweep says

    def __post_init__(self):
        self.by_task = {task: results.Tally(found) for task, found in self.tasks().items()}

    def tasks(self):
        return results.groups(self.samples, lambda sample: sample.task)

    def bytes_kept(self):
        """Share of the bytes that the KV cache would hold with every entry; all of it where the policy never acted."""
        told = [sample.kv for sample in self.samples if sample.kv]
        before = sum(kv["bytes_before"] for kv in told)
        if not before:
            return 1.0
        # A sample without a report stayed as it is. Where no other run says how large it was, as large as the others.
        mean = before / len(told)
        untold = sum(self.bytes_before.get(sample.id, mean) for sample in self.samples if not sample.kv)
        return (sum(kv["bytes_after"] for kv in told) + untold) / (before + untold)

    def bytes_read(self):
        """Share of the bytes of all entries that generated tokens read; None where each reads all that stays."""
        told = [sample.kv_read for sample in self.samples if sample.kv_read]
        of_all = sum(read["bytes_of_all"] for read in told)
        return sum(read["bytes"] for read in told) / of_all if of_all else None

    def mean(self):
        """Of the tasks' accuracies."""
        return sum(tally.right.value for tally in self.by_task.values()) / len(self.by_task)

    def all(self):
        return results.Tally(self.samples)

    def kept_by_head(self):
        """Mean share of the tokens whose entries stay: [layer][head]; None where no entries were judged."""
        told = [sample.kv for sample in self.samples if sample.kv and sample.kv["tokens"] and sample.kv["kept"]]
        if not told:
            return None
        first = told[0]["kept"]
        return [[sum(kv["kept"][layer][head] / kv["tokens"] for kv in told) / len(told) for head in range(len(heads))]
                for layer, heads in enumerate(first)]  # fmt: skip


@dataclasses.dataclass
class Sweep:
    model: str
    dense: Run
    runs: list  # of all methods, by method and falling budget

    def methods(self):
        return list(dict.fromkeys(run.method for run in self.runs))

    def budgets(self):
        """Shares of the entries before numbers of tokens, each from the largest on."""
        return sorted({run.budget for run in self.runs}, key=lambda budget: ("." not in budget, -float(budget)))

    def tasks(self):
        return list(self.dense.by_task)

    def at(self, budget):
        return [run for run in self.runs if run.budget == budget]

    def relative(self, run, task):
        """Accuracy over dense accuracy, of a task where that is not 0."""
        return run.by_task[task].right.value / self.dense.by_task[task].right.value


def _is_budget(text):
    try:
        return float(text) > 0
    except ValueError:
        return False


def _without_reply(sample):
    """A task that ran with all entries and failed with a policy: none of its answers is given."""
    return dataclasses.replace(sample, correct=[None] * len(sample.correct), generated_tokens=0, finish_reason="", reply="",
                               kv=None)  # fmt: skip


def read(folder):
    """The Sweep in a folder of kv_sweep. Raises ResultsError."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        found[path.stem] = results.read(path)
    if DENSE not in found:
        raise results.ResultsError(f"{folder}: no {DENSE}.jsonl in it; is it a folder of eval/kv_sweep?")
    dense = Run(DENSE, "", found[DENSE].samples)
    ids = {sample.id for sample in dense.samples}
    runs = []
    for stem, file in found.items():
        method, at, budget = stem.rpartition("@")
        if not at:
            continue
        if not _is_budget(budget):
            raise results.ResultsError(f"{file.path}: '{budget}' is no budget; expected METHOD@BUDGET.jsonl")
        failed = {one.id for one in file.not_run}
        if {sample.id for sample in file.samples} | failed != ids:
            raise results.ResultsError(f"{file.path}: ran other tasks than {DENSE}.jsonl; finish it with eval/kv_sweep")
        lost = [_without_reply(sample) for sample in dense.samples if sample.id in failed]
        runs.append(Run(method, budget, file.samples + lost, file.header["settings"].get("kv", "")))
    if not runs or not ids:
        raise results.ResultsError(f"{folder}: no results of KV policies, METHOD@BUDGET.jsonl, in it")
    bytes_before = {}  # the least that a run says: some count what was generated until entries were judged last
    for sample in (sample for run in runs for sample in run.samples if sample.kv):
        told = sample.kv["bytes_before"]
        bytes_before[sample.id] = min(told, bytes_before.get(sample.id, told))
    for run in runs:
        run.bytes_before = bytes_before
    runs.sort(key=lambda run: (run.method, "." not in run.budget, -float(run.budget)))
    return Sweep(results.short(found[DENSE].header["model"]), dense, runs)


def page(sweep, title):
    """The page of a Sweep."""
    return document(title, _sections(sweep, title))


def _sections(sweep, title):
    yield f"<h1>{text(title)}</h1>"
    yield note(f"Model {sweep.model}, {len(sweep.dense.samples)} tasks, greedy. A budget is the share of a prompt's KV entries "
               "that stay (20 %; of methods that only round them 100 %), or their number; of auto, the memory of so many. Answers "
               "that are missing count as wrong.")  # fmt: skip
    yield from _advice(sweep)
    yield from _findings(sweep)
    yield from _curves(sweep)
    yield from _best(sweep)
    yield from _best_for_bytes(sweep)
    yield from _suffering(sweep)
    yield from _completion(sweep)
    yield from _schedules(sweep)
    yield from _methods(sweep)
    yield from _heat_maps(sweep)


def _method(name):
    """A method's name that may break where parts of it meet."""
    return text(name).replace("+", "<wbr>+")


def _list(items):
    return "<ul>" + "".join(f"<li>{text(item).replace(' %', '&nbsp;%')}</li>" for item in items) + "</ul>"


def _advice(sweep):
    yield "<h2>Which to use, and when not to</h2>"
    yield note("Of the methods and budgets tried, on these tasks and this model. What a policy does to other tasks, it says "
               "nothing about.")  # fmt: skip
    yield _list([*kv_advice.of_budgets(sweep, task_name), *kv_advice.of_methods(sweep)])
    yield "<h3>Which ability suffers first</h3>"
    yield _list(kv_advice.of_abilities(sweep, task_name))


def _findings(sweep):
    """What the figures say, in words."""
    yield "<h2>In words</h2>"
    items = []
    for budget in sweep.budgets():
        ranked = sorted(sweep.at(budget), key=lambda run: -run.mean())
        best, worst = ranked[0], ranked[-1]
        items.append(f"With {budget_name(budget)}, {best.method} is right most often ({100 * best.mean():.0f} % on average over the "
                     f"tasks, dense {100 * sweep.dense.mean():.0f} %), {worst.method} least ({100 * worst.mean():.0f} %).")  # fmt: skip
    for task in sweep.tasks():
        if not sweep.dense.by_task[task].right.part:
            items.append(f"{task_name(task)}: nothing is right with all entries either.")
            continue
        unharmed = [run for run in sweep.runs if sweep.relative(run, task) >= _UNHARMED]
        least = min(unharmed, key=lambda run: (run.bytes_kept(), run.method), default=None)
        if least is None:
            items.append(f"{task_name(task)}: no method keeps 95 % of the dense accuracy at any budget tried.")
        else:
            items.append(f"{task_name(task)}: {least.method} with {budget_name(least.budget)} is the smallest that keeps 95 % of the "
                         f"dense accuracy ({100 * least.bytes_kept():.0f} % of the bytes).")  # fmt: skip
    yield _list(items)


def _bytes_axis(shares):
    low, high = min(shares), max(shares)
    ticks = [p for p in (1, 2, 5, 10, 20, 30, 50, 70, 100) if low * 90 <= p <= high * 110]
    return plots.Axis("KV bytes kept (%, logarithmic)", math.log2(low) - 0.2, math.log2(high) + 0.2,
                      [(math.log2(p / 100), str(p)) for p in ticks])  # fmt: skip


def _curves(sweep):
    yield "<h2>Right answers by bytes kept</h2>"
    yield note("Each line is a method, each point a budget; the point at 100 % is the dense cache. Vertical lines are 95 % "
               "intervals. The last plot is of the answers that replies give at all, right or wrong.")  # fmt: skip
    methods = _shown_methods(sweep)
    if len(methods) < len(sweep.methods()):
        yield note(f"Shown are the {len(methods)} methods with the best mean over tasks and budgets; the tables below have all.")
    items = [f"<li>{plots.swatch(i)}<span>{text(name)}</span></li>" for i, name in enumerate(methods)]
    yield f'<ul class="legend">{"".join(items)}</ul>'
    axis = _bytes_axis([1.0, *(run.bytes_kept() for run in sweep.runs)])
    figures = [_curve_figure(sweep, methods, axis, task_name(task), "right answers",
                             lambda run, task=task: run.by_task[task].right) for task in sweep.tasks()]  # fmt: skip
    figures.append(_curve_figure(sweep, methods, axis, "all tasks", "answers given", lambda run: run.all().given))
    yield f'<div class="panels">{"".join(figures)}</div>'


def _shown_methods(sweep):
    """By name; those with the best mean over tasks and budgets where there are too many."""

    def mean(method):
        runs = [run for run in sweep.runs if run.method == method]
        return sum(run.mean() for run in runs) / len(runs)

    return sorted(sorted(sweep.methods(), key=mean, reverse=True)[:_MOST_CURVES])


def _curve_figure(sweep, methods, axis, caption, measure, share_of):
    lines = []
    for style, method in enumerate(methods):
        points = [(math.log2(run.bytes_kept()), share_of(run), f"{method}, {budget_name(run.budget)}")
                  for run in sweep.runs if run.method == method]  # fmt: skip
        points.append((math.log2(1.0), share_of(sweep.dense), "dense"))
        lines.append(plots.Line(style, "", sorted(points, key=lambda point: point[0])))
    drawn = plots.panel(f"{caption}: {measure} by bytes kept", axis, lines, measure)
    return f"<figure><figcaption>{text(caption)}</figcaption>{drawn}</figure>"


def _best(sweep):
    yield "<h2>The best method</h2>"
    rows = []
    for task in sweep.tasks():
        cells = [percent(sweep.dense.by_task[task].right)]
        for budget in sweep.budgets():
            best = max(sweep.at(budget), key=lambda run: run.by_task[task].right.value)
            cells.append(f"{text(best.method)}<br>{percent(best.by_task[task].right)}")
        rows.append((text(task_name(task)), *cells))
    mean = [f"{100 * sweep.dense.mean():.1f} %"]
    for budget in sweep.budgets():
        best = max(sweep.at(budget), key=Run.mean)
        mean.append(f"{text(best.method)}<br>{100 * best.mean():.1f} %")
    rows.append(("<b>mean of the tasks</b>", *mean))
    yield table("The best method", ("task", "dense", *map(budget_name, sweep.budgets())), rows)


def _best_for_bytes(sweep):
    yield "<h2>The best method for the bytes</h2>"
    yield note("Of all methods and budgets that leave no more than this share of the KV cache's bytes.")
    shares = [share for share in _BYTES if any(run.bytes_kept() <= share for run in sweep.runs)]
    if not shares:
        yield note(f"None left {100 * _BYTES[0]:g} % or less.")
        return

    def row(name, dense, measure, shown):
        cells = [shown(dense)]
        for share in shares:
            within = (run for run in sweep.runs if run.bytes_kept() <= share)
            best = max(within, key=lambda run: (measure(run), -run.bytes_kept()))
            cells.append(f"{_method(best.method)}, {budget_name(best.budget)}<br>{shown(best)}")
        return (name, *cells)

    rows = [row(text(task_name(task)), sweep.dense, lambda run, task=task: run.by_task[task].right.value,
                lambda run, task=task: percent(run.by_task[task].right)) for task in sweep.tasks()]  # fmt: skip
    rows.append(row("<b>mean of the tasks</b>", sweep.dense, Run.mean, lambda run: f"{100 * run.mean():.1f} %"))
    yield table("The best method for the bytes", ("task", "dense", *(f"at most {100 * share:g} %" for share in shares)), rows)


def _suffering(sweep):
    yield "<h2>What suffers first</h2>"
    yield note("Accuracy over dense accuracy, the mean of all methods; the task that loses most comes first. Tasks of which "
               "nothing is right with all entries are left out.")  # fmt: skip
    rows = []
    for task in sweep.tasks():
        if not sweep.dense.by_task[task].right.part:
            continue
        means = []
        for budget in sweep.budgets():
            shares = [sweep.relative(run, task) for run in sweep.at(budget)]
            means.append(sum(shares) / len(shares))
        rows.append((task, means))
    rows.sort(key=lambda row: sum(row[1]))
    yield table("What suffers first", ("task", *map(budget_name, sweep.budgets())),
                [(text(task_name(task)), *(f"{100 * mean:.0f} %" for mean in means)) for task, means in rows])


def length_over_dense(sweep, run):
    """Of replies in tokens, over that of dense ones; in text."""
    dense = sweep.dense.all().mean_tokens
    return f"{run.all().mean_tokens / dense:.2f}" if dense and run.all().mean_tokens is not None else "–"


def _completion(sweep):
    yield "<h2>Completion and length of replies</h2>"
    yield note("Of the answers asked for, the share that replies give at all, right or wrong; and the length of replies in "
               "tokens, over that of dense ones.")  # fmt: skip
    rows = [("dense", *[f"{percent(sweep.dense.all().given)}<br>1.00"] * len(sweep.budgets()))]
    for method in sweep.methods():
        by_budget = {run.budget: f"{percent(run.all().given)}<br>{length_over_dense(sweep, run)}"
                     for run in sweep.runs if run.method == method}  # fmt: skip
        rows.append((_method(method), *(by_budget.get(budget, "–") for budget in sweep.budgets())))
    yield table("Completion and length of replies", ("method", *map(budget_name, sweep.budgets())), rows)


def _schedules(sweep):
    found = kv_advice.schedules(sweep)
    if not found:
        return
    yield "<h2>The prompt alone, or also what is generated</h2>"
    yield note("The same method with entries judged once the prompt is computed, and again while tokens are generated: the "
               "mean of the tasks' accuracies, and the length of replies over dense ones.")  # fmt: skip
    rows = []
    for method, by_budget in found.items():
        judged = kv_advice.schedule(next(iter(by_budget.values())).policy)
        told = {budget: f"{100 * run.mean():.1f} %<br>{length_over_dense(sweep, run)}" for budget, run in by_budget.items()}
        cells = [told.get(budget, "–") for budget in sweep.budgets()]
        rows.append((_method(method), text(judged), *cells))
    yield table("When entries are judged", ("method", "judged", *map(budget_name, sweep.budgets())), rows)


def _methods(sweep):
    yield "<h2>Methods</h2>"
    yield note("Given are the answers that a reply has at all. Tokens are those of a reply on average, over dense replies; cut "
               "off are replies that did not come to an end. Bytes read are those of each generated token, over what it would "
               "read with every entry, where it reads less than is kept.")  # fmt: skip
    tasks = sweep.tasks()
    head = ("method", "mean", *map(task_name, tasks), "given", "tokens", "cut off", "bytes kept", "read")
    for budget in sweep.budgets():
        rows = []
        for run in [sweep.dense, *sorted(sweep.at(budget), key=lambda run: -run.mean())]:
            tally = run.all()
            rows.append((_method(run.method), f"{100 * run.mean():.1f} %", *(percent(run.by_task[task].right) for task in tasks),
                         percent(tally.given), length_over_dense(sweep, run), number(tally.num_cut_off),
                         f"{100 * run.bytes_kept():.0f} %",
                         "–" if run.bytes_read() is None else f"{100 * run.bytes_read():.0f} %"))  # fmt: skip
        yield f"<h3>{budget_name(budget)}</h3>"
        yield table(f"Methods with {budget_name(budget)}", head, rows)


def _heat_maps(sweep):
    """At the budget nearest to a fifth, or the smallest number of tokens."""
    ratios = [budget for budget in sweep.budgets() if "." in budget]
    chosen = min(ratios, key=lambda b: abs(float(b) - 0.2)) if ratios else min(sweep.budgets(), key=float)
    yield "<h2>What methods keep</h2>"
    yield note(f"With {budget_name(chosen)}: the share of the tokens whose entries stay, by layer (down) and KV head (across), on "
               "average over the tasks. Layers with a sliding window are not shown.")  # fmt: skip
    figures = []
    for run in sweep.at(chosen):
        shares = run.kept_by_head()
        if shares is not None:
            figures.append(f"<figure><figcaption>{text(run.method)}</figcaption>{_heat_map(run.method, shares)}</figure>")
    yield f'<div class="maps">{"".join(figures)}</div>'


def _heat_map(method, shares):
    size = 22 if len(shares) <= 12 else 10
    width, height = 34 + size * max(map(len, shares)), 16 + size * len(shares)
    darkest = max(max(heads) for heads in shares)
    parts = ['<text x="34" y="11">head</text>']
    for layer, heads in enumerate(shares):
        y = 16 + size * layer
        if layer % (1 if size > 12 else 6) == 0:
            parts.append(f'<text x="28" y="{y + size / 2 + 4:.0f}" text-anchor="end">{layer}</text>')
        for head, share in enumerate(heads):
            said = f"layer {layer}, head {head}: {100 * share:.1f} %"
            strength = share / darkest if darkest else 0
            parts.append(f'<rect class="cell" x="{34 + size * head}" y="{y}" width="{size - 1}" height="{size - 1}" '
                         f'fill-opacity="{0.06 + 0.94 * strength:.2f}"><title>{said}</title></rect>')  # fmt: skip
    said = text(f"What {method} keeps, by layer and head")
    return (f'<svg class="plot map" viewBox="0 0 {width} {height}" style="width:{width}px" role="img" aria-label="{said}">'
            f'<title>{said}</title>{"".join(parts)}</svg>')  # fmt: skip
