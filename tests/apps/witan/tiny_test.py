"""witan-tiny, the model that comes with Witan, end to end: what it knows it knows in every kernel variant and KV type."""

import json
import pathlib
import re
import shutil
import unittest

import program

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
MODEL = REPOSITORY / "models" / "witan-tiny"
TASKS = REPOSITORY / "tests" / "data" / "witan-tiny.jsonl"  # training/pick_tasks.py made it
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "int8-hadamard", "k8v4-hadamard", "int4-hadamard")


def isas():
    """The kernel variants that this CPU runs."""
    return re.findall(r"(?m)^  (\w+) +this CPU has it", program.witan("--list").out)


def read_tasks():
    return [json.loads(line) for line in TASKS.read_text(encoding="utf-8").splitlines()]


class KnownAnswersTest(program.WitanTestCase):
    def replies(self, tasks, *flags, model=MODEL, env=None):
        out = self.folder / "results.jsonl"
        out.unlink(missing_ok=True)
        self.succeeds("eval", "-m", model, "--tasks", tasks, "--out", out, *flags, env=env)
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return {line["id"]: line for line in lines if "id" in line}

    def check_all_right(self, results, count):
        self.assertEqual(len(results), count)
        for identifier, result in results.items():
            self.assertEqual(set(result["correct"]), {True}, f"{identifier}: {result['reply']} for {result['answers']}")

    def some(self, count, longest):
        lines = [line for line in read_tasks() if line["length"] <= longest][:count]
        return self.file("some.jsonl", "".join(json.dumps(line) + "\n" for line in lines)), len(lines)

    def test_every_kv_type_gives_the_known_answers(self):
        for kv_type in KV_TYPES:
            with self.subTest(kv_type):
                self.check_all_right(self.replies(TASKS, "--kv-type", kv_type), len(read_tasks()))

    def test_every_kernel_variant_gives_the_known_answers_in_every_kv_type(self):
        self.assertIn("reference", isas())
        for isa in isas():
            tasks, count = self.some(4, 256) if isa == "reference" else self.some(8, 1024)
            for kv_type in KV_TYPES:
                with self.subTest(isa=isa, kv_type=kv_type):
                    results = self.replies(tasks, "--kv-type", kv_type, env={"WITAN_ISA": isa})
                    self.check_all_right(results, count)

    def test_exact_arithmetic_gives_the_known_answers(self):
        self.check_all_right(self.replies(TASKS, "--exact"), len(read_tasks()))

    def test_a_batch_of_all_gives_what_each_gives_alone(self):
        self.assertGreaterEqual(len(read_tasks()), 32)
        together = self.replies(TASKS)
        alone = self.replies(TASKS, "--sequences", "1")
        self.assertEqual({i: r["reply"] for i, r in together.items()}, {i: r["reply"] for i, r in alone.items()})

    def test_quantised_copies_know_nearly_as_much(self):
        for kind, least in (("F16", 1.0), ("Q8_0", 0.9)):
            with self.subTest(kind):
                copy = self.folder / f"{kind}.gguf"
                self.succeeds("quantize", MODEL, copy, "--type", kind)
                marks = [mark is True for result in self.replies(TASKS, model=copy).values() for mark in result["correct"]]
                self.assertGreaterEqual(sum(marks), least * len(marks))


class ShippedTest(program.WitanTestCase):
    def test_chat_needs_no_model(self):
        task = next(line for line in read_tasks() if line["scoring"] == "last" and "messages" in line)
        text = task["messages"][0]["content"]
        result = self.succeeds("chat", stdin=f'"""\n{text}\n"""\n')
        self.assertRegex(result.out.lower(), rf"\b{re.escape(task['answers'][0].lower())}\b")

    def test_inspect_says_what_it_is(self):
        found = json.loads(self.succeeds("inspect", "-m", MODEL, "--json").out)
        self.assertEqual(found["architecture"], "qwen3_moe")
        self.assertLess(found["file_bytes"], 16_000_000)

    def test_the_demo_answers_from_its_text(self):
        text = (REPOSITORY / "examples" / "stories.txt").read_text(encoding="utf-8")
        self.assertIn("The food of Karl is onion.", text)
        prompt = f"{text.rstrip()}\nQuestion: What is the food of Karl?\nAnswer:"
        result = self.succeeds("run", "-m", MODEL, "-p", prompt, "--stop", "\n", "-n", "64")
        self.assertIn("onion", result.out)
        self.assertRegex(result.err, program.STATISTICS)

    def test_an_installed_program_brings_it(self):
        # As cmake --install lays them out.
        (self.folder / "bin").mkdir()
        installed = self.folder / "bin" / "witan"
        shutil.copy(program.program_path(), installed)
        models = self.folder / "share" / "witan" / "models"
        models.mkdir(parents=True)
        broken = models / "witan-tiny"
        broken.mkdir()
        (broken / "config.json").write_text("{}")
        result = program.witan("chat", stdin="Hello\n", program=installed)
        self.assertIn(str(broken), result.err)  # this one, not that of the sources


if __name__ == "__main__":
    program.main()
