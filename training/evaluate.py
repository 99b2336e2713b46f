#!/usr/bin/python3
"""Measures a checkpoint on samples that training never sees, and writes DIR/accuracy.json for the model card.

  training/evaluate.py --out DIR [--samples 50] [--lengths 256,1024,2048,4096]

A reply counts when every token of it is the likeliest after those before it: then greedy decoding gives that reply. The
weights are rounded to BF16, as they ship.
"""

import argparse
import json
import pathlib

import batches
import export
import tasks
import tokenizer
import torch
import train
from tasks import sample


def is_exact(model, ids, replies, device):
    """Whether the whole reply is what greedy decoding gives, and the Routing of every layer."""
    with torch.no_grad():
        hidden, routings = model(torch.tensor([ids], device=device), torch.ones(1, len(ids), device=device))
        at = [i - 1 for i, reply in enumerate(replies) if reply >= 0]
        likeliest = model.logits(hidden[0, at]).argmax(-1).tolist()
    return likeliest == [ids[i + 1] for i in at], routings


def evaluate(model, device, lengths, samples):
    """Yields a row of accuracy.json per task, variant and length that holds it; the last item is the load by layer."""
    coder = tokenizer.build()
    loads = torch.zeros(model.config.num_layers, model.config.num_experts)
    for task, variants in tasks.TASKS.items():
        if task == "language":  # has nothing to be right about
            continue
        for variant, generate in variants.items():
            for length in lengths:
                right = 0
                try:
                    for i in range(samples):
                        room = tasks.Room(length, coder.count)
                        made = generate(tasks.rng_of(sample.EVAL, "evaluate", task, variant, length, i), room)
                        ids, _, replies = batches.encode_sample(made, coder, chat=True)
                        exact, routings = is_exact(model, ids, replies, device)
                        right += exact
                        loads += torch.stack([r.load.cpu() for r in routings])
                except tasks.NoRoom:
                    continue
                row = {"task": task, "variant": variant, "length": length, "right": right, "samples": samples}
                yield row
    yield {"load": (loads / loads.sum(1, keepdim=True)).tolist()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--samples", type=int, default=50, help="of each variant and length; default: 50")
    parser.add_argument("--lengths", default="256,1024,2048,4096", help="default: 256,1024,2048,4096")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = train.Run.load(args.out / "checkpoint.pt", args.device)
    model = run.model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    rows = []
    for row in evaluate(model, run.device, [int(length) for length in args.lengths.split(",")], args.samples):
        if "load" in row:
            result = {"step": run.step, "tokens": run.tokens, "rows": rows, "load": row["load"]}
            export.write_atomically(args.out / "accuracy.json", json.dumps(result, indent=1) + "\n")
        else:
            rows.append(row)
            share = 100 * row["right"] / row["samples"]
            print(f"{row['task']:12} {row['variant']:12} {row['length']:5} {share:5.0f} %", flush=True)


if __name__ == "__main__":
    main()
