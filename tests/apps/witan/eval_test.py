"""witan eval: what it runs, scores and writes, how it goes on, and what is wrong with tasks. witan perplexity."""

import json
import math
import os
import pty
import signal
import time

import program
from program import golden, made_model, read_array, start

TEXT = "It was a dark and stormy night; the rain fell in torrents."
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ suffix }}"


def task(identifier, **changes):
    line = {"id": identifier, "task": "t", "prompt": f"prompt of {identifier}", "answers": ["1"], "scoring": "last",
            "max_tokens": 6}  # fmt: skip
    line.update(changes)
    return {key: value for key, value in line.items() if value is not None}


class EvalTestCase(program.WitanTestCase):
    def setUp(self):
        super().setUp()
        self.model = made_model("qwen3moe")
        self.out = self.folder / "results.jsonl"

    def tasks(self, *lines, name="tasks.jsonl"):
        return self.file(name, "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))

    def eval(self, tasks, *flags, **options):
        command = ("eval", "-m", self.model, "--tasks", tasks, "--out", self.out, "-c", "256", *flags)
        return self.succeeds(*command, **options)

    def eval_fails(self, tasks, *flags, says):
        self.fails("eval", "-m", self.model, "--tasks", tasks, "--out", self.out, "-c", "256", *flags, says=says)

    def lines(self):
        return [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]

    def results(self):
        return {line["id"]: line for line in self.lines() if "id" in line}


class EvalTest(EvalTestCase):
    def reply_of(self, prompt, num_tokens=6):
        return self.succeeds("run", "-m", self.model, "-p", prompt, "-n", num_tokens, "-c", "256", "--temp", "0").out[:-1]

    def test_replies_are_those_of_run_and_are_scored(self):
        reply = self.reply_of("prompt of a")
        answer = [word for word in "".join(c if c.isascii() and c.isalpha() else " " for c in reply).split()][-1]
        result = self.eval(self.tasks(task("a", answers=[answer]), task("b", variant="v", length=9, positions=[0.5])))
        results = self.results()
        self.assertEqual(results["a"]["reply"], reply)
        self.assertEqual(results["a"]["correct"], [True])
        self.assertEqual(results["a"]["generated_tokens"], 6)
        self.assertEqual(results["a"]["finish_reason"], "length")
        self.assertEqual(results["b"]["reply"], self.reply_of("prompt of b"))
        self.assertIn(results["b"]["correct"], ([False], [None]))
        self.assertEqual((results["b"]["variant"], results["b"]["length"], results["b"]["positions"]), ("v", 9, [0.5]))
        header, run = self.lines()[0], self.lines()[-1]["run"]
        self.assertEqual(header["format"], "witan-eval-1")
        self.assertEqual(header["model"], str(self.model))
        self.assertEqual(header["architecture"], "qwen3_moe")
        kv_type = header["settings"].pop("kv_type")
        self.assertIn(kv_type, ("f16", "bf16"), "as the CPU likes it")
        self.assertEqual(header["settings"], {"context": 256, "exact": False, "temperature": 0.0})
        self.assertEqual(run["generated_tokens"], 12)
        self.assertRegex(result.out, r"\nall +2 +2 +50\.0 % ")
        self.assertRegex(result.err, program.STATISTICS)

    def test_documents_come_before_the_prompt_as_those_of_run(self):
        texts = ["The fox is red.\n", "The owl is gray.\n"]
        files = [option for i, text in enumerate(texts) for option in ("--document", self.file(f"{i}.txt", text))]
        run = self.succeeds("run", "-m", self.model, *files, "-p", "What is red?", "-n", 6, "-c", "256", "--temp", "0", "--json")
        self.eval(self.tasks(task("a", documents=texts, prompt="What is red?"),
                             task("b", documents=texts[::-1], prompt="What is red?")))  # fmt: skip
        (answer,), results = run.json_lines(), self.results()
        self.assertEqual(results["a"]["reply"], answer["text"])
        for identifier in "ab":
            self.assertEqual(results[identifier]["prompt_tokens"], answer["usage"]["prompt_tokens"])
        self.assertNotEqual(results["a"]["fingerprint"], results["b"]["fingerprint"])

    def test_one_at_a_time_no_task_waits_for_another(self):
        self.eval(self.tasks(*(task(f"t{i}", max_tokens=150) for i in range(4))), "--sequences", "1", "--ignore-eos")
        for result in self.results().values():
            self.assertTrue(0 < result["first_token_seconds"] < 0.5 * result["seconds"], result)

    def test_messages_go_through_the_template(self):
        template = self.file("t.jinja", TEMPLATE)
        messages = [{"role": "user", "content": "Hi"}]
        self.eval(self.tasks(task("a", prompt=None, messages=messages)), "--template", template, "--extra", '{"suffix": "!"}')
        self.assertEqual(self.results()["a"]["reply"], self.reply_of("<user>Hi!"))
        self.assertEqual(self.lines()[0]["settings"]["extra"], '{"suffix": "!"}')

    def test_reasoning_is_not_scored(self):
        template = self.file("t.jinja", "{{ messages[0].content }}{% if false %}</think>{% endif %}<think>\n")
        messages = [{"role": "user", "content": "Hi"}]
        self.eval(self.tasks(task("a", prompt=None, messages=messages)), "--template", template)
        self.assertEqual(self.results()["a"]["reply"], "")  # the reasoning never ends
        self.assertEqual(self.results()["a"]["correct"], [None])

    def test_stop_strings_and_lengths_are_the_tasks(self):
        reply = self.reply_of("prompt of a", 40)
        stop = reply[10:13]
        self.eval(self.tasks(task("a", stop=[stop], max_tokens=40), task("b", max_tokens=3)))
        results = self.results()
        self.assertEqual(results["a"]["reply"], reply[: reply.index(stop)])
        self.assertEqual(results["a"]["finish_reason"], "stop")
        self.assertEqual(results["b"]["generated_tokens"], 3)
        self.out.unlink()
        self.eval(self.tasks(task("b", max_tokens=3)), "-n", "5")
        self.assertEqual(self.results()["b"]["generated_tokens"], 5)
        self.assertEqual(self.lines()[0]["settings"]["num_tokens"], 5)

    def test_a_kv_policy_is_one_of_the_settings(self):
        self.eval(self.tasks(task("a")), "--kv", "keynorm,keep=0.5")
        self.assertEqual(self.lines()[0]["settings"]["kv"], "keynorm,keep=0.5")

    def test_a_kv_policy_that_the_model_refuses_has_an_exit_code_of_its_own(self):
        self.model = made_model("deepseek2")
        command = ("eval", "-m", self.model, "--tasks", self.tasks(task("a")), "-c", "256", "--out")
        self.fails(*command, self.out, "--kv", "keydiff,merge,keep=0.5", code=3, says="(MLA)")
        self.fails(*command, self.folder / "o", "--kv", "k=int4-hadamard", code=3, says="int4-hadamard")
        self.fails(*command, self.folder / "none" / "results", "--kv", "keydiff,merge,keep=0.5", says="none")

    def test_a_batch_gives_what_each_gives_alone(self):
        lines = [task(f"t{i}", prompt="x" * (3 + 7 * i % 50) + str(i), max_tokens=4 + i % 5) for i in range(40)]
        self.eval(self.tasks(*lines), "--sequences", "9")
        together = self.results()
        self.out.unlink()
        self.eval(self.tasks(*lines), "--sequences", "1", "-t", "1")
        alone = self.results()
        self.assertEqual(len(together), 40)
        for identifier, result in alone.items():
            self.assertEqual(together[identifier]["reply"], result["reply"], identifier)

    def test_an_evaluation_goes_on(self):
        tasks = self.tasks(task("a"), task("b"), task("c"))
        self.eval(tasks)
        whole = self.results()
        # As a run that was killed leaves it: the last line is not whole.
        lines = self.out.read_text().splitlines()
        self.out.write_text("\n".join([*lines[:2], lines[2][:40]]))
        result = self.eval(tasks)
        self.assertIn("1 results are there and stay", result.err)
        self.assertEqual(self.lines()[-1]["run"]["generated_tokens"], 12)
        self.assertEqual({k: v["reply"] for k, v in self.results().items()}, {k: v["reply"] for k, v in whole.items()})
        self.assertRegex(self.eval(tasks).out, r"\nall +3 ")

    def test_more_tasks_may_follow(self):
        first, second = self.tasks(task("a")), self.tasks(task("b"), name="more.jsonl")
        self.eval(first)
        result = self.eval(first, "--tasks", second)
        self.assertIn("1 results are there", result.err)
        self.assertEqual(sorted(self.results()), ["a", "b"])
        self.assertEqual(self.lines()[0]["tasks"], [str(first), str(second)])

    def test_ctrl_c_keeps_what_is_done(self):
        tasks = self.tasks(task("a"), *(task(f"b{i}", max_tokens=200) for i in range(30)))
        process = start("eval", "-m", self.model, "--tasks", tasks, "--out", self.out, "-c", "256", "--sequences", "1",
                        "-t", "1", "--ignore-eos", stdout=-3, stderr=-3)  # fmt: skip
        deadline = time.monotonic() + 60
        while not self.out.exists() or self.out.read_text().count("\n") < 3:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(60), 130)
        kept = len(self.results())
        self.assertLess(kept, 31)
        self.assertIn(f"{kept} results are there", self.eval(tasks, "--ignore-eos").err)
        self.assertEqual(len(self.results()), 31)

    def test_progress_shows_on_a_terminal(self):
        tasks = self.tasks(*(task(f"b{i}", max_tokens=200) for i in range(60)))
        master, slave = pty.openpty()
        process = start("eval", "-m", self.model, "--tasks", tasks, "--out", self.out, "-c", "256", "--sequences", "1",
                        "--ignore-eos", "-t", "1", stdout=-3, stderr=slave)  # fmt: skip
        os.close(slave)
        seen = b""
        while b"evaluating" not in seen and process.poll() is None:
            seen += os.read(master, 4096)
        process.kill()
        process.wait()
        os.close(master)
        self.assertIn(b"evaluating", seen)

    def test_replies_from_elsewhere_are_scored(self):
        tasks = self.tasks(task("a"), task("b", answers=["red"]), task("c"))
        replies = self.tasks({"id": "a", "reply": "It is 1."}, {"id": "b", "reply": ""}, {"id": "c", "reply": "2"}, name="r")
        result = self.succeeds("eval", "--replies", replies, "--tasks", tasks, "--out", self.out)
        self.assertEqual([self.results()[i]["correct"] for i in "abc"], [[True], [None], [False]])
        self.assertRegex(result.out, r"\nall +3 +3 +33\.3 % +66\.7 %")


