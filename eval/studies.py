"""What studies share: tools of this folder run one after another, and a task set that is made once."""

import json
import pathlib
import subprocess
import sys

import files

_EVAL = pathlib.Path(__file__).resolve().parent
_SETTINGS = "tasks.json"  # what tasks.jsonl was made with


class StudyError(Exception):
    """A step failed; the message says which."""


def run(tool, *args):
    """Raises StudyError."""
    done = subprocess.run([sys.executable, "-B", _EVAL / tool, *map(str, args)])
    if done.returncode != 0:
        raise StudyError(f"{tool} ended with {done.returncode}")


def make_tasks(folder, wanted, flags):
    """The path of tasks.jsonl in the folder: made by eval/make_tasks with `flags`, unless it is there. `wanted` says what it is
    made with: with other settings it would not be the one that ran. Raises StudyError, OSError and ValueError."""
    settings, tasks = folder / _SETTINGS, folder / "tasks.jsonl"
    if settings.exists() and tasks.exists():
        made = json.loads(settings.read_text(encoding="utf-8"))
        differing = [f"{name} was {json.dumps(made.get(name))}" for name in wanted if made.get(name) != wanted[name]]
        if differing:
            raise StudyError(f"{tasks} was made otherwise: {', '.join(differing)}; name another folder")
        return tasks
    run("make_tasks", *flags, "--out", tasks)
    files.write_whole(settings, json.dumps(wanted) + "\n")
    return tasks
