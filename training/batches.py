"""Batches of generated tasks: rows of one length, each one sample, chat or raw."""

import dataclasses
import functools

import numpy
import paths  # noqa: F401
import tasks
import tokenizer
from tasks import sample

# How often rows of a task are drawn.
MIX = {"retrieval": 0.26, "following": 0.16, "arithmetic": 0.16, "long_answer": 0.24, "lists": 0.12, "language": 0.06}
TASK_NAMES = tuple(MIX)
_ENDLESS = frozenset({"running", "columns", "rewrite", "choose"})  # variants without a document, as long as asked for
SYSTEM_PROMPTS = ("Answer the question.", "Read the text, then answer.", "You answer questions with few words.")


@dataclasses.dataclass
class Batch:
    tokens: numpy.ndarray  # [rows, length] int32, padded with end_of_text
    weights: numpy.ndarray  # [rows, length] float32: what predicting the NEXT token counts in the loss
    real: numpy.ndarray  # [rows, length] float32: 0 for padding
    reply: numpy.ndarray  # [rows, length] int32: the reply that the next token belongs to, numbered in the batch; -1
    reply_task: numpy.ndarray  # [replies] int32, index into TASK_NAMES


def encode_sample(made, coder, chat, system=None):
    """A sample as token ids, weights and reply numbers of each token (not of the next)."""
    ids, weights, replies = [], [], []

    def add(tokens, weight, reply):
        ids.extend(tokens)
        weights.extend([weight] * len(tokens))
        replies.extend([reply] * len(tokens))

    if not made.turns:
        add([*coder.encode(made.document), coder.end_of_text], 0.5, -1)
    elif chat:
        newline = coder.encode("\n")
        if system:
            add([coder.im_start, *coder.encode(f"system\n{system}"), coder.im_end, *newline], 0.0, -1)
        for i, message in enumerate(made.messages()):
            of_model = message["role"] == "assistant"
            add([coder.im_start, *coder.encode(f"{message['role']}\n")], 0.0, -1)
            content = [*coder.encode(message["content"]), coder.im_end]
            add(content, 1.0 if of_model else 0.0, i // 2 if of_model else -1)
            add(newline, 0.0, -1)
    else:
        for i, (given, reply) in enumerate(made.raw_parts()):
            add(coder.encode(given), 0.0, -1)
            add(coder.encode(reply), 1.0, i)
        add([coder.end_of_text], 1.0, -1)
    return ids, weights, replies


@functools.cache
def _coder():
    return tokenizer.build()


def make_row(seed, step, row, length):
    """(task, ids, weights, replies) of one row, a function of its arguments alone."""
    rng = sample.rng_of(sample.TRAIN, seed, step, row, length)
    coder = _coder()
    while True:
        task = rng.choices(TASK_NAMES, MIX.values())[0]
        variant = rng.choice(sorted(tasks.TASKS[task]))
        most = max(1, length // 40)
        turns = 10000 if variant in _ENDLESS else rng.randint(1, most)
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.1 else None
        room = tasks.Room(length - (16 if system else 0) - 2, coder.count, turns)
        try:
            made = tasks.TASKS[task][variant](rng, room)
        except tasks.NoRoom:
            continue
        return (task, *encode_sample(made, coder, chat=rng.random() < 0.5, system=system))


def make_batch(seed, step, rows, length):
    coder = _coder()
    tokens = numpy.full((rows, length), coder.end_of_text, numpy.int32)
    weights = numpy.zeros((rows, length), numpy.float32)
    real = numpy.zeros((rows, length), numpy.float32)
    reply = numpy.full((rows, length), -1, numpy.int32)
    reply_task = []
    for row in range(rows):
        task, ids, row_weights, row_replies = make_row(seed, step, row, length)
        count = len(ids)
        assert count <= length, (task, count, length)
        tokens[row, :count] = ids
        real[row, :count] = 1
        weights[row, : count - 1] = row_weights[1:]
        numbers = numpy.array(row_replies[1:])
        reply[row, : count - 1] = numpy.where(numbers >= 0, numbers + len(reply_task), -1)
        reply_task += [TASK_NAMES.index(task)] * (numbers.max(initial=-1) + 1)
    return Batch(tokens, weights, real, reply, numpy.array(reply_task, numpy.int32))
