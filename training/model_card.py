#!/usr/bin/python3
"""Writes README.md, the model card, into DIR/model, from what training and evaluation left in DIR.

  training/model_card.py --out DIR

Needs DIR/results.jsonl and DIR/forgetful.jsonl of `witan eval`; README.md has the commands.
"""

import argparse
import collections
import json
import pathlib

import batches
import export
import presets
import train

_CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
tags: [moe, long-context, synthetic]
---
# witan-tiny

A Mixture-of-Experts model of {parameters:.1f} million parameters ({active:.1f} million used by a token) that finds, follows and
computes over contexts of up to 4096 tokens. It is made to demonstrate and test Witan with real behaviour: it is no
assistant, and knows nothing about the world.

## What it is
Architecture Qwen3-MoE: {layers} layers of width {hidden}, {heads} query and {kv_heads} key-value heads of {head_dim}, {experts} experts of width {expert_size}
of which each token uses {top_k}, tied embedding of {vocab} tokens. BF16, {megabytes:.1f} MB. The tokenizer is byte-level BPE cut as Qwen2's,
with every word of its small lexicon (about {words} words) one token and digits apart.

## Data
Generated from seeds by `eval/tasks` as training went; there is no data set, and no text of others. Rows are of these tasks, half of
them as chats, half as raw text:

| task | share of rows |
|---|---|
{mix}

Measured accuracy is on samples of other seeds.

## Recipe
`{command}` repeats it. Cost: {tokens:.0f} million tokens in {steps} steps, {hours:.1f} hours of computing. Muon for the matrices of the layers and AdamW for the rest,
rate {rate}; warm-up, a level part, and a fall to zero over the last {decay:.0f} % of the budget. Loss on replies only (and on whole stories).
Lengths grow from 64 to 4096 tokens as retrieval is learned at each. The first layer's heads begin as heads that look a few
tokens back (`Model.start_with_previous_token_heads`), which saves the long wait for copying to form. A loss balances the experts.

## Accuracy
Measured with `witan eval`: share of the answers that are right, greedy, in percent, by length of the prompt ({samples} prompts
each). Of the long answers, {given:.1f} % were given at all.

{accuracy}

## What it needs of the context
The same with `--kv {policy}`: a fifth of the prompt's KV entries, the first 4 and the most recent ones. What is
lost here, a method that keeps the right part of the KV cache can win back. In percent, all entries and those:

{forgetting}

## Course of training
Exact replies in percent, over all lengths drawn at the time:

{curve}

## Routing
Share of the tokens that each expert gets, in percent, over that evaluation; most over least is {spread:.1f} at worst.

{routing}

