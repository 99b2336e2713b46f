"""eval/kv_sweep, eval/kv_report and eval/kv_table: what runs, what is counted, and what is said about wrong input.

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

import kv_advice
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
        self.assertEqual(sweep.budgets(), ["0.5", "0.2"])
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
        self.assertIsNone(fifth.bytes_read())

    def test_what_tokens_read_is_told_of_those_that_choose(self):
        self.write("quest@0.2", sample("a", [True, True], "retrieval", kv_read={"bytes": 100, "bytes_of_all": 400}),
                   sample("b", [True, False], "lists", kv_read={"bytes": 200, "bytes_of_all": 600}))  # fmt: skip
        quest = next(run for run in kv_page.read(self.folder).runs if run.method == "quest")
        self.assertEqual(quest.bytes_read(), 0.3)
        self.assertEqual(quest.bytes_kept(), 1.0)

    def test_a_sample_without_a_report_counts_as_large_as_another_run_says(self):
        self.write("keydiff@0.2", sample("a", [False, False], "retrieval", [[10, 30], [20, 20]]), sample("b", [True, False], "lists"))
        path = self.folder / "snapkv@0.5.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        (of_b,) = (line for line in lines if line.get("id") == "b")
        (of_a,) = (line for line in lines if line.get("id") == "a")
        of_b["kv"]["bytes_before"] = 3 * of_a["kv"]["bytes_before"]
        os.remove(self.folder / "snapkv@0.2.jsonl")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        keydiff = kv_page.read(self.folder).runs[0]
        self.assertAlmostEqual(keydiff.bytes_kept(), (0.2 + 3) / 4)

    def test_the_page_says_so(self):
        page = self.folder / "page.html"
        self.run_tool("kv_report", self.folder, "--out", page, "--title", "A <sweep>")
        text = page.read_text().replace("&nbsp;", " ")
        for expected in (
            "A &lt;sweep&gt;",
            "With 20 %, keydiff is right most often (25 % on average over the tasks, dense 75 %), snapkv least (25 %).",
            "retrieval: snapkv with 50 % is the smallest that keeps 95 % of the dense accuracy (50 % of the bytes).",
            "lists: snapkv with 50 %",
            "layer 0, head 1: 30.0 %",
            '<th scope="col">at most 30 %</th><th scope="col">at most 20 %</th></tr>',
            "snapkv, 20 %<br>",
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
        done = subprocess.run([REPOSITORY / "eval" / "kv_heads", self.folder, "--run", "snapkv@0.2", "--layers"],
                              capture_output=True, text=True)  # fmt: skip
        self.assertEqual((done.stdout, done.stderr), ("layershares(shares=0.2/0.2)\n", ""))
        self.assertIn("keydiff@0.2, snapkv@0.2", self.run_tool("kv_heads", self.folder, "--run", "x@0.2", fails=True))
        self.assertIn("--full 2.0", self.run_tool("kv_heads", self.folder, "--full", "2", fails=True))

    def test_entries_that_are_all_rounded_are_no_budget_that_answers_can_be_kept_down_to(self):
        few = [[10, 30], [20, 20]]
        self.write("int4@1.0", sample("a", [True, True], "retrieval", few), sample("b", [True, False], "lists", few))
        words = " ".join(kv_advice.of_abilities(kv_page.read(self.folder), str))
        self.assertIn("95 % of the dense accuracy can be kept down to 50 %, the smallest tried.", words)
        self.assertNotIn("down to 100 %", words)
        page = self.folder / "page.html"
        self.run_tool("kv_report", self.folder, "--out", page)
        text = page.read_text()
        self.assertIn("int4, 100 %<br>100.0 %", text, "of equal ones the one of fewest bytes")

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


class TableTest(FolderTest):
    """eval/kv_table, of two folders as of two seeds."""

    def setUp(self):
        super().setUp()
        few = [[10, 30], [20, 20]]
        self.folders = [self.folder / name for name in ("three", "seventeen")]
        for number, folder in enumerate(self.folders):
            folder.mkdir()
            right = number == 0
            self.write(f"{folder.name}/dense", sample("a", [True], "retrieval", prompt_tokens=100),
                       sample("b", [True, True], "lists", prompt_tokens=20))  # fmt: skip
            self.write(f"{folder.name}/snapkv@0.2", sample("a", [right], "retrieval", few, prompt_tokens=100, generated_tokens=5),
                       sample("b", [None, right], "lists", prompt_tokens=20, generated_tokens=10))  # fmt: skip
            self.write(f"{folder.name}/snapkv@20", sample("a", [right], "retrieval", few, prompt_tokens=100),
                       sample("b", [True, right], "lists", prompt_tokens=20))  # fmt: skip
        self.write("three/tova@20", sample("a", [True], "retrieval", few), sample("b", [True, True], "lists"))

    def table(self, *args):
        done = subprocess.run([REPOSITORY / "eval" / "kv_table", *self.folders, *map(str, args)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()

    def test_folders_are_joined_where_all_have_a_run(self):
        self.assertEqual(self.table(), ["| method | 20 % | 20 tokens |", "|---|---|---|", "| `snapkv` | 38 | 62 |"])
        self.assertEqual(self.table("--methods", "snapkv", "--budgets", "20")[2:], ["| `snapkv` | 62 |"])
        self.assertIn("no tova in all of the folders; there are snapkv",
                      self.run_tool("kv_table", *self.folders, "--methods", "tova", fails=True))  # fmt: skip
        self.assertIn("no 0.5 in all", self.run_tool("kv_table", *self.folders, "--budgets", "0.5", fails=True))

    def test_a_row_for_each_run_tells_tasks_lengths_entries_and_bytes(self):
        self.assertEqual(self.table("--rows", "tasks"), [
            "|  | mean | retrieval | lists | given | length | entries | at the end | bytes |",
            "|---|---|---|---|---|---|---|---|---|",
            "| every entry | 100 | 100 | 100 | 100 | 1.00 | 60 | 70 | 100 |",
            "| `snapkv`, 20 % | 38 | 50 | 25 | 67 | 0.75 | 20 | 28 | 60 |",
            "| `snapkv`, 20 tokens | 62 | 50 | 75 | 100 | 1.00 | 20 | 30 | 60 |",
        ])  # fmt: skip

    def test_tasks_can_be_chosen(self):
        self.assertEqual(self.table("--rows", "tasks", "--tasks", "lists")[2:], [
            "| every entry | 100 | 100 | 100 | 1.00 | 20 | 30 | 100 |",
            "| `snapkv`, 20 % | 25 | 25 | 50 | 1.00 | 20 | 30 | 100 |",
            "| `snapkv`, 20 tokens | 75 | 75 | 100 | 1.00 | 20 | 30 | 100 |",
        ])  # fmt: skip
        self.assertIn("no task sums; there are retrieval, lists",
                      self.run_tool("kv_table", *self.folders, "--tasks", "sums", fails=True))  # fmt: skip

    def test_prompts_are_told_by_length(self):
        self.assertEqual(self.table("--rows", "prompts", "--lengths", "20,50"), [
            "| right (bytes) | to 20 | to 50 | above 50 |",
            "|---|---|---|---|",
            "| every entry | 100 (100) |  | 100 (100) |",
            "| `snapkv`, 20 % | 25 (100) |  | 50 (20) |",
            "| `snapkv`, 20 tokens | 75 (100) |  | 50 (20) |",
        ])  # fmt: skip
        self.write("three/dense", sample("a", [True], "retrieval"), sample("b", [True, True], "lists"))
        self.assertIn("does not tell how many tokens",
                      self.run_tool("kv_table", *self.folders, "--rows", "prompts", fails=True))  # fmt: skip
        self.assertIn("expected rising numbers",
                      self.run_tool("kv_table", *self.folders, "--lengths", "20,20", fails=True))  # fmt: skip


class AdviceTest(FolderTest):
    """What the page says about which method to use, from figures made up for it."""

    def write_run(self, name, right, policy=None, **fields):
        """`right`: of each task, how many of its twelve samples have their answer right; None: no answer is given."""
        lines = [sample(f"{task}/{i}", [None if count is None else i < count], task, **fields)
                 for task, count in right.items() for i in range(12)]  # fmt: skip
        head = header(**({"kv": policy} if policy else {}))
        (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)))

    def page(self):
        page = self.folder / "page.html"
        self.run_tool("kv_report", self.folder, "--out", page)
        return page.read_text().replace("&nbsp;", " ")

    def test_the_best_is_named_with_those_as_good_and_what_it_is_not_for(self):
        self.write_run("dense", {"retrieval": 12, "lists": 12, "arithmetic": 12})
        self.write_run("good@0.5", {"retrieval": 12, "lists": 7, "arithmetic": 2})
        self.write_run("close@0.5", {"retrieval": 12, "lists": 6, "arithmetic": 2})
        self.write_run("bad@0.5", {"retrieval": 2, "lists": 0, "arithmetic": None})
        for method, right in (("good", 1), ("close", 0), ("bad", 0)):
            self.write_run(f"{method}@30", {"retrieval": right, "lists": 0, "arithmetic": 0})
        page = self.page()
        for expected in (
            "50 %: use good (58 % right, dense 100 %). close may be as good: the difference is within two standard errors. "
            "The replies of good give 100 % of the answers. It keeps 95 % of the dense accuracy in retrieval. Not for "
            "arithmetic: less than half of the dense accuracy is left.",
            "30 tokens: use none. good loses least (3 % right, dense 100 %), and more than half in every task.",
            "lists and arithmetic suffer first: no method at any budget tried keeps 95 %.",
            "retrieval: 95 % of the dense accuracy can be kept down to 50 %, not below.",
        ):
            with self.subTest(expected):
                self.assertIn(expected, page)
        self.assertNotIn("At no budget among the best: bad", page, "with 30 tokens it is as good as any")
        os.remove(self.folder / "bad@30.jsonl")
        page = self.page()
        self.assertIn("At no budget among the best: bad.", page)
        for method in ("good", "close"):
            os.remove(self.folder / f"{method}@30.jsonl")
        self.assertIn("retrieval: 95 % of the dense accuracy can be kept down to 50 %, the smallest tried.", self.page())

    def test_of_many_methods_the_best_have_curves_and_all_are_in_the_tables(self):
        self.write_run("dense", {"retrieval": 12})
        for right in range(12):
            self.write_run(f"m{right:02}@0.5", {"retrieval": right})
        page = self.page()
        curves = page[page.index("<h2>Right answers") : page.index("<h2>The best method")]
        self.assertIn("Shown are the 10 methods", curves)
        for right in range(12):
            self.assertEqual(f"<span>m{right:02}</span>" in curves, right > 1)
            self.assertIn(f'<th scope="row">m{right:02}</th>', page)

    def test_schedules_of_one_method_are_compared(self):
        self.write_run("dense", {"retrieval": 12}, generated_tokens=20)
        self.write_run("h2o@0.5", {"retrieval": 9}, "h2o,keep=0.5", generated_tokens=10)
        self.write_run("often@0.5", {"retrieval": 6}, "h2o,keep=0.5,every=16", generated_tokens=30)
        self.write_run("pool@0.5", {"retrieval": 3}, "h2o,keep=0.5,generated_tokens=32")
        self.write_run("tova@0.5", {"retrieval": 3}, "tova,keep=0.5")
        self.write_run("rkv@0.5", {"retrieval": 3}, "rkv,keep=0.5")
        self.write_run("json@0.5", {"retrieval": 3}, '{"parts": ["h2o"], "keep": 0.5}')
        page = self.page()
        section = page[page.index("<h2>The prompt alone") : page.index("<h2>Methods")]
        for name, judged, figures in (
            ("h2o", "the prompt, once", "75.0 %<br>0.50"),
            ("often", "again every 16 tokens", "50.0 %<br>1.50"),
            ("pool", "generated tokens in a pool of their own, every 64 tokens", "25.0 %<br>0.50"),
        ):
            self.assertIn(f'<th scope="row">{name}</th><td>{judged}</td><td>{figures}</td>', section)
        for name in ("tova", "rkv", "json"):
            self.assertNotIn(name, section)
        self.assertEqual(kv_advice.schedule("every=9,rkv,keep=0.5"), "again every 9 tokens")
        self.assertEqual(kv_advice.schedule("rkv(lambda=0.2),keep=0.5"), "again every 128 tokens")
        completion = page[page.index("<h2>Completion") : page.index("<h2>The prompt alone")]
        self.assertIn('<th scope="row">often</th><td>100.0 %<br>1.50</td>', completion)
        for name in ("often", "pool"):
            os.remove(self.folder / f"{name}@0.5.jsonl")
        self.assertNotIn("The prompt alone", self.page(), "nothing to compare")


class SweepTest(FolderTest):
    def test_a_sweep_runs_every_method_at_every_budget_once(self):
        tasks = self.folder / "tasks.jsonl"
        self.run_tool("make_tasks", "--task", "retrieval:one_key", "--task", "arithmetic:columns", "--lengths", 256,
                      "--samples", 2, "--out", tasks)  # fmt: skip
        out = self.folder / "out"
        flags = ["-m", MODEL, "--tasks", tasks, "--out", out, "--witan", WITAN, "--budgets", "0.5,40", "--only", "tova",
                 "--only", "int4", "--method", "mine=keydiff,adakv(window=4),{budget},every=8"]  # fmt: skip
        said = self.run_tool("kv_sweep", *flags, "--", "-t", 1)
        names = {"dense", "tova@0.5", "tova@40", "mine@0.5", "mine@40", "int4@1.0"}
        self.assertEqual({path.stem for path in out.glob("*.jsonl")}, names, "what only rounds entries runs once")
        self.assertIn("6 of 6", said)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        self.assertEqual(self.run_tool("kv_sweep", *flags), "", "all is there")
        self.assertEqual({path.name: path.read_bytes() for path in out.iterdir()}, before)
        sweep = kv_page.read(out)
        self.assertEqual(sweep.tasks(), ["retrieval", "arithmetic"])
        for run in sweep.runs:
            self.assertLess(run.bytes_kept(), 1.0)
            self.assertEqual([len(heads) for heads in run.kept_by_head()], [2, 2, 2, 2])
        self.run_tool("kv_report", out, "--out", self.folder / "page.html")

    def test_what_a_model_refuses_is_left_out(self):
        model = self.folder / "latents.gguf"
        subprocess.run([WITAN, "make-model", "--arch", "deepseek2", "--preset", "tiny", "--type", "F32", model], check=True,
                       capture_output=True)  # fmt: skip
        tasks, out = self.folder / "tasks.jsonl", self.folder / "out"
        self.run_tool("make_tasks", "--task", "retrieval:one_key", "--lengths", 128, "--samples", 1, "--form", "raw",
                      "--out", tasks)  # fmt: skip
        said = self.run_tool("kv_sweep", "-m", model, "--tasks", tasks, "--out", out, "--witan", WITAN, "--budgets", "0.5",
                             "--only", "keydiff+merge", "--only", "auto")  # fmt: skip
        self.assertIn("left out, as not one task ran under them: keydiff+merge@0.5", said)
        self.assertEqual({path.stem for path in out.glob("*.jsonl")}, {"dense", "auto@0.5"})
        wrong = ["-m", model, "--tasks", tasks, "--out", out, "--witan", WITAN, "--method", "x=nonsense,{budget}"]
        self.assertIn("x@0.9: witan eval ended with 2", self.run_tool("kv_sweep", *wrong, fails=True))

    def test_what_fails_otherwise_is_no_refusal(self):
        tasks, out = self.folder / "tasks.jsonl", self.folder / "out"
        self.run_tool("make_tasks", "--task", "retrieval:one_key", "--lengths", 128, "--samples", 1, "--out", tasks)
        flags = ["-m", MODEL, "--tasks", tasks, "--out", out, "--budgets", "0.5", "--only", "tova", "--only", "keydiff"]
        for failure, code in (("echo >&2 'witan: no file'; exit 1", "1"), ("kill -SEGV $$", "-11")):
            witan = self.folder / "witan"  # whose policies fail
            witan.write_text(f'#!/bin/sh\ncase "$*" in *--kv*) {failure};; *) exec "{WITAN}" "$@";; esac\n')
            witan.chmod(0o755)
            said = self.run_tool("kv_sweep", *flags, "--witan", witan, fails=True)
            self.assertIn(f"kv_sweep: tova@0.5: witan eval ended with {code}\n", said)
            self.assertEqual("no file" in said, code == "1", "its own words are passed on")
            self.assertEqual({path.stem for path in out.glob("*.jsonl")}, {"dense"})

    def test_wrong_arguments_are_named(self):
        base = ["-m", MODEL, "--tasks", self.folder / "none.jsonl", "--out", self.folder / "out", "--witan", WITAN]
        self.assertIn("none.jsonl", self.run_tool("kv_sweep", *base, fails=True))
        self.assertIn("'1.5'", self.run_tool("kv_sweep", *base, "--budgets", "1.5", fails=True))
        self.assertIn("'x'", self.run_tool("kv_sweep", *base, "--budgets", "x", fails=True))
        self.assertIn("NAME=POLICY", self.run_tool("kv_sweep", *base, "--method", "snapkv,keep=0.5", fails=True))
        for policy, words in (("snapkv,keep=0.5", "a budget of its own"), ("snapkv,{budgte}", "with {budget} where"),
                              ('{"parts": ["snapkv"], "keep": 0.5}', "expected a policy in text")):  # fmt: skip
            self.assertIn(words, self.run_tool("kv_sweep", *base, "--method", f"mine={policy}", fails=True))


class StudyTest(FolderTest):
    def study(self, *args, **options):
        return self.run_tool("kv_study", "-m", MODEL, "--out", self.folder / "study", "--witan", WITAN, *args, **options)

    def test_one_command_makes_tasks_results_and_page_and_goes_on(self):
        flags = ["--task", "retrieval:one_key", "--task", "lists:few_shot", "--lengths", 128, "--samples", 2]
        self.study(*flags, "--budgets", "0.5,40", "--only", "auto", "--method", "often=h2o,{budget},every=8",
                   "--title", "Mine", "--", "-t", 1)  # fmt: skip
        out = self.folder / "study"
        sweep = kv_page.read(out / "sweep")
        self.assertEqual((set(sweep.tasks()), sweep.methods()), ({"retrieval", "lists"}, ["auto", "often"]))
        self.assertEqual(sweep.runs[0].policy, "auto,keep=0.5")
        self.assertIn("<h1>Mine</h1>", (out / "report.html").read_text())
        before = (out / "tasks.jsonl").stat().st_mtime_ns, (out / "sweep" / "auto@0.5.jsonl").stat().st_mtime_ns
        said = self.study(*flags, "--budgets", "0.5", "--only", "tova")
        self.assertIn("2 of 2: tova@0.5", said)
        self.assertNotIn("1 of 2", said, "dense is there")
        after = (out / "tasks.jsonl").stat().st_mtime_ns, (out / "sweep" / "auto@0.5.jsonl").stat().st_mtime_ns
        self.assertEqual(before, after)
        self.assertIn("tova", (out / "report.html").read_text())
        self.assertIn("lengths was \"128\"; name another folder", self.study(*flags[:4], "--samples", 2, fails=True))

    def test_gsm8k_makes_longgenbench(self):
        file = self.folder / "gsm8k.jsonl"
        problems = [{"question": f"What is {i} plus 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(40)]
        file.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
        self.study("--gsm8k", file, "--k", 3, "--samples", 1, "--budgets", "0.5", "--only", "keydiff")
        self.assertEqual(kv_page.read(self.folder / "study" / "sweep").tasks(), ["gsm8k"])

    def test_what_fails_is_named(self):
        self.assertIn("make_tasks ended with 1", self.study("--task", "nonsense", fails=True))
        self.assertIn("kv_sweep ended with 2", self.study("--task", "retrieval:one_key", "--lengths", 128, "--samples", 1,
                                                          "--budgets", "2.5", fails=True))  # fmt: skip


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
