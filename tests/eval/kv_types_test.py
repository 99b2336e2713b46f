"""eval/kv_types: what is measured, how layers are grouped, what the search finds, and what is said about wrong input.

The first argument is the witan program.
"""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "eval"))

import type_search

WITAN = pathlib.Path(sys.argv[1])
MODEL = REPOSITORY / "models" / "witan-tiny"
BITS = {"big": 16, "medium": 8, "small": 4, "tiny": 2}


class FrontTest(unittest.TestCase):
    def test_what_is_no_better_in_anything_goes(self):
        points = [(8, 0.1, "a"), (4, 0.2, "b"), (4, 0.1, "c"), (16, 0.1, "d"), (2, 0.5, "e"), (2, 0.5, "f"), (16, 0.0, "g")]
        self.assertEqual([what for _, _, what in type_search.front(points)], ["e", "c", "g"])


class GroupTest(unittest.TestCase):
    def test_layers_with_the_same_types_and_near_losses_are_together(self):
        calm = {"big": 0.0, "medium": 0.01, "small": 0.02, "tiny": 0.03}
        calmer = {"big": 0.0, "medium": 0.005, "small": 0.01, "tiny": 0.02}
        wild = {"big": 0.0, "medium": 0.2, "small": 0.4, "tiny": 0.9}
        flat = {"big": 0.0, "medium": 0.3, "small": 0.0, "tiny": 0.1}
        groups = type_search.grouped([calm, wild, flat, calmer], BITS, 0.05)
        everything = ("tiny", "small", "medium", "big")
        self.assertEqual([(group.layers, group.types) for group in groups],
                         [((0, 3), everything), ((1,), everything), ((2,), ("tiny", "small"))])  # fmt: skip
        self.assertEqual([group.layers for group in type_search.grouped([calm, wild, flat, calmer], BITS, 1)],
                         [(0, 1, 3), (2,)])  # fmt: skip
        self.assertEqual([group.layers for group in type_search.grouped([calm, calmer], BITS, 0)], [(0,), (1,)])


class SearchTest(unittest.TestCase):
    """Of six layers, whose losses add up but for two that get on badly."""

    def setUp(self):
        steps = {"big": 0, "medium": 1, "small": 3, "tiny": 9}
        self.alone = [{name: step * (layer + 1) / 200 for name, step in steps.items()} for layer in range(6)]
        self.groups = type_search.grouped(self.alone, BITS, 0)
        self.measured = {}

    def measure(self, table):
        self.assertNotIn(table, self.measured)
        both = table[0] == table[1] == "tiny"
        self.measured[table] = sum(self.alone[layer][name] for layer, name in enumerate(table)) + both
        return self.measured[table]

    def best(self, measured):
        return type_search.front((type_search.mean_bits(table, BITS), loss, table) for table, loss in measured.items())

    def search(self, most, seed=1):
        self.measured = {}
        type_search.search(self.groups, self.alone, BITS, self.measure, most, seed)
        return self.measured

    def test_few_combinations_are_all_measured(self):
        everything = set(itertools.product(BITS, repeat=6))
        self.assertEqual(set(self.search(4**6)), everything)
        self.assertEqual(len(self.search(4**6 - 1)), 4**6 - 1)

    def test_of_many_the_best_are_found_with_few(self):
        every = dict(self.search(4**6))
        found = self.search(120)
        self.assertEqual(len(found), 120)

        # Under the front: the least loss with so many bits, over bits.
        def area(measured):
            return sum(min((loss for bits, loss, _ in self.best(measured) if bits <= most), default=5) for most in range(2, 17))

        self.assertLess(area(found), area(every) * 1.05)
        self.assertEqual(self.search(120), found, "the same with the same seed")
        self.assertNotEqual(set(self.search(120, seed=2)), set(found))

    def test_layers_of_a_group_get_the_same(self):
        self.groups = type_search.grouped(self.alone, BITS, 1)
        self.assertEqual(set(self.search(4)), {(name,) * 6 for name in BITS})


