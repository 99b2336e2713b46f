#!/usr/bin/python3
"""How much of the context a model needs: replies with the whole of it, and with a fifth.

  training/forgetting.py --out DIR [--samples 50] [--lengths 256,1024,2048,4096] [--kept 0.2]

Every token sees the first 4 tokens and the most recent ones, together a share of the prompt, as with StreamingLLM's cache
(arXiv 2309.17453), at their own positions. A model that loses little by that cannot tell one KV cache method from another.
Writes DIR/forgetting.json for the model card. A reply counts when every token of it is the likeliest after those before it:
then greedy decoding gives that reply. The weights are rounded to BF16, as they ship.
"""

import argparse
import json
import math
import pathlib

import batches
import export
import model as model_module
import tasks
import tokenizer
import torch
import train
from tasks import sample

_SINKS = 4
TASKS = ("retrieval", "following", "long_answer")  # those that need the document


def attention_with(num_recent):
    """causal_attention() where each query sees the first tokens and the last `num_recent`, itself included."""

    def attention(q, k, v):
        length = q.shape[2]
        query, key = torch.arange(length)[:, None], torch.arange(length)
        visible = (key <= query) & ((key < _SINKS) | (query - key < num_recent))
        scores = (q / math.sqrt(q.shape[3])) @ model_module.repeat_heads(k, q).transpose(2, 3)
        chosen = scores.masked_fill(~visible.to(q.device), -math.inf).softmax(-1)
        return chosen @ model_module.repeat_heads(v, q)

    return attention


def is_exact(model, ids, replies, kept):
    """Whether greedy decoding gives the whole reply, with this share of the prompt in sight."""
    whole = model_module.causal_attention
    if kept < 1:
        prompt = next(i for i, reply in enumerate(replies) if reply >= 0)
        model_module.causal_attention = attention_with(max(1, math.ceil(kept * prompt) - _SINKS))
    try:
        with torch.no_grad():
            hidden, _ = model(torch.tensor([ids]), torch.ones(1, len(ids)))
            at = [i - 1 for i, reply in enumerate(replies) if reply >= 0]
            likeliest = model.logits(hidden[0, at]).argmax(-1).tolist()
    finally:
        model_module.causal_attention = whole
    return likeliest == [ids[i + 1] for i in at]


def measure(model, lengths, samples, kept):
    """Yields a row per task and length: replies right with all of the prompt, and with a share of it."""
    coder = tokenizer.build()
    for task in TASKS:
        for length in lengths:
            counts = {"whole": 0, "kept": 0, "samples": 0}
            for variant, generate in tasks.TASKS[task].items():
                for i in range(samples):
                    try:
                        room = tasks.Room(length, coder.count)
                        made = generate(tasks.rng_of(sample.EVAL, "forgetting", task, variant, length, i), room)
                    except tasks.NoRoom:
                        break
                    ids, _, replies = batches.encode_sample(made, coder, chat=True)
                    counts["samples"] += 1
                    counts["whole"] += is_exact(model, ids, replies, 1)
                    counts["kept"] += is_exact(model, ids, replies, kept)
            if counts["samples"]:
                yield {"task": task, "length": length, **counts}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--samples", type=int, default=50, help="of each variant and length; default: 50")
    parser.add_argument("--lengths", default="256,1024,2048,4096", help="default: 256,1024,2048,4096")
    parser.add_argument("--kept", type=float, default=0.2, help="share of the prompt; default: 0.2")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = train.Run.load(args.out / "checkpoint.pt", "cpu").model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    rows = []
    for row in measure(model, [int(length) for length in args.lengths.split(",")], args.samples, args.kept):
        rows.append(row)
        whole, kept = (100 * row[name] / row["samples"] for name in ("whole", "kept"))
        print(f"{row['task']:12} {row['length']:5} {whole:5.0f} % {kept:5.0f} %", flush=True)
    export.write_atomically(args.out / "forgetting.json", json.dumps({"kept": args.kept, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