class EvalErrorTest(EvalTestCase):
    def test_broken_lines_stop_it_before_anything_is_written(self):
        self.eval_fails(self.tasks(task("a"), "{"), says="tasks.jsonl: line 2")
        self.eval_fails(self.tasks(task("a"), task("b", scoring="guess")), says='line 2: unknown scoring "guess"; there are')
        self.eval_fails(self.tasks(task("a"), task("a")), says='line 2: the id "a" appeared before')
        self.eval_fails(self.tasks(task("a"), task("b", answers=None)), says=['line 2: "answers" is missing', "--on-error"])
        chat = task("b", prompt=None, messages=[{"role": "user", "content": "Hi"}], documents=["d"])
        self.eval_fails(self.tasks(chat), says='line 1: "documents" need a "prompt"')
        self.eval_fails(self.tasks(""), says="no tasks in it")
        self.eval_fails(self.folder / "none", says="none")
        self.assertFalse(self.out.exists())

    def test_prompts_longer_than_the_context_are_named(self):
        tasks = self.tasks(task("a"), task("b", prompt="x" * 300))
        self.eval_fails(tasks, says=["tasks.jsonl: line 2 (b)", "tokens leave no room", "context of 256"])
        self.eval(tasks, "--on-error", "skip")
        self.assertIn("leave no room", self.results()["b"]["error"])
        self.assertEqual(len(self.results()["a"]["reply"]) > 0, True)

    def test_skipped_lines_are_recorded_and_tried_again(self):
        tasks = self.tasks(task("a"), "{", task("c", scoring="guess"))
        result = self.eval(tasks, "--on-error", "skip")
        self.assertIn("2 not run", result.out)
        errors = {line["line"]: line["error"] for line in self.lines() if "error" in line}
        self.assertEqual(sorted(errors), [2, 3])
        self.assertIn('unknown scoring "guess"', errors[3])
        self.eval(self.tasks(task("a"), task("b"), task("c")))
        self.assertEqual(sorted(self.results()), ["a", "b", "c"])
        self.assertNotIn("error", self.out.read_text())

    def test_results_of_something_else_stay(self):
        tasks = self.tasks(task("a"))
        self.eval(tasks)
        before = self.out.read_text()
        self.eval_fails(tasks, "--kv-type", "q8_0", says=["results.jsonl", 'settings/kv_type was "', 'is "q8_0"'])
        self.eval_fails(self.tasks(task("b"), name="tasks.jsonl"), says="the result of a task")
        self.assertEqual(self.out.read_text(), before)
        self.out.write_text("not results\n")
        self.eval_fails(tasks, says="line 1: no result of witan eval")

    def test_what_else_is_wrong(self):
        tasks = self.tasks(task("a"))
        self.fails("eval", "--tasks", tasks, "--out", self.out, code=2, says="--model and --replies")
        self.fails("eval", "-m", self.model, "--out", self.out, code=2, says="--tasks")
        self.fails("eval", "-m", self.model, "--tasks", tasks, code=2, says="--out")
        self.eval_fails(tasks, "--extra", "[]", says="--extra")
        self.eval_fails(tasks, "--temperature", "-1", says="temperature")
        chat = self.tasks(task("a", prompt=None, messages=[{"role": "user", "content": "Hi"}]))
        self.eval_fails(chat, "--template-name", "rag", says=["line 1 (a)", "no chat template named 'rag'"])
        self.fails("eval", "-m", golden("mixtral/model.gguf"), "--tasks", tasks, "--out", self.folder / "o", says="no tokenizer")
        replies = self.tasks({"id": "b", "reply": ""}, name="r")
        self.fails("eval", "--replies", replies, "--tasks", tasks, "--out", self.folder / "p", says="line 1 (a): there is no reply")
        for line, says in (("{", "r: line 1: expected"), ('{"id": "a"}', "r: line 1: expected")):
            self.fails("eval", "--replies", self.tasks(line, name="r"), "--tasks", tasks, "--out", self.out, says=says)
        twice = self.tasks({"id": "a", "reply": ""}, {"id": "a", "reply": ""}, name="r")
        self.fails("eval", "--replies", twice, "--tasks", tasks, "--out", self.out, says='line 2: a second reply to "a"')
        self.fails("eval", "-m", self.model, "--tasks", tasks, "--out", self.folder / "q", "--kv", "auto", says="give it a budget")


