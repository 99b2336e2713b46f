"""LongGenBench (arXiv 2410.04199) from a file of GSM8K: K questions in one prompt, answered in one reply.

The file has a JSON object with "question" and "answer" a line, as published. Its first eight make the worked examples,
Question_1 to Question_8; the K that follow are Question_9 and so on. Unlike the published scoring, ours goes by the
number of an answer and counts those that are missing as wrong.
"""

import json
import re

from .sample import Sample, Turn

NUM_EXAMPLES = 8
_INSTRUCTION = (
    "Answer each question step by step, in the form of the examples: a line Answer_N: for question N, the steps, and "
    "at last the sentence: The answer is (a number).\n\n"
)


def read(path):
    """[(question, worked answer, value)] of a file of GSM8K."""
    problems = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                problem = json.loads(line)
                steps, mark, value = problem["answer"].rpartition("####")
                question = problem["question"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f'{path}: line {number}: expected {{"question", "answer"}} of GSM8K') from error
            if not mark:
                raise ValueError(f"{path}: line {number}: the answer has no ####")
            steps = re.sub(r"<<.*?>>", "", steps).strip().replace("\n", " ")
            problems.append((question.strip(), f"{steps} The answer is {value.strip()}.", value.strip()))
    return problems


def samples(path, k):
    """Samples of k questions each, in the order of the file; the last questions may be left over."""
    problems = read(path)
    examples, asked = problems[:NUM_EXAMPLES], problems[NUM_EXAMPLES:]
    shots = "".join(f"Question_{i + 1}:\n{problem[0]}\n\n" for i, problem in enumerate(examples))
    shots += "".join(f"Answer_{i + 1}:\n{problem[1]}\n\n" for i, problem in enumerate(examples))
    for begin in range(0, len(asked) - k + 1, k):
        group = asked[begin : begin + k]
        first = NUM_EXAMPLES + 1
        question = "Following questions:\n\n" + "\n\n".join(f"Question_{first + i}:\n{p[0]}" for i, p in enumerate(group))
        answer = "\n\n".join(f"Answer_{first + i}:\n{p[1]}" for i, p in enumerate(group))
        turn = Turn(question, answer, tuple(p[2] for p in group), "numbered", labelled=False)
        yield Sample("gsm8k", f"k{k}", f"{_INSTRUCTION}Examples:\n\n{shots}", (turn,))
