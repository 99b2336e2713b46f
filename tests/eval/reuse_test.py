"""eval/reuse_study: what runs, what is counted, what is said in words, and what is said about wrong input.

The first argument is the witan program.
"""

import json
import math
import pathlib
import subprocess
import sys
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "eval"))

import results
import reuse
from reuse import Setting

WITAN = pathlib.Path(sys.argv[1])
MODEL = REPOSITORY / "models" / "witan-tiny"
FLOOR = Setting("", floor="--exact")
SHARES = (0.1, 0.3)


def sample(name, reply, right=True, seconds=None, reuse=None):
    return results.Sample(name, "t", "v", 0, [right], ["1"], [], 3, "stop", reply, None, reuse, seconds)


class FolderTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.temporary.name)
        self.addCleanup(self.temporary.cleanup)
        self.tasks = self.folder / "tasks.jsonl"

    def write_tasks(self, texts=10, orders=2):
        """Tasks of three documents each, in several orders."""
        lines = []
        for text in range(texts):
            for order in range(orders):
                documents = [f"{text}.{(i + order) % 3}" for i in range(3)]
                lines.append({"id": f"{text}/{order}", "documents": documents, "task": "t", "prompt": "p", "answers": ["1"],
                              "scoring": "last", "max_tokens": 1})  # fmt: skip
        self.tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return reuse.Tasks(self.tasks)


class SettingTest(unittest.TestCase):
    def test_policies_are_the_engines(self):
        self.assertEqual([setting.policy() for setting in reuse.settings([0.15], 16, "--exact")], [
            "", "", "epic(first=0)", "epic(first=16)", "randomblend(recompute=0.15,first=0)",
            "cacheblend(recompute=0.15,first=0)", "routeblend(recompute=0.15,first=0)",
            "cacheblend(recompute=0.15,first=16)", "routeblend(recompute=0.15,first=16)",
        ])  # fmt: skip

    def test_the_reference_and_the_noise_floor_come_first(self):
        self.assertEqual(list(reuse.settings(SHARES, 4, "--exact"))[:2], [Setting(""), FLOOR])

    def test_settings_are_told_apart(self):
        every = list(reuse.settings(SHARES, 4, "--exact"))
        self.assertEqual(len({(setting.method(), setting.recomputed()) for setting in every}), len(every))


class TasksTest(FolderTest):
    def test_documents_are_found_once_all_of_them_were_in_tasks_before(self):
        tasks = self.write_tasks(texts=2, orders=3)
        self.assertEqual(tasks.found, {"0/1", "0/2", "1/1", "1/2"})
        self.assertEqual(tasks.texts, {"0/0": 0, "0/1": 0, "0/2": 0, "1/0": 1, "1/1": 1, "1/2": 1})

    def test_what_is_no_task_with_documents_is_named(self):
        for line, says in (("{", "line 2: no task"), ("[]", "line 2: no task"), ('{"documents": ["a"]}', "line 2: no task"),
                           ('{"id": "a", "prompt": "b"}', 'line 2: no "documents"')):  # fmt: skip
            self.tasks.write_text("\n" + line + "\n")
            with self.subTest(line), self.assertRaisesRegex(reuse.TasksError, says):
                reuse.Tasks(self.tasks)


