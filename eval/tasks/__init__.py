"""The generated tasks: what witan-tiny learns and what task sets measure. Standard library only.

TASKS has a row per task that witan-tiny learns, EVAL_TASKS one per task with questions to score: a name and its variants,
which are generators (sample.py).
"""

from . import arithmetic, following, knowledge, language, lexicon, lists, long_answer, retrieval, ruler
from .sample import NoRoom, Room, Sample, Turn, rng_of

TASKS = {
    "retrieval": retrieval.VARIANTS,
    "following": following.VARIANTS,
    "arithmetic": arithmetic.VARIANTS,
    "long_answer": long_answer.VARIANTS,
    "lists": lists.VARIANTS,
    "language": language.VARIANTS,
}

EVAL_TASKS = {name: variants for name, variants in TASKS.items() if name != "language"} | {
    "ruler": ruler.VARIANTS,
    "knowledge": knowledge.VARIANTS,
}

__all__ = ["EVAL_TASKS", "TASKS", "NoRoom", "Room", "Sample", "Turn", "lexicon", "rng_of"]
