"""What the figures of a sweep of KV policies say in words: which method at which budget, for what, and for what not."""

import math
import re

import results

_UNHARMED, _LOST = 0.95, 0.5  # of dense accuracy
_MOST_NAMED = 6  # methods in a sentence


def budget_name(budget):
    return f"{100 * float(budget):g} %" if "." in budget else f"{budget} tokens"


def joined(names):
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _some(names):
    if len(names) <= _MOST_NAMED:
        return joined(names)
    return f"{', '.join(names[:_MOST_NAMED])} and {len(names) - _MOST_NAMED} more"


def may_be_as_good(run, best):
    """Whether the difference of two runs of the same tasks is within two standard errors, task by task."""
    others = {sample.id: sample.share_right() for sample in run.samples}
    differences = [sample.share_right() - others[sample.id] for sample in best.samples]
    count, mean = len(differences), sum(differences) / len(differences)
    variance = sum((one - mean) ** 2 for one in differences) / max(1, count - 1)
    return mean <= 2 * math.sqrt(variance / count)


def _solved_tasks(sweep):
    return [task for task in sweep.tasks() if sweep.dense.by_task[task].right.part]


def _best_shares(sweep, budget):
    """{task: the most of the dense accuracy that any method keeps}."""
    return {task: max(sweep.relative(run, task) for run in sweep.at(budget)) for task in _solved_tasks(sweep)}


def of_budgets(sweep, task_name):
    """Per budget, what to use, how complete its replies are, and what it is not for."""
    for budget in sweep.budgets():
        ranked = sorted(sweep.at(budget), key=lambda run: -run.mean())
        best = ranked[0]
        equals = [run.method for run in ranked[1:] if may_be_as_good(run, best)]
        shares = {task: sweep.relative(best, task) for task in _solved_tasks(sweep)}
        safe = [task_name(task) for task, share in shares.items() if share >= _UNHARMED]
        lost = [task_name(task) for task, share in shares.items() if share < _LOST]
        figures = f"{100 * best.mean():.0f} % right, dense {100 * sweep.dense.mean():.0f} %"
        if lost and len(lost) == len(shares):
            yield f"{budget_name(budget)}: use none. {best.method} loses least ({figures}), and more than half in every task."
            continue
        words = f"{budget_name(budget)}: use {best.method} ({figures})."
        if equals:
            words += f" {_some(equals)} may be as good: the difference is within two standard errors."
        words += f" The replies of {best.method} give {100 * best.all().given.value:.0f} % of the answers."
        if safe:
            words += f" It keeps 95 % of the dense accuracy in {joined(safe)}."
        if lost:
            words += f" Not for {joined(lost)}: less than half of the dense accuracy is left."
        yield words


def of_abilities(sweep, task_name):
    """What suffers first: the tasks by the budget below which even the best method for them loses."""
    by_budget = [(budget, _best_shares(sweep, budget)) for budget in _falling(sweep)]
    if not by_budget:
        return
    reached = {task: [budget for budget, shares in by_budget if shares[task] >= _UNHARMED] for task in _solved_tasks(sweep)}
    first = [task_name(task) for task, budgets in reached.items() if not budgets]
    if first:
        yield f"{joined(first)} {'suffers' if len(first) == 1 else 'suffer'} first: no method at any budget tried keeps 95 %."
    for budget, _ in by_budget:
        until = [task_name(task) for task, budgets in reached.items() if budgets and budgets[-1] == budget]
        if until:
            end = "the smallest tried" if budget == by_budget[-1][0] else "not below"
            yield f"{joined(until)}: 95 % of the dense accuracy can be kept down to {budget_name(budget)}, {end}."


def _falling(sweep):
    """Budgets from the one that keeps most bytes to the one that keeps least, but that of every entry, rounded."""
    budgets = [budget for budget in sweep.budgets() if budget != "1.0"]
    return sorted(budgets, key=lambda budget: -max(run.bytes_kept() for run in sweep.at(budget)))


def of_methods(sweep):
    """Methods that are nowhere among the best."""
    among = set()
    for budget in sweep.budgets():
        best = max(sweep.at(budget), key=lambda run: run.mean())
        among |= {run.method for run in sweep.at(budget) if run is best or may_be_as_good(run, best)}
    never = [method for method in sweep.methods() if method not in among]
    if never:
        yield f"At no budget among the best: {joined(never)}."


_SCHEDULE = re.compile(r"(?:^|,) *(every|generated_keep|generated_tokens)=([^,]*)")


def schedule(policy):
    """When a policy judges, from its text."""
    found = dict(_SCHEDULE.findall(policy))
    has_pool = "generated_keep" in found or "generated_tokens" in found
    usual = 128 if policy.startswith("rkv") else 64 if has_pool else None  # where `every` is not given
    every = found.get("every", usual)
    if has_pool:
        return f"generated tokens in a pool of their own, every {every} tokens"
    return f"again every {every} tokens" if every else "the prompt, once"


def schedules(sweep):
    """{method: {budget: run}} of methods that differ from another in nothing but when they judge."""
    told = [run for run in sweep.runs if run.policy and not run.policy.startswith("{")]  # not those in JSON
    by_base = results.groups(told, lambda run: (_SCHEDULE.sub("", run.policy).strip(","), run.budget))
    found = {}
    for (_, budget), runs in by_base.items():
        if len({schedule(run.policy) for run in runs}) > 1:
            for run in runs:
                found.setdefault(run.method, {})[budget] = run
    return found
