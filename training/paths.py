"""Importing this makes the task generators importable: `import tasks`."""

import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "eval"))
