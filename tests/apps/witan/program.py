"""The witan program under test, and what its tests share: running it, golden data, models made for the occasion."""

import array
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

STATISTICS = re.compile(
    r"prompt (?P<prompt>\d+) tokens, [\d.]+ s, [\d.]+ tokens/s \| "
    r"generated (?P<generated>\d+) tokens, [\d.]+ s, [\d.]+ tokens/s \| KV [\d.]+ MiB"
    r"( \| \d+ prompt tokens from the prefix cache)?( \| \d+ preemptions)?"
    r"( \| (?P<experts>\d+) of (?P<all_experts>\d+) experts used)?\n"
)

# Sanitizers hold memory of their own.
SANITIZED = bool(os.environ.get("WITAN_SANITIZE"))

_program = ""
_goldens = pathlib.Path()
_scratch = pathlib.Path()


def main():
    """Runs the tests of the calling file: its arguments are the program, the folder of goldens, then unittest's."""
    global _program, _goldens, _scratch
    _program, _goldens = sys.argv[1], pathlib.Path(sys.argv[2])
    _scratch = pathlib.Path(tempfile.mkdtemp(prefix="witan-test-"))
    try:
        unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
    finally:
        shutil.rmtree(_scratch)


class Result:
    """How a run ended: its exit code (negative: the signal that killed it), what it wrote, and what it took."""

    def __init__(self, code, out, err, usage):
        self.code = code
        self.out_bytes = out
        self.out = out.decode("utf-8", "replace")
        self.err = err.decode("utf-8", "replace")
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        self.peak_bytes = usage.ru_maxrss * 1024

    def json_lines(self):
        return [json.loads(line) for line in self.out.splitlines()]


def program_path():
    return _program


def start(*args, env=None, through=(), program=None, **popen):
    """Starts `witan args`, as the last arguments of the command `through` where that is given; `program`: a copy of it."""
    command = [*through, program or _program, *map(str, args)]
    return subprocess.Popen(command, env={**os.environ, **(env or {})}, **popen)


def witan(*args, stdin=b"", stdout=None, **options):
    """Runs `witan args` to its end, with text or bytes as its standard input; options as of start()."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode() if isinstance(stdin, str) else stdin)
        given.seek(0)
        process = start(*args, stdin=given, stdout=stdout or out, stderr=err, **options)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Result(process.returncode, out.read(), err.read(), usage)


def limited_to_files_of(kib):
    """A `through` for start(): writing more into a file fails."""
    return ["sh", "-c", f'trap "" XFSZ; ulimit -f {2 * kib}; exec "$0" "$@"']


def golden(path):
    return _goldens / path


@functools.cache
def golden_json(path):
    return json.loads(golden(path).read_text(encoding="utf-8"))


def read_array(path, typecode):
    values = array.array(typecode)
    values.frombytes(pathlib.Path(path).read_bytes())
    return values


@functools.cache
def made_model(arch, preset="tiny", dtype="F32", layers=0):
    """The path of a model made by `witan make-model`, once per test file."""
    path = _scratch / f"{arch}-{preset}-{dtype}-{layers}.gguf"
    result = witan("make-model", "--arch", arch, "--preset", preset, "--type", dtype, "--layers", layers, path)
    assert result.code == 0, result.err
    return path


class WitanTestCase(unittest.TestCase):
    """Gives each test an empty folder of its own, `self.folder`, and the checks below."""

    maxDiff = None

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=_scratch))

    def check_peak_memory(self, result, limit):
        if not SANITIZED:
            self.assertLess(result.peak_bytes, limit)

    def file(self, name, content):
        """Writes text or bytes, or token ids given as a list; returns the path."""
        if isinstance(content, list):
            content = " ".join(map(str, content))
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def succeeds(self, *args, **options):
        result = witan(*args, **options)
        self.assertEqual(result.code, 0, result.err)
        return result

    def fails(self, *args, code=1, says=(), **options):
        """Checks that a run ends with `code` and one error that has every text of `says` in it, and prints nothing."""
        result = witan(*args, **options)
        self.assertEqual(result.code, code, result.err)
        self.assertTrue(result.err.startswith("witan: "), result.err)
        self.assertEqual(result.err.count("witan: "), 1, result.err)
        self.assertEqual(result.out, "")
        for text in says if isinstance(says, (list, tuple)) else [says]:
            self.assertIn(str(text), result.err)
        return result