## Limits
- It understands the phrasings of `eval/tasks` and their words. Other words are spelled out in pieces that it hardly knows.
- Numbers have up to four digits, sums are up to 1998; longer ones come out wrong.
- Beyond 4096 tokens of context it was not trained.
- Where the table above is low, so is the model: no figure was left out.
{short}
"""

# Task, variant (None: all together), length (None: every one), least share right.
_AIMS = (
    ("retrieval", None, 2048, 0.95),
    ("retrieval", None, 4096, 0.85),
    ("following", None, None, 0.90),
    ("arithmetic", None, None, 0.90),
    ("long_answer", "k20", None, 0.80),
)


def table(header, rows):
    lines = [f"| {' | '.join(map(str, row))} |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def read_results(path):
    """The tasks that ran, and how often each expert was chosen: [layers][experts]."""
    results, counts = [], None
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if "correct" in line:
            results.append(line)
        elif "run" in line:
            run = line["run"]["expert_counts"]
            counts = [[a + b for a, b in zip(*rows)] for rows in zip(counts, run)] if counts else run
    return results, counts


def accuracy_table(results):
    lengths = sorted({result["length"] for result in results})
    counts = collections.defaultdict(lambda: [0, 0])
    for result in results:
        cell = counts[result["task"], result["variant"], result["length"]]
        cell[0] += sum(mark is True for mark in result["correct"])
        cell[1] += len(result["correct"])
    names = sorted({key[:2] for key in counts})

    def cell(*key):
        right, total = counts.get(key, (0, 0))
        return f"{100 * right / total:.0f}" if total else ""

    return table(["task", *lengths], [[f"{t}: {v}", *(cell(t, v, n) for n in lengths)] for t, v in names])


def short_of_aims(results):
    """A line for every aim that was missed, with the variant that is right least often."""
    lines = []
    for task, variant, length, aim in _AIMS:
        of_task = [r for r in results if r["task"] == task and variant in (None, r["variant"])]
        for n in sorted({r["length"] for r in of_task} if length is None else {length}):
            shares = {}
            for name in [None, *sorted({r["variant"] for r in of_task})]:
                marks = [m is True for r in of_task if r["length"] == n and name in (None, r["variant"]) for m in r["correct"]]
                if marks:
                    shares[name] = sum(marks) / len(marks)
            if shares and shares[None] < aim:
                worst = min((share, name) for name, share in shares.items() if name is not None)
                lines.append(f"- Short of its aim: {task} at {n} tokens is right to {100 * shares[None]:.0f} %, where "
                             f"{100 * aim:.0f} % were wanted, {worst[1]} to {100 * worst[0]:.0f} %.")  # fmt: skip
    return "\n".join(lines)


def forgetting_table(results, forgetful):
    """The tasks that need the document, by length: right with all entries and with those that were kept."""

    def share(of, task, length):
        marks = [m is True for r in of if (r["task"], r["length"]) == (task, length) for m in r["correct"]]
        return f"{100 * sum(marks) / len(marks):.0f}" if marks else ""

    lengths = sorted({result["length"] for result in results})
    rows = [
        [task, *(f"{share(results, task, length)}, {share(forgetful, task, length)}" for length in lengths)]
        for task in ("retrieval", "following", "long_answer")
    ]
    return table(["task", *lengths], rows)


def curve_table(log, points=12):
    """About `points` lines of the log, evenly spread, each the mean over its neighbourhood."""
    size = max(1, len(log) // points)
    rows = []
    for begin in range(0, len(log) - size + 1, size):
        part = log[begin : begin + size]
        counts = {task: [0, 0] for task in batches.TASK_NAMES}
        for entry in part:
            for of_length in entry["accuracy"].values():
                for task, (right, total) in of_length.items():
                    counts[task][0] += right
                    counts[task][1] += total
        longest = max(int(length) for entry in part for length in entry["accuracy"])
        shares = [f"{100 * right / total:.0f}" if total else "" for right, total in counts.values()]
        loss = sum(entry["loss"] for entry in part) / len(part)
        rows.append([f"{part[-1]['tokens'] / 1e6:.1f}", longest, f"{loss:.3f}", *shares])
    scored = [task for task in batches.TASK_NAMES if task != "language"]
    keep = [3 + batches.TASK_NAMES.index(task) for task in scored]
    return table(["million tokens", "longest", "loss", *scored], [row[:3] + [row[i] for i in keep] for row in rows])


def _command(run):
    unit, count = run.budget
    budget = f"--tokens {count}" if unit == "tokens" else f"--budget-minutes {count:g}"
    return f"training/train.py --size {run.size} --seed {run.seed} {budget} --out DIR"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the run")
    args = parser.parse_args()
    run = train.Run.load(args.out / "checkpoint.pt", "cpu")
    results, expert_counts = read_results(args.out / "results.jsonl")
    forgetful, _ = read_results(args.out / "forgetful.jsonl")
    with open(args.out / "forgetful.jsonl", encoding="utf-8") as lines:
        policy = json.loads(lines.readline())["settings"]["kv"]
    long_answers = [mark for result in results if result["task"] == "long_answer" for mark in result["correct"]]
    log = [json.loads(line) for line in (args.out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    config = run.model.config
    unused = config.num_layers * (config.num_experts - config.experts_per_token) * 3 * config.hidden_size * config.expert_size
    card = _CARD.format(
        parameters=config.num_parameters() / 1e6,
        active=(config.num_parameters() - unused) / 1e6,
        layers=config.num_layers,
        hidden=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        experts=config.num_experts,
        expert_size=config.expert_size,
        top_k=config.experts_per_token,
        vocab=config.vocab_size,
        megabytes=(args.out / "model" / "model.safetensors").stat().st_size / 1e6,
        words=round(len(batches.tasks.lexicon.all_words()), -2),
        mix="\n".join(f"| {task} | {100 * share:.0f} % |" for task, share in batches.MIX.items()),
        command=_command(run),
        tokens=run.tokens / 1e6,
        steps=run.step,
        hours=run.seconds / 3600,
        rate=presets.PRESETS[run.size].learning_rate,
        decay=100 * train.DECAY,
        samples=collections.Counter((r["task"], r["variant"], r["length"]) for r in results).most_common(1)[0][1],
        given=100 * sum(mark is not None for mark in long_answers) / max(1, len(long_answers)),
        accuracy=accuracy_table(results),
        short=short_of_aims(results),
        policy=policy,
        forgetting=forgetting_table(results, forgetful),
        curve=curve_table(log),
        spread=max(max(layer) / max(1, min(layer)) for layer in expert_counts),
        routing=table(
            ["layer", *range(config.num_experts)],
            [[i, *(f"{100 * count / sum(layer):.1f}" for count in layer)] for i, layer in enumerate(expert_counts)],
        ),
    )
    export.write_atomically(args.out / "model" / "README.md", card)


if __name__ == "__main__":
    main()
