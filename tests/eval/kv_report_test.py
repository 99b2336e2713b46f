"""eval/kv_sweep and eval/kv_report: what runs, what is counted, and what is said about wrong input.

The first argument is the witan program.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "eval"))

import kv_page

WITAN = pathlib.Path(sys.argv[1])
MODEL = REPOSITORY / "models" / "witan-tiny"


def header(**settings):
    return {"format": "witan-eval-1", "version": "0.1.0", "model": "models/witan-tiny", "architecture": "qwen3_moe",
            "settings": settings, "tasks": ["tasks.jsonl"]}  # fmt: skip


def sample(name, correct, task, kept=None, **fields):
    line = {"id": name, "task": task, "variant": "v", "length": 256, "correct": correct, "answers": ["7"] * len(correct),
            "positions": [], "generated_tokens": 10, "finish_reason": "stop", "reply": "7"}  # fmt: skip
    if kept is not None:
        total = sum(map(sum, kept))
        line["kv"] = {"tokens": 100, "kept": kept, "bytes_before": 4000, "bytes_after": total * 10}
    return line | fields


class FolderTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.temporary.name)
        self.addCleanup(self.temporary.cleanup)

    def write(self, name, *lines):
        text = "".join(json.dumps(line) + "\n" for line in (header(), *lines))
        (self.folder / f"{name}.jsonl").write_text(text)

    def run_tool(self, tool, *args, fails=False):
        done = subprocess.run([REPOSITORY / "eval" / tool, *map(str, args)], capture_output=True, text=True)
        self.assertEqual(done.returncode != 0, fails, done.stderr)
        return done.stderr


class ReportTest(FolderTest):
    def setUp(self):
        super().setUp()
        self.write("dense", sample("a", [True, True], "retrieval"), sample("b", [True, False], "lists"))
        few, many = [[10, 30], [20, 20]], [[50, 50], [50, 50]]
        self.write("snapkv@0.2", sample("a", [True, False], "retrieval", few), sample("b", [False, None], "lists", few))
        self.write("snapkv@0.5", sample("a", [True, True], "retrieval", many), sample("b", [True, False], "lists", many))
        self.write("keydiff@0.2", sample("a", [False, False], "retrieval", few, generated_tokens=30, finish_reason="length"),
                   sample("b", [True, False], "lists"))  # fmt: skip

    def test_accuracy_bytes_and_what_is_kept_are_counted(self):
        sweep = kv_page.read(self.folder)
        self.assertEqual(sweep.methods(), ["keydiff", "snapkv"])
        self.assertEqual(sweep.budgets(), ["0.2", "0.5"])
        self.assertEqual(sweep.dense.mean(), 0.75)
        keydiff, half, fifth = sweep.runs
        self.assertEqual((keydiff.method, half.budget, fifth.budget), ("keydiff", "0.5", "0.2"))
        self.assertEqual(fifth.mean(), 0.25)
        self.assertEqual(sweep.relative(fifth, "retrieval"), 0.5)
        self.assertEqual(fifth.bytes_kept(), 0.2)
        self.assertEqual(half.bytes_kept(), 0.5)
        self.assertEqual(keydiff.bytes_kept(), 0.6, "one of two samples dropped nothing")
        self.assertEqual(fifth.kept_by_head(), [[0.1, 0.3], [0.2, 0.2]])
        self.assertIsNone(sweep.dense.kept_by_head())

    def test_the_page_says_so(self):
        page = self.folder / "page.html"
        self.run_tool("kv_report", self.folder, "--out", page, "--title", "A <sweep>")
        text = page.read_text()
        for expected in (
            "A &lt;sweep&gt;",
            "With 20 %, keydiff is right most often (25 % on average over the tasks, dense 75 %), snapkv least (25 %).",
            "retrieval: snapkv with 50 % is the smallest that keeps 95 % of the dense accuracy (50 % of the bytes).",
            "lists: snapkv with 50 %",
            "layer 0, head 1: 30.0 %",
            "keydiff<br>50.0 %",
            "<td>2.00</td><td>1</td>",  # twice the tokens, one cut off
        ):
            with self.subTest(expected):
                self.assertIn(expected, text)
        self.assertNotIn("<script", text)

    def test_heads_that_kept_most_make_a_table(self):
        done = subprocess.run([REPOSITORY / "eval" / "kv_heads", self.folder, "--run", "snapkv@0.2", "--full", "0.5"],
                              capture_output=True, text=True)  # fmt: skip
        self.assertEqual((done.stdout, done.stderr), ("duoattention(heads=01/10)\n", ""), "of equal ones the first")
        self.assertIn("keydiff@0.2, snapkv@0.2", self.run_tool("kv_heads", self.folder, "--run", "x@0.2", fails=True))
        self.assertIn("--full 2.0", self.run_tool("kv_heads", self.folder, "--full", "2", fails=True))

    def test_what_failed_counts_as_wrong_and_what_nobody_solves_is_left_out(self):
        self.write("dense", sample("a", [True], "retrieval"), sample("b", [False], "lists"), sample("c", [True], "retrieval"))
        self.write("snapkv@0.2", sample("a", [True], "retrieval"), sample("b", [False], "lists"), {"id": "c", "error": "no room"})
        for name in ("snapkv@0.5", "keydiff@0.2"):
            os.remove(self.folder / f"{name}.jsonl")
        (run,) = kv_page.read(self.folder).runs
        self.assertEqual(run.by_task["retrieval"].right.value, 0.5)
        page = self.folder / "page.html"
        self.run_tool("kv_report", self.folder, "--out", page)
        text = page.read_text()
        self.assertIn("lists: nothing is right with all entries either.", text)
        suffers = text[text.index("<h2>What suffers first") : text.index("<h2>Methods")]
        self.assertNotIn('<th scope="row">lists', suffers)

    def test_what_is_no_sweep_is_named(self):
        page = self.folder / "page.html"
        self.write("snapkv@0.1", sample("a", [True, True], "retrieval"))
        self.assertIn("snapkv@0.1.jsonl: ran other tasks", self.run_tool("kv_report", self.folder, "--out", page, fails=True))
        os.rename(self.folder / "snapkv@0.1.jsonl", self.folder / "a@b.jsonl")
        self.assertIn("'b' is no budget", self.run_tool("kv_report", self.folder, "--out", page, fails=True))
        os.remove(self.folder / "dense.jsonl")
        self.assertIn("no dense.jsonl", self.run_tool("kv_report", self.folder, "--out", page, fails=True))
        self.assertFalse(page.exists())


class SweepTest(FolderTest):
    def test_a_sweep_runs_every_method_at_every_budget_once(self):
        tasks = self.folder / "tasks.jsonl"
        self.run_tool("make_tasks", "--task", "retrieval:one_key", "--task", "arithmetic:columns", "--lengths", 256,
                      "--samples", 2, "--out", tasks)  # fmt: skip
        out = self.folder / "out"
        flags = ["-m", MODEL, "--tasks", tasks, "--out", out, "--witan", WITAN, "--budgets", "0.5,40", "--only", "tova",
                 "--method", "mine=keydiff,adakv(window=4),{budget},every=8"]  # fmt: skip
        said = self.run_tool("kv_sweep", *flags, "--", "-t", 1)
        names = {"dense", "tova@0.5", "tova@40", "mine@0.5", "mine@40"}
        self.assertEqual({path.stem for path in out.glob("*.jsonl")}, names)
        self.assertIn("5 of 5", said)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        self.assertEqual(self.run_tool("kv_sweep", *flags), "", "all is there")
        self.assertEqual({path.name: path.read_bytes() for path in out.iterdir()}, before)
        sweep = kv_page.read(out)
        self.assertEqual(sweep.tasks(), ["retrieval", "arithmetic"])
        for run in sweep.runs:
            self.assertLess(run.bytes_kept(), 1.0)
            self.assertEqual([len(heads) for heads in run.kept_by_head()], [2, 2, 2, 2])
        self.run_tool("kv_report", out, "--out", self.folder / "page.html")

    def test_wrong_arguments_are_named(self):
        base = ["-m", MODEL, "--tasks", self.folder / "none.jsonl", "--out", self.folder / "out", "--witan", WITAN]
        self.assertIn("none.jsonl", self.run_tool("kv_sweep", *base, fails=True))
        self.assertIn("'1.5'", self.run_tool("kv_sweep", *base, "--budgets", "1.5", fails=True))
        self.assertIn("'x'", self.run_tool("kv_sweep", *base, "--budgets", "x", fails=True))
        self.assertIn("NAME=POLICY", self.run_tool("kv_sweep", *base, "--method", "snapkv,keep=0.5", fails=True))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
