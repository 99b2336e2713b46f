"""Long answers in the form of LongGenBench (arXiv 2410.04199): K questions in one prompt, all answered in one reply.

Each answer depends on the prompt: on facts at its start, on the question's own numbers, or on an earlier answer.
"""

from . import lexicon, records
from .arithmetic import step, sum_of_records
from .records import Record
from .sample import MARKUP_TOKENS, NoRoom, Sample, Turn

INSTRUCTION = "Answer all questions in order, as Answer_1, Answer_2 and so on.\n"
_TOKENS_PER_QUESTION = 72  # question, reply and the facts that they use, with some room


def _lookup(rng, facts, _):
    record = rng.choice(facts)
    return record.question(), record.statement(), record.value, (record,)


def _sum(rng, facts, _):
    small = [record for record in facts if int(record.value) < 50]
    if len(small) < 2:
        return _lookup(rng, facts, None)
    chosen = rng.sample(small, 2)
    answer, total = sum_of_records(chosen)
    first, second = (f"the {record.attribute} of {record.key}" for record in chosen)
    return f"What is {first} plus {second}?", answer, total, tuple(chosen)


def _word_problem(rng, facts, _):
    name, thing = rng.choice(lexicon.NAMES), rng.choice(lexicon.THINGS)
    left = rng.randint(2, 30)
    question, steps = f"The number of {thing} items that {name} has is {left}.", [f"The number of {thing} items is {left}."]
    for _ in range(rng.randint(1, 2)):
        sign, right, result = step(rng, left)
        question += f" It is multiplied by {right}." if sign == "*" else (
            f" Then {name} buys {right} more." if sign == "+" else f" Then {name} gives away {right}.")  # fmt: skip
        steps.append(f"{left} {sign} {right} = {result}.")
        left = result
    return f"{question} What is the number now?", " ".join(steps), str(left), ()


def _earlier(rng, facts, values):
    usable = [i for i, value in enumerate(values) if int(value) < 80]
    if not usable:
        return _word_problem(rng, facts, values)
    i = rng.choice(usable)
    right = rng.randint(1, 19)
    result = int(values[i]) + right
    answer = f"Answer_{i + 1} is {values[i]}. {values[i]} + {right} = {result}."
    return f"Add {right} to Answer_{i + 1}.", answer, str(result), ()


_KINDS = (_lookup, _sum, _word_problem, _earlier)


def make(rng, room, num_questions, variant):
    """`num_questions` questions, or as many of them as fit; facts fill the room that they leave."""
    num_questions = min(num_questions, (room.left - MARKUP_TOKENS) // _TOKENS_PER_QUESTION)
    if num_questions < 1:
        raise NoRoom(f"{room.tokens} tokens")
    room.need(INSTRUCTION, markup=MARKUP_TOKENS)
    facts = []
    reserve = num_questions * (_TOKENS_PER_QUESTION - 18) + 24
    enough = max(2, num_questions)
    attributes = rng.sample(records.NUMBER_VALUES, rng.randint(1, 3))
    for attribute, key in records.pairs(rng, attributes, lexicon.KEYS):
        record = Record(attribute, key, str(rng.randint(1, 99)))
        line = record.statement() + "\n"
        if len(facts) >= enough and room.left - room.count(line) < reserve:
            break
        room.need(line)
        facts.append(record)
    place = {record: i / len(facts) for i, record in enumerate(facts)}
    questions, answers, values, evidence = [], [], [], []
    for i in range(num_questions):
        question, answer, value, used = rng.choice(_KINDS if i else _KINDS[:3])(rng, facts, values)
        lines = (f"Question_{i + 1}: {question}\n", f"Answer_{i + 1}: {answer}\n")
        if not room.take(*lines):
            if not questions:
                raise NoRoom(f"{room.tokens} tokens")
            break
        questions.append(lines[0])
        answers.append(lines[1])
        values.append(value)
        evidence.append(min((place[record] for record in used), default=1.0))
    document = INSTRUCTION + "".join(record.statement() + "\n" for record in facts)
    turn = Turn("".join(questions).rstrip("\n"), "".join(answers).rstrip("\n"), tuple(values), "numbered",
                tuple(evidence), labelled=False)  # fmt: skip
    return Sample("long_answer", variant, document, (turn,))


def any_k(rng, room):
    """One to thirty questions, the room deciding."""
    return make(rng, room, rng.randint(1, 30), "any_k")


def k20(rng, room):
    return make(rng, room, 20, "k20")


VARIANTS = {"any_k": any_k, "k20": k20}
