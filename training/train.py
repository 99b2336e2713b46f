#!/usr/bin/python3
"""Trains witan-tiny. One command, which can be killed and repeated: it goes on from DIR/checkpoint.pt.

  training/train.py --out DIR                              # 2 CPU cores, three hours
  training/train.py --size full --device cuda --out DIR    # a GPU

DIR gets checkpoint.pt, log.jsonl (a line per block of steps) and model/, a Hugging Face directory that witan reads.
"""

import argparse
import collections
import json
import math
import multiprocessing
import pathlib
import sys
import time

import paths  # noqa: F401
import torch
import torch.nn.functional as F

import batches
import curriculum
import export
import model as model_module
import optimizer as optimizer_module
import presets

_WARMUP_STEPS = 100
DECAY = 0.3  # the learning rate falls to nothing over this last part of the budget
_BALANCE_WEIGHT, _Z_WEIGHT = 0.02, 1e-3
_SAVE_SECONDS = 120


class Source:
    """Batches by step, prepared by processes one block of steps ahead, or made when they are needed."""

    def __init__(self, seed, batch_tokens, lengths, workers):
        self._seed, self._batch_tokens, self._lengths = seed, batch_tokens, lengths
        self._pool = multiprocessing.get_context("spawn").Pool(workers) if workers else None
        self._pending = {}

    def _job(self, step):
        length = self._lengths.length(step)
        return self._seed, step, self._batch_tokens // length, length

    def get(self, step):
        if self._pool is None:
            return batches.make_batch(*self._job(step))
        for ahead in range(step, len(self._lengths.stages) * curriculum.BLOCK_STEPS):
            if ahead not in self._pending:
                self._pending[ahead] = self._pool.apply_async(batches.make_batch, self._job(ahead))
        return self._pending.pop(step).get()

    def close(self):
        if self._pool is not None:
            self._pool.terminate()


def learning_rate(step, progress):
    """The share of the full rate: warm-up, level, and a fall to zero at the end of the budget."""
    return min(1.0, (step + 1) / _WARMUP_STEPS, max(0.0, (1 - progress) / DECAY))


class Tally:
    """What happened since the last line of progress; stays on the device until it is read."""

    def __init__(self, device, config):
        self.losses, self.tokens, self.steps = torch.zeros((), device=device), 0, 0
        self.loads = torch.zeros(config.num_layers, config.num_experts, device=device)
        self.replies = collections.defaultdict(lambda: torch.zeros(2, len(batches.TASK_NAMES), device=device))

    def add(self, batch, loss, wrong_replies, routings):
        """wrong_replies: [replies] 1 where any token of the reply is not the likeliest."""
        self.losses += loss.detach()
        self.tokens += batch.tokens.size
        self.steps += 1
        self.loads += torch.stack([routing.load for routing in routings])
        task = torch.from_numpy(batch.reply_task).long().to(wrong_replies.device)
        counts = self.replies[batch.tokens.shape[1]]
        counts[0].index_add_(0, task, 1 - wrong_replies)
        counts[1].index_add_(0, task, torch.ones_like(wrong_replies))

    def read(self):
        """{"loss", "accuracy": {task: [right, total]} by length, "load": most over least loaded expert, by layer}."""
        accuracy = {
            length: {t: [int(r), int(n)] for t, r, n in zip(batches.TASK_NAMES, *counts.tolist()) if n}
            for length, counts in sorted(self.replies.items())
        }
        spread = self.loads.max(1).values / self.loads.min(1).values.clamp(min=1e-9)
        return {
            "loss": self.losses.item() / max(1, self.steps),
            "accuracy": accuracy,
            "load": [round(s, 2) for s in spread.tolist()],
        }


