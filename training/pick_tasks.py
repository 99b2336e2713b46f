#!/usr/bin/python3
"""Picks tasks that a model answers right: what the end-to-end tests expect of it in every kernel and KV type.

  training/pick_tasks.py --tasks tasks.jsonl --results f16.jsonl --results q8_0.jsonl --out tests/data/witan-tiny.jsonl

Takes, of each task and variant in turn, the first that is right in all of the results, until there are enough.
"""

import argparse
import collections
import json
import pathlib


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=pathlib.Path, required=True, help="what was run")
    parser.add_argument("--results", type=pathlib.Path, action="append", required=True, help="of witan eval; may be repeated")
    parser.add_argument("--count", type=int, default=32, help="default: 32")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    right = [
        {line["id"] for line in lines_of(path) if line.get("correct") and all(mark is True for mark in line["correct"])}
        for path in args.results
    ]
    usable = set.intersection(*right)
    groups = collections.defaultdict(list)
    for task in lines_of(args.tasks):
        if task["id"] in usable:
            groups[task["task"], task["variant"]].append(task)
    picked = []
    while groups and len(picked) < args.count:
        for key in list(groups):
            if len(picked) < args.count:
                picked.append(groups[key].pop(0))
            if not groups[key]:
                del groups[key]
    if len(picked) < args.count:
        parser.error(f"only {len(picked)} tasks are right in all results")
    args.out.write_text("".join(json.dumps(task) + "\n" for task in picked), encoding="utf-8")


if __name__ == "__main__":
    main()
