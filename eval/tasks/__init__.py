"""The generated tasks: what witan-tiny learns and what `witan eval` measures. Standard library only.

TASKS has a row per task: its name, its variants (generators) and the shortest samples that they make.
"""

from . import arithmetic, following, language, lists, long_answer, retrieval
from .sample import NoRoom, Room, Sample, Turn, rng_of

TASKS = {
    "retrieval": retrieval.VARIANTS,
    "following": following.VARIANTS,
    "arithmetic": arithmetic.VARIANTS,
    "long_answer": long_answer.VARIANTS,
    "lists": lists.VARIANTS,
    "language": language.VARIANTS,
}

__all__ = ["TASKS", "NoRoom", "Room", "Sample", "Turn", "rng_of"]