class StudyTest(FolderTest):
    """Replies are made up: the same as with everything computed, or not."""

    def study(self, same, floor=lambda text: True, settings=None):
        """`same`: (setting, number of the text) -> whether its replies are the reference's."""
        tasks = self.write_tasks()
        settings = settings or list(reuse.settings(SHARES, 4, "--exact"))
        found = {}
        for setting in settings:
            found[setting] = []
            for name, text in tasks.texts.items():
                is_same = (not setting.floor or floor(text)) if not setting.by else same(setting, text)
                reuse_of = {"tokens": 64, "found": 64, "recomputed": 20} if setting.by else None
                found[setting].append(sample(name, "a" if is_same else "b", is_same, 0.5 if name.endswith("/0") else 0.25,
                                             reuse_of))  # fmt: skip
        return reuse.Study(tasks, found)

    def verdict(self, study):
        return list(reuse.in_words(study))[-1]

    def test_shares_and_times_are_counted(self):
        study = self.study(lambda setting, text: text < 4)
        values = Setting("values", 0.1)
        self.assertEqual((study.same(values).part, study.same(values).whole), (8, 20))
        self.assertEqual(study.right(values).part, 8)
        self.assertEqual(study.same(study.reference).value, 1)
        self.assertEqual(study.first_token(values), reuse.Mean(0.25, 0.0, 10), "of documents that were found")

    def test_tasks_with_the_same_documents_are_one_sample(self):
        study = self.study(lambda setting, text: setting.by == "routes" and text < 5)
        difference = study.difference([(Setting("routes", 0.1), Setting("values", 0.1))], study.is_same)
        self.assertEqual((difference.value, difference.count), (0.5, 10))
        self.assertAlmostEqual(difference.error, 2 * math.sqrt(10 * 0.25 / 9 / 10))
        self.assertEqual(reuse.Mean.of([0.5]).error, math.inf)

    def test_only_what_differs_in_the_choice_alone_is_compared(self):
        study = self.study(lambda setting, text: True)
        for one, other in study.pairs("routes", "values"):
            self.assertEqual((one.by, other.by, one.recompute, one.first), ("routes", "values", other.recompute, other.first))
        self.assertEqual(len(study.pairs("routes", "values")), 4)
        self.assertEqual(len(study.pairs("routes", "random")), 2, "which has no first tokens")

    def test_whichever_is_better_is_named(self):
        better = self.study(lambda setting, text: setting.by == "routes" or text < 2)
        self.assertIn("Routing beats values at equal recomputation, beyond the noise floor", self.verdict(better))
        worse = self.study(lambda setting, text: setting.by == "values" or text < 2)
        self.assertIn("Values beat routing", self.verdict(worse))
        near = self.study(lambda setting, text: text < 5 or text == 5 and setting.by == "routes")
        self.assertIn("Routing does not beat values at equal recomputation, nor values routing", self.verdict(near))
        equal = self.study(lambda setting, text: text < 5)
        self.assertIn("No verdict on routing against values: no text tells them apart", self.verdict(equal))
        self.assertIn("right answers +0.0 points ± 0.0, no difference in any text.", "\n".join(reuse.in_words(equal)))
        words = "\n".join(reuse.in_words(worse))
        self.assertIn("Routing against values, 10 % recomputed: replies word for word -80.0 points ± 26.7, values are better.",
                      words)  # fmt: skip
        self.assertIn("Routing against values, 10 % with the first recomputed", words)
        self.assertIn("Values against chance, every share recomputed: right answers +80.0", words)

    def test_a_difference_that_arithmetic_makes_too_says_nothing(self):
        study = self.study(lambda setting, text: setting.by == "routes" or text < 7, floor=lambda text: text < 6)
        self.assertIn("does not beat", self.verdict(study))
        words = list(reuse.in_words(study))
        self.assertIn("--exact alone changes the words of 8 of 20 replies (40.0 %), and whether answers are right of 40.0 %.",
                      words[0])  # fmt: skip
        self.assertIn("+30.0 points ± 30.6, which may be chance.", words[1])
        study = self.study(lambda setting, text: setting.by == "routes" or text < 6, floor=lambda text: text < 5)
        self.assertIn("+40.0 points ± 32.7, which is within the noise floor.", list(reuse.in_words(study))[1])

    def test_without_one_of_them_there_is_no_verdict(self):
        kept = [setting for setting in reuse.settings(SHARES, 4, "--exact") if setting.by != "routes"]
        study = self.study(lambda setting, text: True, settings=kept)
        self.assertEqual(self.verdict(study), "No verdict on routing against values: not both ran.")
        alone = self.study(lambda setting, text: True, settings=kept[:2])
        self.assertIn("All figures", reuse.page(alone, [Setting("none")], "T"))
        self.assertIn("Left out, as the model refused: epic(first=0).", reuse.markdown(alone, [Setting("none")]))

    def test_the_page_and_the_figures_have_every_setting(self):
        study = self.study(lambda setting, text: text < 4)
        page = reuse.page(study, [], "A <study>")
        self.assertIn("A &lt;study&gt;", page)
        self.assertEqual(page.count("<svg class=\"plot\""), 2)
        figures = json.loads(json.dumps(reuse.as_json(study, []), allow_nan=False))
        self.assertEqual(len(figures["runs"]), len(study.found))
        self.assertEqual(figures["runs"][2]["same"]["part"], 8)
        self.assertEqual([run["computed_again"] for run in figures["runs"][1:3]], [None, 0.3125])
        self.assertEqual(figures["noise"], {"replies word for word": 0, "right answers": 0})
        self.assertEqual(figures["words"][-1], self.verdict(study))
        table = reuse.markdown(study, [])
        self.assertIn("| the first 4, then by values | 30 % with the first (31.2 %) | 40.0 % (8 of 20; 21.9 to 61.3) |", table)
        self.assertIn("| 250.0 ± 0.0 ms (10) |", table)