# Replies are as long as the types of the layers let them be: those of layer 1 matter.
FAKE = """
import json, pathlib, re, sys
folder, args = pathlib.Path(__file__).parent, sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(args) + "\\n")
if args[0] == "inspect":
    print(json.dumps({"layers": 5, "layers_without_window": 3}))
    sys.exit()
policy = args[args.index("--kv") + 1] if "--kv" in args else ""
if "f16*3" in policy:
    sys.exit(1)
if "kivi" in policy:
    sys.exit("witan: refused") if (folder / "fails").exists() else sys.exit(3)
types = [name for one, _, count in re.findall("([a-z0-9-]+)([*]([0-9]+))?(?=[/,])", policy) for name in [one] * int(count or 1)]
lost = sum({"f16": 0, "int8-hadamard": 0, "int2-hadamard": 30}[name] * (1, 4, 1)[i] for i, name in enumerate(types[:3]))
header = {"format": "witan-eval-1", "model": "m", "settings": {"kv_type": "f16", "kv": policy}, "tasks": ["t"]}
lines = [header]
for id in "ab":
    reply = "y" * (200 - lost) + "n" * lost if id == "a" else "y" * 100
    lines.append({"id": id, "task": id, "correct": [lost < 60 or id == "b"], "answers": ["1"], "generated_tokens": 9,
                  "finish_reason": "stop", "reply": reply})
lines.append({"run": {}})
pathlib.Path(args[args.index("--out") + 1]).write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


class ToolTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.temporary.name)
        self.addCleanup(self.temporary.cleanup)
        self.fake = self.folder / "witan"
        self.fake.write_text(f"#!{sys.executable}\n{FAKE}")
        self.fake.chmod(0o755)
        self.tasks = self.folder / "tasks.jsonl"
        self.tasks.write_text("{}\n{}\n")

    def run_tool(self, *args, fails=False, witan=None, model="m"):
        command = [REPOSITORY / "eval" / "kv_types", "-m", model, "--tasks", self.tasks, "--out", self.folder / "out",
                   "--witan", witan or self.fake, *args]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        self.assertEqual(done.returncode != 0, fails, done.stderr)
        return done.stderr if fails else done.stdout

    def calls(self):
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [args for args in map(json.loads, lines) if args[0] == "eval"]

    def test_the_front_is_printed_ready_for_use(self):
        flags = ["--types", "int8-hadamard,int2-hadamard", "--residual", 16, "--", "-c", "512"]
        out = self.run_tool(*flags)
        self.assertEqual(re.sub(" +", " ", out), """Lost of the replies, each layer alone:

layer int8-hadamard int2-hadamard
0 0.0 % 7.5 %
1 0.0 % 30.0 %
2 0.0 % 7.5 %

layers types
0 2 int2-hadamard, int8-hadamard
1 int2-hadamard, int8-hadamard

Every layer the same:

bits lost right answers --kv
16.00 0.0 % 100.0 % kvtuner(layers=f16*3,residual=16)
8.25 0.0 % 100.0 % kvtuner(layers=int8-hadamard*3,residual=16)
2.25 45.0 % 50.0 % kvtuner(layers=int2-hadamard*3,residual=16)

Least lost with so many bits, of 11 measured:

bits lost right answers --kv
2.25 45.0 % 50.0 % kvtuner(layers=int2-hadamard*3,residual=16)
4.25 15.0 % 50.0 % kvtuner(layers=int2-hadamard/int8-hadamard/int2-hadamard,residual=16)
8.25 0.0 % 100.0 % kvtuner(layers=int8-hadamard*3,residual=16)

""")  # fmt: skip
        calls = self.calls()
        self.assertEqual(len(calls), 11)
        self.assertNotIn("--kv", calls[0])
        self.assertEqual(calls[1][-2:], ["--kv", "kvtuner(layers=int8-hadamard/f16*2,residual=16)"])
        self.assertTrue(all(call[call.index("-c") + 1] == "512" for call in calls))
        self.assertEqual(self.run_tool(*flags), out)
        self.assertEqual(len(self.calls()), 11, "nothing runs again")
        os.remove(next(path for path in (self.folder / "out").iterdir() if "int8-hadamard*3" in path.read_text()))
        self.assertEqual(self.run_tool(*flags), out)
        self.assertEqual(len(self.calls()), 12, "but for what is missing")

    def test_no_more_combinations_are_measured_than_asked_for(self):
        self.run_tool("--types", "int8-hadamard,int2-hadamard", "--near", 0, "--evaluations", 4)
        self.assertLessEqual(len(self.calls()), 1 + 3 * 2 + 2 + 4)

    def test_what_fails_is_named(self):
        self.assertIn("cannot have all of --types", self.run_tool("--types", "int8-hadamard,int2-kivi", fails=True))
        self.assertEqual(len(self.calls()), 3)
        (self.folder / "fails").touch()
        said = self.run_tool("--types", "int8-hadamard,int2-kivi", fails=True)
        self.assertIn("kv_types: witan eval ended with 1", said)
        self.assertIn("witan: refused", said)
        self.assertIn("'x': expected types", self.run_tool("--types", "x", fails=True))
        self.tasks.unlink()
        self.assertIn("tasks.jsonl", self.run_tool(fails=True))

    def test_a_model_is_searched(self):
        subprocess.run([REPOSITORY / "eval" / "make_tasks", "--task", "retrieval:one_key", "--lengths", "128", "--samples", "2",
                        "--out", self.tasks], check=True)  # fmt: skip
        flags = ["--types", "int4-hadamard,int2-hadamard", "--residual", 8, "--evaluations", 2]
        out = self.run_tool(*flags, witan=WITAN, model=MODEL)
        self.assertRegex(out, r"\n2\.25 .*kvtuner\(layers=int2-hadamard\*4,residual=8\)\n")
        (best,) = re.findall(r"\n[0-9.]+ +0\.0 % .*(kvtuner\S+)\n", out[out.index("Least lost") :])
        done = subprocess.run([WITAN, "eval", "-m", MODEL, "--tasks", self.tasks, "--kv", best, "--out", self.folder / "one"],
                              capture_output=True)  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
