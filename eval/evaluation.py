"""Runs of `witan eval`, each to a file of results of its own; one that is there is left alone, or gone on with."""

import subprocess

import results

_REFUSED = 3  # exit code where the model cannot have a KV policy, as where it has no values to merge


class EvaluationError(Exception):
    """witan eval failed; what it said went to standard error."""


class PolicyRefused(EvaluationError):
    """Not one task ran, as the model cannot have the KV policy."""


class Evaluation:
    """A model and a file of tasks; `flags` go to every run."""

    def __init__(self, witan, model, tasks, flags):
        """Raises OSError and UnicodeDecodeError."""
        self.command = [witan, "eval", "-m", model, "--tasks", tasks, *flags]
        self.num_tasks = sum(bool(line.strip()) for line in tasks.read_text(encoding="utf-8").splitlines())

    def is_done(self, path):
        """Whether all tasks ran, to the end of the program. Raises results.ResultsError."""
        if not path.exists():
            return False
        found = results.read(path)
        return len(found.samples) + len(found.not_run) == self.num_tasks and bool(found.runs)

    def run(self, path, flags):
        """Raises EvaluationError, results.ResultsError and OSError."""
        code = subprocess.run([*self.command, "--out", path, *flags], stdout=subprocess.DEVNULL).returncode
        if code == _REFUSED and not (path.exists() and results.read(path).samples):
            path.unlink(missing_ok=True)
            raise PolicyRefused
        if code != 0:
            raise EvaluationError(f"witan eval ended with {code}")