class PerplexityTest(program.WitanTestCase):
    def setUp(self):
        super().setUp()
        self.model = made_model("qwen3moe")

    def likelihoods(self, ids):
        """-log p of every token but the first, from the logits of all."""
        self.succeeds("logits", "-m", self.model, "--tokens", self.file("ids", ids), "--out", self.folder / "l", "--exact")
        logits = read_array(self.folder / "l", "f")
        size = len(logits) // len(ids)
        rows = [logits[i * size : (i + 1) * size] for i in range(len(ids))]
        return [math.log(sum(math.exp(x) for x in row)) - row[token] for row, token in zip(rows, ids[1:])]

    def ids(self, text, add_special):
        lines = self.file("lines", json.dumps({"text": text, "add_special": add_special}))
        return json.loads(self.succeeds("tokenize", "-m", self.model, "--jsonl", lines).out)["ids"]

    def perplexity(self, text, *flags):
        out = self.folder / "p.jsonl"
        result = self.succeeds("perplexity", "-m", self.model, "-f", self.file("text", text), "--exact", "--out", out, *flags)
        header, line = [json.loads(line) for line in out.read_text().splitlines()]
        self.assertEqual(header["format"], "witan-eval-1")
        self.assertIn(f"perplexity {line['perplexity']['value']:.4f}", result.out)
        return line["perplexity"]

    def test_is_that_of_the_logits(self):
        expected = self.likelihoods(self.ids(TEXT, True))
        self.assertEqual(len(expected), len(self.ids(TEXT, False)))  # BOS predicts the first
        found = self.perplexity(TEXT, "--window", 128)
        self.assertEqual(found["tokens"], len(expected))
        self.assertAlmostEqual(found["nll"], sum(expected) / len(expected), places=4)
        self.assertAlmostEqual(found["value"], math.exp(found["nll"]), places=6)

    def test_windows_predict_their_later_half(self):
        bos, *ids = self.ids(TEXT, True)
        expected = self.likelihoods([bos, *ids[:14]])
        for begin in range(7, len(ids) - 7, 7):
            expected += self.likelihoods([bos, *ids[begin : begin + 14]])[7:]
        self.assertEqual(len(expected), len(ids))
        found = self.perplexity(TEXT, "--window", 16)
        self.assertEqual(found["tokens"], len(ids))
        self.assertAlmostEqual(found["nll"], sum(expected) / len(expected), places=4)

    def test_with_a_policy_both_read_the_same_continuations(self):
        bos, *ids = self.ids(TEXT, True)
        expected = []  # prompts of 24 tokens, windows of 40
        for begin in range(0, len(ids) - 23, 16):
            expected += self.likelihoods([bos, *ids[begin : begin + 39]])[23:]
        self.assertEqual(len(expected), len(ids) - 23)
        flags = ("--window", 40, "--prompt-tokens", 24)
        found = self.perplexity(TEXT, *flags, "--kv", "keydiff,keep=0.25")
        self.assertEqual(found["tokens"], len(expected))
        self.assertEqual(found["window"], 40)
        self.assertAlmostEqual(found["nll"], math.log(found["value"]), places=6)
        kv = found["kv"]
        self.assertEqual(kv["prompt_tokens"], 24)
        self.assertAlmostEqual(kv["dense_nll"], sum(expected) / len(expected), places=4)
        self.assertAlmostEqual(kv["dense_value"], math.exp(kv["dense_nll"]), places=6)
        self.assertNotEqual(found["nll"], kv["dense_nll"])
        self.assertEqual(len(kv["route_overlap"]), 2)
        for overlap in kv["route_overlap"]:
            self.assertTrue(kv["same_routes"] <= overlap <= 1, kv)
        self.assertLess(kv["same_routes"], 1)
        self.assertLessEqual(kv["bytes_after"], kv["bytes_before"])

        every = self.perplexity(TEXT, *flags, "--kv", "keydiff,keep=1")
        self.assertEqual(every["nll"], kv["dense_nll"])
        self.assertEqual(every["kv"]["route_overlap"], [1, 1])
        self.assertEqual(every["kv"]["same_routes"], 1)
        self.assertEqual(every["kv"]["bytes_before"], 0)

    def test_with_a_policy_it_says_what_it_compares(self):
        text = self.file("text", TEXT)
        result = self.succeeds("perplexity", "-m", self.model, "-f", text, "--kv", "keydiff,keep=0.25")
        prompt = (len(self.ids(TEXT, True))) // 2
        first, experts, memory = result.out.splitlines()
        self.assertRegex(first, rf"text: perplexity [\d.]+ with the policy, [\d.]+ without, \d+ tokens behind prompts of {prompt}$")
        self.assertRegex(experts, r"^  experts 0\.\d+ the same \(by MoE layer [\d.]+ [\d.]+\), in every layer for [\d.]+ % of the tokens$")
        self.assertRegex(memory, r"^  KV cache [\d.]+ of [\d.]+ MiB, [\d.]+ %$")

    def test_with_a_policy_what_is_wrong_is_named(self):
        text = self.file("text", TEXT)
        command = ("perplexity", "-m", self.model, "-f", text)
        self.fails(*command, "--prompt-tokens", 20, code=2, says="--kv")
        self.fails(*command, "--kv", "nothing", code=2, says=["--kv", "nothing"])
        self.fails(*command, "--kv", "keydiff,keep=0.5", "--prompt-tokens", 0, code=2, says="--prompt-tokens")
        self.fails(*command, "--kv", "keydiff,keep=0.5", "--prompt-tokens", 64, "--window", 64, says=["--prompt-tokens 64", "--window of 64"])
        self.fails(*command, "--kv", "keydiff,keep=0.5", "--prompt-tokens", 500, says=["text: ", "none behind a prompt of 500"])
        self.fails(*command, "--kv", "k=int4-latent", code=3, says="int4-latent")
        self.fails(*command, "--kv", "auto", says="give it a budget")
        self.fails(*command, "--kv", "keydiff,keep=0.5,when=pressure", says="leave when=pressure out")

    def test_what_is_wrong_is_named(self):
        text = self.file("text", "")
        self.fails("perplexity", "-m", self.model, "-f", text, says=["text: ", "0 tokens"])
        self.fails("perplexity", "-m", self.model, "-f", self.folder / "none", says="none")
        self.fails("perplexity", "-m", golden("mixtral/model.gguf"), "-f", text, says="no tokenizer")
        self.fails("perplexity", "-m", self.model, "-f", text, "--window", "3", code=2, says="--window")


if __name__ == "__main__":
    program.main()
