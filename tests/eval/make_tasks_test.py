"""eval/make_tasks as its users see it: what its files hold, and what it says about wrong input.

The first argument is the witan program, the second the folder of golden data.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

WITAN, GOLDENS = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])


class MakeTasksTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_it(self, *args, out="tasks.jsonl"):
        command = [sys.executable, REPOSITORY / "eval" / "make_tasks", "--out", self.folder / out, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def lines(self, *args):
        done = self.run_it(*args)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in (self.folder / "tasks.jsonl").read_text().splitlines()]

    def fails(self, *args, says):
        done = self.run_it(*args)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(says, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(list(self.folder.iterdir()), [], "a run that fails leaves no file")

    def test_a_line_has_what_an_evaluation_needs(self):
        lines = self.lines("--task", "retrieval:one_key", "--task", "long_answer:k20", "--lengths", "1536", "--samples", 2)
        self.assertEqual([line["id"] for line in lines], [
            "retrieval/one_key/1536/0", "retrieval/one_key/1536/1", "long_answer/k20/1536/0", "long_answer/k20/1536/1"
        ])  # fmt: skip
        for line in lines:
            self.assertEqual([message["role"] for message in line["messages"]], ["user"])
            self.assertEqual(line["length"], 1536)
            self.assertEqual(line["scoring"], {"retrieval": "last", "long_answer": "numbered"}[line["task"]])
            self.assertEqual(len(line["positions"]), len(line["answers"]))
            self.assertTrue(all(0 <= place <= 1 for place in line["positions"]))
            self.assertGreater(line["max_tokens"], 2 * len(line["answers"]))
        self.assertEqual(len(lines[2]["answers"]), 20)

    def test_equal_seeds_give_equal_files(self):
        arguments = ("--task", "retrieval", "--task", "lists", "--lengths", "256", "--samples", 3)
        self.assertEqual(self.lines(*arguments), self.lines(*arguments))
        self.assertNotEqual(self.lines(*arguments), self.lines(*arguments, "--seed", 2))

    def test_raw_prompts_end_where_the_answer_begins(self):
        (line,) = self.lines("--task", "retrieval:one_key", "--samples", 1, "--form", "raw")
        self.assertTrue(line["prompt"].endswith("\nAnswer:"))
        self.assertEqual(line["stop"], ["\n"])
        self.assertNotIn("messages", line)

    def test_documents_come_in_several_orders(self):
        flags = ["--task", "following:hops", "--lengths", "512", "--samples", 2, "--form", "raw"]
        whole = self.lines(*flags)
        lines = self.lines(*flags, "--documents", 5, "--shuffles", 3)
        self.assertEqual([line["id"] for line in lines], [f"following/hops/512/{i}/order{j}" for i in range(2) for j in range(3)])
        for line in lines:
            self.assertEqual(len(line["documents"]), 5)
            self.assertTrue(line["prompt"].startswith("Question: "), "the text is in the documents alone")
            self.assertEqual(sorted(line["documents"]), sorted(lines[3 * int(line["id"].split("/")[3])]["documents"]))
            self.assertEqual(set(line) - {"documents"}, set(whole[0]))
            self.assertTrue(all(0 <= place < 1 for place in line["positions"]))
        self.assertEqual(len({"".join(line["documents"]) for line in lines}), 6)
        self.assertEqual(lines, self.lines(*flags, "--documents", 5, "--shuffles", 3), "the same from the same seed")
        short = self.run_it("--task", "retrieval:one_key", "--lengths", "64", "--form", "raw", "--documents", 40)
        self.assertIn("retrieval:one_key needs more than 64 tokens: left out", short.stderr)

    def test_texts_that_need_their_order_are_no_documents(self):
        documents = ("--form", "raw", "--documents", 4)
        for variant, reason in (("retrieval:many_values", "in the order of the text"), ("lists:choose", "no text"),
                                ("ruler", "ruler:variable_tracking cannot come in other orders")):  # fmt: skip
            self.fails("--task", variant, *documents, says=reason)
        hops = ("--task", "following:hops")
        self.fails(*hops, "--documents", 4, says="needs --form raw")
        self.fails(*hops, "--gsm8k", "x", *documents, says="generated tasks")
        self.fails(*hops, "--form", "raw", "--shuffles", 2, says="--shuffles needs --documents")
        self.fails(*hops, "--form", "raw", "--documents", -1, says="from 1")
        self.fails(*hops, *documents, "--shuffles", 25, says="there are 24 orders of 4 documents")

    def test_lengths_are_those_of_the_model_given(self):
        model = GOLDENS / "e2e-bytes" / "model.gguf"  # a token per byte: four times as many as witan-tiny's
        arguments = ("--task", "ruler:single", "--task", "retrieval:needle", "--lengths", "1024", "--samples", 3)
        lines = self.lines(*arguments, "--model", model, "--witan", WITAN)
        texts = self.folder / "texts.jsonl"
        texts.write_text("".join(json.dumps({"text": line["messages"][0]["content"]}) + "\n" for line in lines))
        done = subprocess.run([WITAN, "tokenize", "-m", model, "--jsonl", texts], capture_output=True, check=True)
        for line in done.stdout.splitlines():
            self.assertLess(900, len(json.loads(line)["ids"]))
            self.assertLess(len(json.loads(line)["ids"]), 1024)

    def test_longgenbench_from_gsm8k(self):
        problems = [
            {"question": f"What is {i} plus 1,{i:03}?", "answer": f"It is <<{i}+1=2>>more.\n#### {1000 + 2 * i:,}"}
            for i in range(20)
        ]
        file = self.folder / "gsm8k.jsonl"
        file.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
        lines = self.lines("--gsm8k", file, "--k", 5)
        self.assertEqual(len(lines), 2)
        self.assertEqual(lines[0]["answers"], [f"{1000 + 2 * i:,}" for i in range(8, 13)])
        prompt = lines[0]["messages"][0]["content"]
        self.assertIn("Question_9:\nWhat is 8 plus 1,008?", prompt)
        self.assertIn("Answer_8:\nIt is more. The answer is 1,014.", prompt)
        self.assertNotIn("Question_14", prompt)
        self.assertEqual((lines[0]["scoring"], lines[0]["first_label"]), ("numbered", 9))

    def test_a_length_that_is_too_short_for_a_task_is_said(self):
        done = self.run_it("--task", "ruler", "--lengths", "64")
        self.assertEqual(done.returncode, 0)
        self.assertIn("ruler:common_words needs more than 64 tokens: left out", done.stderr)

    def test_wrong_input_is_named(self):
        self.fails("--task", "cooking", says="unknown task cooking; there are retrieval (")
        self.fails("--task", "retrieval:cooking", says="unknown task retrieval:cooking")
        self.fails("--task", "retrieval", "--lengths", "12x", says="--lengths 12x")
        self.fails(says="nothing to make")
        self.fails("--gsm8k", "/nonexistent", says="/nonexistent")
        self.fails("--task", "retrieval", "--model", "/nonexistent", "--witan", WITAN, says="/nonexistent")
        self.fails("--task", "retrieval", "--model", "x", "--witan", "/nonexistent", says="/nonexistent")

    def test_a_broken_line_of_gsm8k_is_named(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write('{"question": "?", "answer": "#### 1"}\n{"question": "?"}\n')
            file.flush()
            self.fails("--gsm8k", file.name, says=f"{file.name}: line 2: expected")


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