# Replies are right with everything computed and by routing.
FAKE = """
import json, pathlib, sys
folder, args = pathlib.Path(__file__).parent, sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(args) + "\\n")
policy = args[args.index("--kv") + 1] if "--kv" in args else ""
if "random" in policy:
    sys.exit("witan: refused") if (folder / "fails").exists() else sys.exit(3)
lines = [{"format": "witan-eval-1", "model": "m", "settings": {"kv": policy}, "tasks": ["t"]}]
for task in map(json.loads, (folder / "tasks.jsonl").read_text().splitlines()):
    right = not policy or "routeblend" in policy
    lines.append({"id": task["id"], "task": "t", "correct": [right], "answers": ["1"], "generated_tokens": 9,
                  "finish_reason": "stop", "reply": str(right), "first_token_seconds": 0.5})
lines.append({"run": {}})
pathlib.Path(args[args.index("--out") + 1]).write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


class ToolTest(FolderTest):
    def setUp(self):
        super().setUp()
        self.fake = self.folder / "witan"
        self.fake.write_text(f"#!{sys.executable}\n{FAKE}")
        self.fake.chmod(0o755)

    def run_tool(self, *args, fails=False, witan=None, model="m"):
        command = [REPOSITORY / "eval" / "reuse_study", "-m", model, "--out", self.folder / "out", "--witan",
                   witan or self.fake, *args]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        self.assertEqual(done.returncode != 0, fails, done.stderr)
        return done.stderr if fails else done.stdout

    def calls(self):
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def test_everything_is_run_one_task_at_a_time_and_once(self):
        self.write_tasks()
        flags = ["--tasks", self.tasks, "--recompute", "0.1,0.3", "--floor=--exact --kv-type f32", "--", "-c", "512"]
        out = self.run_tool(*flags)
        self.assertIn("Routing beats values", out)
        self.assertIn("refused: randomblend(recompute=0.1,first=0), randomblend(recompute=0.3,first=0)", out)
        calls = self.calls()
        self.assertEqual(len(calls), 4 + 5 * 2)
        self.assertNotIn("--kv", calls[0])
        self.assertEqual(calls[1][-3:], ["--exact", "--kv-type", "f32"], "the noise floor is measured first")
        for call in calls:
            self.assertEqual((call[call.index("--sequences") + 1], call[call.index("-c") + 1]), ("1", "512"))
        self.assertEqual(self.run_tool(*flags), out)
        again = self.calls()[len(calls) :]
        self.assertTrue(all("random" in " ".join(call) for call in again), "nothing runs again but what was refused")
        figures = json.loads((self.folder / "out" / "reuse.json").read_text())
        self.assertIn("Routing beats values", figures["words"][-1])
        self.assertIn("Routing beats values", (self.folder / "out" / "report.html").read_text())

    def test_a_run_that_was_interrupted_begins_again(self):
        self.write_tasks()
        flags = ["--tasks", self.tasks, "--recompute", "0.1"]
        self.run_tool(*flags)
        (path,) = (self.folder / "out" / "runs").glob("cacheblend_recompute=0.1_first=0.jsonl")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
        before = len(self.calls())
        self.run_tool(*flags)
        self.assertEqual([call[-1] for call in self.calls()[before:]],
                         ["randomblend(recompute=0.1,first=0)", "cacheblend(recompute=0.1,first=0)"])  # fmt: skip
        self.assertEqual(len(path.read_text().splitlines()), 22)

    def test_a_model_is_studied(self):
        out = self.run_tool("--task", "retrieval:one_key", "--lengths", 400, "--samples", 1, "--documents", 3, "--shuffles", 2,
                            "--recompute", "0.2", "--first", 4, witan=WITAN, model=MODEL)  # fmt: skip
        self.assertRegex(out, r"\n- (No verdict|Routing does not beat|Routing beats|Values beat|Routing and values are each)")
        runs = json.loads((self.folder / "out" / "reuse.json").read_text())["runs"]
        self.assertEqual(len(runs), 9)
        again = [run["computed_again"] for run in runs]
        self.assertEqual(again[:2], [None, None])
        self.assertEqual(len(set(again[4:])), 1, "as many whatever chooses them")
        self.assertAlmostEqual(again[4] - again[2], 0.2, delta=0.01)
        self.assertEqual([run["first_token_seconds"]["count"] for run in runs], [1] * 9)
        for path in (self.folder / "out" / "runs").glob("*blend*"):
            last = results.read(path).samples[-1]
            self.assertTrue(0 < last.kv_reuse["found"] == last.kv_reuse["tokens"], "documents are found in other places")

    def test_what_fails_is_named(self):
        self.write_tasks()
        (self.folder / "fails").touch()
        self.assertIn("witan eval ended with 1", self.run_tool("--tasks", self.tasks, fails=True))
        self.assertIn("'0,2': expected shares", self.run_tool("--recompute", "0,2", fails=True))
        self.assertIn("--first", self.run_tool("--first", "0", fails=True))
        self.assertIn("--tasks or --task", self.run_tool("--tasks", self.tasks, "--task", "ruler", fails=True))
        self.assertIn("make_tasks ended with 2", self.run_tool("--task", "retrieval", fails=True))
        self.tasks.write_text('{"id": "a"}\n')
        self.assertIn('line 1: no "documents"', self.run_tool("--tasks", self.tasks, fails=True))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