class Run:
    """A training run: everything that a checkpoint holds, and the steps."""

    def __init__(self, size, seed, device):
        self.size, self.seed, self.device = size, seed, torch.device(device)
        self.preset = presets.PRESETS[size]
        self.model = model_module.Model(self.preset.model_config(), seed)
        self.model.start_with_previous_token_heads()
        self.model.to(self.device)
        self.optimizer = optimizer_module.Optimizer(self.model, self.preset.learning_rate)
        self.curriculum = curriculum.Curriculum(seed, self.preset.patience)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.budget = ("tokens", self.preset.budget_tokens)  # or ("minutes", count): the whole training

    def save(self, path):
        state = {
            "size": self.size,
            "seed": self.seed,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "budget": list(self.budget),
            "curriculum": self.curriculum.state(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = path.with_name(path.name + ".partial")
        torch.save(state, temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path, device):
        state = torch.load(path, map_location="cpu")
        run = cls(state["size"], state["seed"], device)
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.budget = tuple(state["budget"])
        run.curriculum = curriculum.Curriculum(run.seed, run.preset.patience, **state["curriculum"])
        run.step, run.tokens, run.seconds = state["step"], state["tokens"], state["seconds"]
        return run

    def train_step(self, batch, rate, tally):
        tokens, real = (torch.from_numpy(a).to(self.device) for a in (batch.tokens, batch.real))
        chosen = batch.weights.reshape(-1).nonzero()[0]
        following = batch.tokens.reshape(-1)[chosen + 1]
        reply = batch.reply.reshape(-1)[chosen]
        chosen, targets, reply = (torch.from_numpy(a).long().to(self.device) for a in (chosen, following, reply))
        weights = torch.from_numpy(batch.weights).to(self.device).flatten()[chosen]

        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            hidden, routings = self.model(tokens.long(), real)
            logits = self.model.logits(hidden.flatten(0, 1)[chosen])
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        extra = sum(_BALANCE_WEIGHT * r.balance_loss + _Z_WEIGHT * r.z_loss for r in routings)
        self.optimizer.zero_grad()
        (loss + extra).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step(rate)

        wrong = ((logits.detach().argmax(-1) != targets) & (reply >= 0)).float()
        # Tokens of no reply count in a last, unused place.
        of_reply = torch.zeros(len(batch.reply_task) + 1, device=self.device)
        of_reply.index_add_(0, torch.where(reply >= 0, reply, len(batch.reply_task)), wrong)
        tally.add(batch, loss, (of_reply[:-1] > 0).float(), routings)
        self.step += 1
        self.tokens += batch.tokens.size


def progress_line(run, progress, rate, speed, read):
    accuracy = collections.Counter()
    total = collections.Counter()
    for by_task in read["accuracy"].values():
        for task, (right, count) in by_task.items():
            accuracy[task] += right
            total[task] += count
    tasks = " ".join(f"{task} {100 * accuracy[task] / total[task]:.0f}%" for task in batches.TASK_NAMES if total[task])
    longest = max(run.curriculum.length(step) for step in range(run.step - curriculum.BLOCK_STEPS, run.step))
    return (
        f"{100 * progress:5.1f}% | step {run.step} | {run.tokens / 1e6:.2f} M tokens, {speed:.0f}/s | length {longest} | "
        f"rate {rate:.2f} | loss {read['loss']:.3f} | {tasks} | load {max(read['load']):.1f}"
    )


def train(run, source, out, minutes):
    """Trains whole blocks of steps until the budget or the minutes are used up; returns whether the budget is.

    Only ends of blocks are saved, so that a run that was killed goes on exactly as it would have gone.
    """

    def share_done():
        return run.tokens / run.budget[1] if run.budget[0] == "tokens" else run.seconds / 60 / run.budget[1]

    began = last = saved = time.monotonic()
    while share_done() < 1 and last - began < 60 * minutes:
        progress, tally = share_done(), Tally(run.device, run.model.config)
        for _ in range(curriculum.BLOCK_STEPS):
            rate = learning_rate(run.step, progress)
            run.train_step(source.get(run.step), rate, tally)
        read = tally.read()
        if not math.isfinite(read["loss"]):
            sys.exit("training: the loss is no number any more; the checkpoint is from before that")
        gate = {length: of_task.get("retrieval", (0, 0)) for length, of_task in read["accuracy"].items()}
        run.curriculum.end_block(gate, run.tokens)
        now = time.monotonic()
        run.seconds += now - last
        print(progress_line(run, progress, rate, tally.tokens / (now - last), read), flush=True)
        entry = {"step": run.step, "tokens": run.tokens, "seconds": round(run.seconds, 1), "rate": rate, **read}
        with open(out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        last = now
        if now - saved > _SAVE_SECONDS:
            run.save(out / "checkpoint.pt")
            saved = now
    run.save(out / "checkpoint.pt")
    export.write_model(run.model, out / "model")
    return share_done() >= 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the run; one that exists is resumed")
    parser.add_argument("--size", choices=sorted(presets.PRESETS), default="cpu", help="default: cpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop this run after so long; default: never")
    parser.add_argument("--tokens", type=int, help="the whole training, over all runs; default: by size, or as before")
    parser.add_argument("--budget-minutes", type=float, help="the whole training as time instead: not repeatable")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the model; default: 2")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches; default: none")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        run = Run.load(checkpoint, args.device)
        if (run.size, run.seed) != (args.size, args.seed):
            parser.error(f"{checkpoint} is of --size {run.size} --seed {run.seed}")
        print(f"goes on from step {run.step}, {run.tokens / 1e6:.2f} M tokens", flush=True)
    else:
        run = Run(args.size, args.seed, args.device)
    print(f"{run.model.config.num_parameters() / 1e6:.2f} million parameters", flush=True)
    if args.tokens or args.budget_minutes:
        run.budget = ("tokens", args.tokens) if args.tokens else ("minutes", args.budget_minutes)
    source = Source(run.seed, run.preset.batch_tokens, run.curriculum, args.workers)
    try:
        done = train(run, source, args.out, args.minutes)
    finally:
        source.close()
    print("the budget is used up" if done else "stopped; the same command goes on", flush=True)


if __name__ == "__main__":
    main()
