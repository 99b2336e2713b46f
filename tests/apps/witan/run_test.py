"""witan run: prompts in, answers and statistics out."""

import contextlib
import json
import os
import pathlib
import pty
import signal
import subprocess
import time

import program
from program import STATISTICS, golden, golden_json, made_model

BYTES_MODEL = "e2e-bytes/model.gguf"
TINY = pathlib.Path(__file__).resolve().parents[3] / "models" / "witan-tiny"  # whose heads have 64 components


def cases():
    return golden_json("e2e-bytes/golden.json")["cases"]


class RunTestCase(program.WitanTestCase):
    def run_model(self, *args, **options):
        """A run of the golden model with a tokenizer."""
        return self.succeeds("run", "-m", golden(BYTES_MODEL), *args, **options)

    def run_fails(self, *args, **options):
        return self.fails("run", "-m", golden(BYTES_MODEL), *args, **options)

    def answers(self, *args, **options):
        return self.run_model("--json", *args, **options).json_lines()


class PromptsTest(RunTestCase):
    def test_each_golden_prompt_gives_its_text(self):
        for case in cases():
            with self.subTest(case["prompt"]):
                args = ["-p", case["prompt"], "-n", len(case["greedy_tokens"]), "--exact", "--kv-type", "f32"]
                self.assertEqual(self.run_model(*args).out, case["greedy_text"] + "\n")

    def test_takes_prompts_from_every_source_as_one_batch(self):
        texts = [case["prompt"] for case in cases()]
        args = ["-p", texts[0], "-p", texts[1]]
        args += ["-f", self.file("a.txt", texts[2]), "-f", "-"]
        args += ["--tokens", self.file("b.ids", cases()[4]["prompt_ids"])]
        args += ["--jsonl", self.file("c.jsonl", "".join(json.dumps({"prompt": t, "id": 7}) + "\n\n" for t in texts))]
        answers = self.answers(*args, "-n", 24, "--exact", "--kv-type", "f32", stdin=texts[3])
        expected = [case["greedy_tokens"] for case in cases()]
        self.assertEqual([answer["tokens"] for answer in answers], expected + expected)
        names = ["prompt 1", "prompt 2", self.folder / "a.txt", "-", self.folder / "b.ids"]
        names += [f"{self.folder / 'c.jsonl'}:{line}" for line in (1, 3, 5, 7, 9)]
        self.assertEqual([answer["prompt"] for answer in answers], [str(name) for name in names])

    def test_several_answers_appear_under_headings(self):
        alone = [self.run_model("-p", text, "-n", 5).out for text in "ab"]
        together = self.run_model("-p", "a", "-p", "b", "-n", 5).out
        self.assertEqual(together, f"==> prompt 1 <==\n{alone[0]}==> prompt 2 <==\n{alone[1]}")
        choices = self.run_model("-p", "a", "-n", 5, "--choices", 2).out
        self.assertEqual(choices, f"==> prompt, choice 0 <==\n{alone[0]}==> prompt, choice 1 <==\n{alone[0]}")

    def test_takes_texts_as_they_are(self):
        for text in ["{}", "[a,b]", "a,b", "-n", "--json", "'q'", '"q"', "%%", "\\n", " ", "\n"]:
            with self.subTest(text):
                answer = self.answers("-p", text, "-n", 1)[0]
                ids = self.succeeds("tokenize", "-m", golden(BYTES_MODEL), "--ids-only", "-f", "-", stdin=text).out
                self.assertEqual(answer["usage"]["prompt_tokens"], len(ids.split()))

    def test_takes_bytes_that_are_no_utf8_one_by_one(self):
        answer = self.answers("-f", self.file("bytes.txt", b"\xff\xfe\x80abc"), "-n", 2)[0]
        self.assertEqual(answer["finish_reason"], "length")
        self.assertEqual(self.run_model("-p", b"\xff\xfe".decode("utf-8", "surrogateescape"), "-n", 2).code, 0)

    def test_control_tokens_in_text_are_text_unless_asked_for(self):
        plain = self.answers("-p", "</s>", "-n", 1)[0]["usage"]["prompt_tokens"]
        parsed = self.answers("-p", "</s>", "-n", 1, "--parse-special")[0]["usage"]["prompt_tokens"]
        self.assertGreater(plain, parsed)
        self.assertEqual(parsed, 2)

    def test_refuses_prompts_that_are_none(self):
        missing = self.folder / "missing"
        refusals = [
            (["-p", ""], "prompt: the prompt is empty"),
            (["-p", "a", "-p", ""], "prompt 2: the prompt is empty"),
            (["-f", missing], [missing, "No such file"]),
            (["-f", self.folder], [self.folder, "directory"]),
            (["-f", self.file("empty", "")], ["empty: the prompt is empty"]),
            (["-f", "-"], "-: the prompt is empty"),
            (["--tokens", missing], [missing, "No such file"]),
            (["--tokens", self.file("blank.ids", " \n")], ["blank.ids", "no token ids"]),
            (["--tokens", self.file("text.ids", "1 2 abc")], ["text.ids", "token 2", '"abc"']),
            (["--tokens", self.file("fraction.ids", "1 2.5")], ["fraction.ids", "token 1", '"2.5"']),
            (["--tokens", self.file("big.ids", "99999999999")], ["big.ids", "99999999999"]),
            (["--tokens", self.file("negative.ids", "5 -3")], ["negative.ids", "token 1", "-3", "0 to 319"]),
            (["--tokens", self.file("high.ids", "5 320")], ["high.ids", "token 1", "320", "0 to 319"]),
            (["--jsonl", self.file("none.jsonl", "\n")], ["none.jsonl", "no prompts"]),
            (["--jsonl", self.file("bad.jsonl", '{"prompt": "a"}\n{"prompt": ')], ["bad.jsonl", "line 2"]),
            (["--jsonl", self.file("number.jsonl", '{"prompt": 5}')], ["number.jsonl", "line 1"]),
            (["--jsonl", self.file("list.jsonl", "[]")], ["list.jsonl", "line 1"]),
            (["--jsonl", self.file("empty.jsonl", '{"prompt": ""}')], ["empty.jsonl:1: the prompt is empty"]),
        ]
        for args, says in refusals:
            with self.subTest(args):
                self.run_fails(*args, "-n", 1, says=says)

    def test_documents_come_before_each_prompt_with_tokens_of_their_own(self):
        texts = ["The fox is red.\n", "caf\u00e9", "What is red?", "And caf\u00e9?"]
        jsonl = self.file("t.jsonl", "".join(json.dumps({"text": text, "add_special": False}) + "\n" for text in texts))
        for model in (golden(BYTES_MODEL), TINY):
            command = ("tokenize", "-m", model, "--jsonl", jsonl)
            first, second, *asked = [line["ids"] for line in self.succeeds(*command).json_lines()]
            bos = self.succeeds("tokenize", "-m", model, "-p", "a", "--ids-only").out.split()
            bos = list(map(int, bos[: bos.index(str(self.ids_alone(model, "a")[0]))]))
            documents = ["--document", self.file("a.txt", texts[0]), "--document", "-"]
            prompts = [option for text in texts[2:] for option in ("-p", text)]
            args = ["-n", 8, "--temperature", 1, "--seed", 5, "--json"]
            answers = self.succeeds("run", "-m", model, *documents, *prompts, *args, stdin=texts[1]).json_lines()
            for answer, tokens in zip(answers, asked):
                whole = [*bos, *first, *second, *tokens]
                alone = self.succeeds("run", "-m", model, "--tokens", self.file("whole.ids", whole), *args).json_lines()[0]
                self.assertEqual(answer["usage"]["prompt_tokens"], len(whole))
                self.assertEqual(answer["tokens"], alone["tokens"])

    def ids_alone(self, model, text):
        """Without what the tokenizer puts around it."""
        return list(map(int, self.succeeds("tokenize", "-m", model, "-p", text, "--no-special", "--ids-only").out.split()))

    def test_control_tokens_in_documents_are_text_unless_asked_for(self):
        document = ["--document", self.file("a.txt", "</s>"), "-p", "a", "-n", 1]
        plain = self.answers(*document)[0]["usage"]["prompt_tokens"]
        self.assertEqual(self.answers(*document, "--parse-special")[0]["usage"]["prompt_tokens"], 3)
        self.assertGreater(plain, 3)

    def test_refuses_documents_that_cannot_be(self):
        document = self.file("a.txt", "a")
        self.run_fails("--document", self.file("empty.txt", ""), "-p", "a", says="empty.txt: the document is empty")
        self.run_fails("--document", self.folder / "missing", "-p", "a", says=["missing", "No such file"])
        self.run_fails("--document", document, "--tokens", self.file("a.ids", "5"), says="--document needs prompts of text")
        self.run_fails("--document", document, code=2, says="--prompt")
        self.fails("run", "-m", golden("switch-capacity/hf"), "--document", document, "-p", "a", says="encoder")

    def test_a_prompt_longer_than_the_context_is_an_error_naming_both(self):
        self.run_fails("-p", "Hello", "-c", 4, says=["prompt of 7 tokens", "context of 4"])

    def test_a_model_without_a_tokenizer_takes_and_prints_ids(self):
        data = golden_json("mixtral/golden.json")
        model = golden("mixtral/model.gguf")
        self.fails("run", "-m", model, "-p", "Hello", says=[model, "no tokenizer"])
        self.fails("run", "-m", model, "--tokens", self.file("a.ids", "5"), "--stop", "x", says="tokenizer")
        args = ["--tokens", self.file("p.ids", data["prompt"]), "-n", 24, "--exact", "--kv-type", "f32"]
        result = self.succeeds("run", "-m", model, *args)
        self.assertEqual(result.out.split(), [str(token) for token in data["greedy_tokens"]])


class AnswersTest(RunTestCase):
    def test_json_has_all_of_an_answer(self):
        case = cases()[0]
        answer = self.answers("-p", case["prompt"], "-n", 24, "--exact", "--kv-type", "f32")[0]
        usage = answer.pop("usage")
        expected = {"prompt": "prompt", "choice": 0, "text": case["greedy_text"], "tokens": case["greedy_tokens"]}
        self.assertEqual(answer, {**expected, "finish_reason": "length"})
        self.assertEqual((usage["prompt_tokens"], usage["cached_prompt_tokens"], usage["generated_tokens"]), (7, 0, 24))
        self.assertTrue(0 < usage["first_token_seconds"] <= usage["total_seconds"])

    def test_logprobs_come_with_each_token(self):
        answer = self.answers("-p", "Hello", "-n", 3, "--logprobs", 2)[0]
        self.assertEqual([entry["token"] for entry in answer["logprobs"]], answer["tokens"])
        for entry in answer["logprobs"]:
            self.assertEqual(len(entry["top"]), 2)
            self.assertEqual(entry["top"][0]["token"], entry["token"])
            self.assertLess(entry["logprob"], 0)
            self.assertGreaterEqual(entry["logprob"], entry["top"][1]["logprob"])
        self.run_fails("-p", "Hello", "--logprobs", 2, says="--logprobs needs --json")

    def test_ends_at_stop_texts_and_tokens_and_end_tokens(self):
        case = cases()[0]
        end_token = ["--logit-bias", "2=1000"]
        runs = [
            (["--stop", "reva"], "stop", "U/ they\\"),
            (["--stop", "zzz", "--stop", "they"], "stop", "U/ "),
            (["--stop-token", case["greedy_tokens"][2]], "stop", "U/"),
            (["-c", 10], "length", None),
            (end_token, "stop", ""),
            ([*end_token, "--ignore-eos"], "length", None),
        ]
        for args, reason, text in runs:
            with self.subTest(args):
                answer = self.answers("-p", case["prompt"], "-n", 24, "--exact", *args)[0]
                self.assertEqual(answer["finish_reason"], reason)
                if text is not None:
                    self.assertEqual(answer["text"], text)
        self.run_fails("-p", "a", "--stop", "", says="empty stop")

    def test_neither_batch_nor_threads_nor_step_size_change_a_text(self):
        texts = [case["prompt"] for case in cases()]
        sampled = ["-n", 12, "--temperature", 1.5, "--seed", 3]
        alone = [self.answers("-p", text, *sampled)[0]["tokens"] for text in texts]
        together = [option for text in texts for option in ("-p", text)]
        for args in ([], ["-t", 1], ["-t", 3, "--step-tokens", 5], ["--sequences", 2], ["--no-prefix-cache"]):
            with self.subTest(args):
                answers = self.answers(*together, *sampled, *args)
                self.assertEqual([answer["tokens"] for answer in answers], alone)

    def test_the_seed_decides_the_text(self):
        def text(seed):
            return self.run_model("-p", "Hello", "-n", 12, "--temperature", 2, "--seed", seed).out

        self.assertEqual(text(5), text(5))
        self.assertNotEqual(text(5), text(6))
        choices = self.answers("-p", "Hello", "-n", 12, "--temperature", 2, "--seed", 5, "--choices", 2)
        self.assertEqual([choice["text"] + "\n" for choice in choices], [text(5), text(6)])
        self.assertEqual([choice["choice"] for choice in choices], [0, 1])

    def test_kv_types_take_the_memory_they_should(self):
        held = {}
        quantised = ("q8_0", "int8-hadamard", "k8v4-hadamard", "int4-hadamard", "k4v2-hadamard", "int2-hadamard")
        for kv_type in ("f32", "f16", "bf16", *quantised):
            path = self.folder / "stats.json"
            args = ["-p", "Hello", "-n", 8, "--kv-type", kv_type, "--stats-json", path]
            self.succeeds("run", "-m", TINY, *args)
            held[kv_type] = json.loads(path.read_text())["kv_peak_bytes"]
        self.assertEqual(held["f32"], 2 * held["f16"])
        self.assertEqual(held["bf16"], held["f16"])
        sizes = [held[kv_type] for kv_type in ("f16", *quantised)]
        self.assertEqual(sizes, sorted(set(sizes), reverse=True), "each smaller than the one before")

    def test_latent_kv_types_take_the_memory_they_should(self):
        model, held = made_model("deepseek2"), {}
        for kv_type in ("f32", "bf16", "int8-latent", "int4-latent"):
            path = self.folder / "stats.json"
            self.succeeds("run", "-m", model, "-p", "Hello", "-n", 8, "--kv-type", kv_type, "--stats-json", path)
            held[kv_type] = json.loads(path.read_text())["kv_peak_bytes"]
        self.assertEqual(list(held.values()), sorted(set(held.values()), reverse=True), "each smaller than the one before")

    def test_kv_types_are_refused_where_they_are_not_for_the_model(self):
        cases = [
            (made_model("deepseek2"), "int4-hadamard", ["int4-hadamard", "latents", "int4-latent"]),
            (TINY, "int4-latent", ["int4-latent", "latents", "hadamard"]),
            (TINY, "int4-kivi", ["int4-kivi", "whole blocks"]),
        ]
        for model, kv_type, says in cases:
            with self.subTest(kv_type):
                self.fails("run", "-m", model, "-p", "Hello", "-n", 2, "--kv-type", kv_type, says=says)

    def test_a_kv_policy_keeps_what_it_says(self):
        text = "The quick brown fox jumps over the lazy dog. " * 4
        prompt = ["-p", text, "-n", 4]
        dense, kept = self.answers(*prompt)[0], self.answers(*prompt, "--kv", "snapkv(window=8),keep=0.25")[0]
        self.assertNotIn("kv", dense["usage"])
        kv = kept["usage"]["kv"]
        self.assertEqual((kv["times"], kv["tokens"]), (1, kept["usage"]["prompt_tokens"]))
        for layer in kv["kept_entries"]:
            self.assertEqual(set(layer), {kv["tokens"] // 4})
        self.assertEqual(sum(map(sum, kv["kept_bytes"])), kv["bytes_after"])
        self.assertLess(kv["bytes_after"], kv["bytes_before"])
        self.assertEqual(self.answers(*prompt, "--kv", "snapkv,keep=1")[0]["tokens"], dense["tokens"])
        for name, text in (("policy.txt", "snapkv(window=8),keep=0.25\n"),
                           ("policy.json", '{"parts": [{"part": "snapkv", "window": 8}], "keep": 0.25}')):  # fmt: skip
            self.assertEqual(self.answers(*prompt, "--kv", f"@{self.file(name, text)}")[0]["tokens"], kept["tokens"])
        again = self.answers(*prompt, "--kv", "snapkv(window=8),tokens=9,every=2")[0]["usage"]["kv"]
        self.assertEqual((again["times"], again["tokens"]), (2, kept["usage"]["prompt_tokens"] + 2))

    def test_lines_of_a_file_may_have_kv_policies_of_their_own(self):
        text, policy = "The quick brown fox jumps over the lazy dog. " * 4, "snapkv(window=8),keep=0.25"
        lines = [{"prompt": text}, {"prompt": text, "kv": policy}, {"prompt": text, "kv": None}]
        path = self.file("kv.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        flag = ["--kv", "streamingllm,tokens=20"]
        dense, first, own = (self.answers("-p", text, "-n", 4, *kv)[0] for kv in ([], flag, ["--kv", policy]))
        for args, expected in ((["--jsonl", path], [dense, own, dense]), (["--jsonl", path, *flag], [first, own, dense])):
            answers = self.answers(*args, "-n", 4)
            self.assertEqual([a["tokens"] for a in answers], [a["tokens"] for a in expected])
            kept = [[a["usage"].get("kv", {}).get("kept_entries") for a in list] for list in (answers, expected)]
            self.assertEqual(*kept)
        for value, says in (('"snipkv"', "'snipkv' is no part of a KV policy"), ("5", '"kv" is no text')):
            bad = self.file("bad.jsonl", '{"prompt": "a"}\n{"prompt": "a", "kv": %s}' % value)
            self.run_fails("--jsonl", bad, says=["bad.jsonl: line 2", says])

    def test_what_tokens_read_of_their_pages_is_reported(self):
        prompt = ["-p", "The quick brown fox jumps over the lazy dog. " * 12, "-n", 6]
        self.assertNotIn("kv_read", self.answers(*prompt)[0]["usage"])
        some = self.answers(*prompt, "--kv", "quest(keep=0.25,dense=0)")[0]["usage"]["kv_read"]
        self.assertEqual(self.answers(*prompt, "--kv", "quest")[0]["usage"]["kv_read"]["bytes"], some["bytes_of_all"])
        self.assertTrue(0.15 * some["bytes_of_all"] < some["bytes"] < 0.3 * some["bytes_of_all"], some)

    def test_demoted_entries_are_reported(self):
        prompt = ["-p", "The quick brown fox jumps over the lazy dog. " * 12, "-n", 6]
        kv = self.answers(*prompt, "--kv", "k=q8_0,residual=16")[0]["usage"]["kv"]
        self.assertEqual(kv["times"], 0)
        for kept, demoted in zip(sum(kv["kept_entries"], []), sum(kv["demoted_entries"], [])):
            self.assertEqual(demoted, (kept - 16) // 32 * 32)
            self.assertGreater(demoted, 0)
        self.assertLess(kv["bytes_after"], kv["bytes_before"])

    def test_what_a_kv_policy_sets_aside_is_reported(self):
        policy = "keydiff,tokens=16,every=4,action="
        prompt = ["-p", "The quick brown fox jumps over the lazy dog. " * 4, "-n", 6, "--kv-offload-dir", self.folder]
        evicted, hidden, offloaded = (self.answers(*prompt, "--kv", policy + a)[0] for a in ("evict", "hide", "offload"))
        self.assertEqual(hidden["tokens"], offloaded["tokens"])
        kv = hidden["usage"]["kv"]
        self.assertGreaterEqual(kv["bytes_hidden"], kv["bytes_before"])
        self.assertEqual(offloaded["usage"]["kv"]["bytes_offloaded"], kv["bytes_hidden"])
        self.assertEqual(offloaded["usage"]["kv"]["bytes_after"], evicted["usage"]["kv"]["bytes_after"])
        self.assertFalse({"bytes_hidden", "bytes_offloaded"} & set(evicted["usage"]["kv"]))
        self.assertEqual(list(self.folder.iterdir()), [], "files have no names")
        failed = program.witan("run", "-m", TINY, *prompt[:-1], "/proc", "--kv", policy + "offload")
        self.assertEqual(failed.code, 1)
        self.assertIn("/proc: no file for KV entries", failed.err)

    def test_kv_auto_says_what_it_chose(self):
        prompt = ["-p", cases()[1]["prompt"] * 8, "-n", 8]
        dense = self.answers(*prompt)[0]
        self.assertNotIn("kv_auto", dense["usage"])
        roomy = self.answers(*prompt, "--kv", "auto")[0]
        self.assertEqual(roomy["usage"]["kv_auto"],
                         {"policy": None, "reason": "the KV cache has room for every entry"})  # fmt: skip
        self.assertEqual(roomy["tokens"], dense["tokens"])
        kept = self.answers(*prompt, "--kv", "auto,keep=0.4,floor=0")[0]
        policy = "keydiff,merge,k=int4-hadamard,v=int2-hadamard,residual=0,tokens=96"
        self.assertEqual(kept["usage"]["kv_auto"]["policy"], policy)
        self.assertEqual(kept["tokens"], self.answers(*prompt, "--kv", policy)[0]["tokens"])
        both = self.run_model(*prompt, "-p", "a longer one " * 8, "--kv", "auto,keep=0.5,floor=0").err
        reason = "the best one measured for this budget and this length of answers"
        self.assertEqual(both.count(f"--kv auto: {policy.replace('96', '64')}: {reason}\n"), 1)
        self.assertNotIn("--kv auto", self.run_model(*prompt, "--kv", "auto", "-q").err)
        text = self.run_model(*prompt, "--kv", "auto").err
        self.assertIn("--kv auto: every entry stays: the KV cache has room for every entry\n", text)

    def test_pinned_tokens_stay_before_what_a_kv_policy_chooses(self):
        before, middle, after = "The quick brown fox jumps. ", "The code is 4711. ", "over the lazy dog. " * 4

        def ids(text):
            args = ["tokenize", "-m", golden(BYTES_MODEL), "--ids-only", "-f", "-"]
            return self.succeeds(*args, stdin=text).out.split()

        def answer(*args):
            kv = ["--kv", "streamingllm,tokens=60"]
            return self.answers("-p", before + middle + after, "-n", 4, "--logprobs", 0, *kv, *args)[0]

        begin, end = len(ids(before)), len(ids(before + middle))
        none, by_tokens = answer(), answer("--kv-pin", f"{begin}:{end}")
        self.assertNotEqual(none["logprobs"], by_tokens["logprobs"])
        self.assertEqual(by_tokens["logprobs"], answer("--kv-pin-text", middle)["logprobs"])
        halves = ["--kv-pin", f"{begin}:{begin + 5}", "--kv-pin", f"{begin + 5}:{end}"]
        self.assertEqual(by_tokens["logprobs"], answer(*halves)["logprobs"])
        self.assertEqual(none["usage"]["kv"]["kept_entries"], by_tokens["usage"]["kv"]["kept_entries"])

    def test_pins_that_are_none_are_refused(self):
        kv = ["--kv", "streamingllm,tokens=5"]
        for flag, value in (("--kv-pin", "0:3"), ("--kv-pin-text", "Hello")):
            self.fails("run", "-m", "nowhere", "-p", "x", flag, value, says=[flag, "needs --kv"])
        for pin in ("3", "3:", ":3", "a:b", "3:3", "5:3", "-1:3", "1:3x", "1:2:3", ""):
            with self.subTest(pin):
                self.fails("run", "-m", "nowhere", "-p", "x", *kv, "--kv-pin", pin, says=["--kv-pin", "BEGIN:END"])
        self.fails("run", "-m", "nowhere", "-p", "x", *kv, "--kv-pin-text", "", says="--kv-pin-text: the text is empty")
        self.run_fails("-p", "Hello", *kv, "--kv-pin", "5:9", says="prompt: pinned tokens 5 to 9 are not in the prompt of 7")
        self.run_fails("-p", "Hello", *kv, "--kv-pin-text", "hello", says=["prompt: --kv-pin-text", "'hello'"])
        two = ["-p", "Hello", "-p", "Help", "--kv", "streamingllm,tokens=50", "--kv-pin-text", "Hello"]
        self.run_fails(*two, says="prompt 2: --kv-pin-text")
        self.run_fails("-p", "Hello", *kv, "--kv-pin", "1:7", says="pinned tokens need the room of")
        ids = ["--tokens", self.file("a.ids", "5 6"), *kv, "--kv-pin-text", "x"]
        self.fails("run", "-m", golden("mixtral/model.gguf"), *ids, says="--kv-pin-text needs a tokenizer")

    def test_a_kv_policy_that_is_none_is_refused_before_loading(self):
        for policy, says in (
            ("snapkv", "keep=0.2"),
            ("snipkv,keep=0.2", "'snipkv' is no part of a KV policy"),
            ("snapkv,keydiff,keep=0.2", "cannot be combined"),
            ("k=int3", "keys of type int3"),
            ("auto,snapkv,keep=0.2", "auto and snapkv cannot be combined"),
            ("auto(floor=2)", "auto: floor must be a number from 0.01 to 1, not '2'"),
            ("snapkv(window=x),keep=0.2", "window must be a whole number"),
        ):
            self.fails("run", "-m", "nowhere", "-p", "x", "--kv", policy, code=2, says=["--kv", says])
        junk = self.file("junk.txt", "junk " * 10_000)
        result = self.fails("run", "-m", "nowhere", "-p", "x", "--kv", f"@{junk}", code=2, says="is no part of a KV policy")
        self.assertLess(len(result.err), 2000)


class StatisticsTest(RunTestCase):
    def test_the_line_on_standard_error_counts_tokens_and_experts(self):
        result = self.run_model("-p", "Hello", "-n", 5)
        line = STATISTICS.fullmatch(result.err)
        self.assertIsNotNone(line, result.err)
        self.assertEqual((line["prompt"], line["generated"], line["all_experts"]), ("7", "5", "12"))
        self.assertTrue(0 < int(line["experts"]) <= 12)

    def test_a_dense_model_has_no_experts_in_it(self):
        line = STATISTICS.fullmatch(self.succeeds("run", "-m", made_model("llama"), "-p", "a", "-n", 2).err)
        self.assertIsNone(line["experts"])

    def test_quiet_leaves_it_out(self):
        self.assertEqual(self.run_model("-p", "Hello", "-n", 2, "--quiet").err, "")
        self.assertEqual(self.run_model("-p", "Hello", "-n", 2, "-q").err, "")

    def test_a_terminal_sees_no_progress_bar_for_quick_work(self):
        master, slave = pty.openpty()
        try:
            args = ["run", "-m", golden(BYTES_MODEL), "-p", "a", "-n", "2"]
            self.assertEqual(program.start(*args, stdout=subprocess.DEVNULL, stderr=slave).wait(), 0)
            with open(slave, "wb", closefd=False) as terminal:
                terminal.write(b"end\n")
            seen = b""
            while not seen.endswith(b"end\r\n"):
                seen += os.read(master, 4096)
        finally:
            os.close(master)
            os.close(slave)
        self.assertIsNotNone(STATISTICS.match(seen.decode().replace("\r\n", "\n")), seen)

    def test_the_same_as_json(self):
        path = self.folder / "stats.json"
        line = STATISTICS.fullmatch(self.run_model("-p", "Hello", "-n", 5, "--stats-json", path).err)
        stats = json.loads(path.read_text())
        self.assertEqual((stats["prompt_tokens"], stats["generated_tokens"], stats["decode_tokens"]), (7, 5, 4))
        self.assertEqual((stats["distinct_experts"], stats["all_experts"]), (int(line["experts"]), 12))
        self.assertEqual(stats["steps"], 5)
        counts = stats["expert_counts"]
        self.assertEqual(sum(count > 0 for layer in counts for count in layer), stats["distinct_experts"])
        self.assertEqual(sum(len(layer) for layer in counts), 12)
        self.assertEqual({sum(layer) for layer in counts}, {(7 + 4) * 2})  # two experts a token
        self.assertAlmostEqual(stats["decode_tokens_per_second"], 4 / stats["decode_seconds"], places=1)
        for key in ("prefill_seconds", "kv_peak_bytes", "weight_bytes", "peak_memory_bytes"):
            self.assertGreater(stats[key], 0, key)

    def test_a_file_that_cannot_be_written_is_found_before_loading(self):
        for path in (self.folder / "missing" / "stats.json", self.folder):
            # The model is not there either, which is not what the error is about.
            self.fails("run", "-m", "missing.gguf", "-p", "a", "--stats-json", path, says=path)

    def test_no_file_is_left_by_a_run_that_failed(self):
        self.fails("run", "-m", "missing.gguf", "-p", "a", "--stats-json", self.folder / "stats.json")
        self.assertEqual(list(self.folder.iterdir()), [])


class MemoryTest(RunTestCase):
    def test_a_budget_too_small_is_an_error_with_the_plan_before_loading(self):
        model = made_model("llama", layers=20)
        result = self.fails("run", "-m", model, "-p", "a", "--memory", "60MB", says=[model, "budget", "60.0 MiB"])
        for part in ("weights", "routed experts", "activations", "left for KV"):
            self.assertIn(part, result.err)
        self.assertLess(result.cpu_seconds, 1)
        self.check_peak_memory(result, model.stat().st_size)

    def test_sizes_have_units_of_powers_of_1024(self):
        for size, mib in [("2GB", 2048), ("1.5 gib", 1536), ("512m", 512), ("536870912", 512), ("524288K", 512)]:
            plan = self.succeeds("inspect", "-m", golden(BYTES_MODEL), "--memory", size, "--json").out
            self.assertEqual(json.loads(plan)["memory"]["budget_bytes"], mib << 20, size)

    def test_a_process_holds_little_more_than_it_reports(self):
        model = made_model("qwen3moe", layers=24)
        self.assertGreater(model.stat().st_size, 128 << 20)
        path = self.folder / "stats.json"
        args = ["-p", "a", "-n", 20, "--memory", "512MB", "--stats-json", path]
        result = self.succeeds("run", "-m", model, *args)
        reported = json.loads(path.read_text())["peak_memory_bytes"]
        self.assertLess(reported, 512 << 20)
        # What is not from the pool: the program and its libraries, the tokenizer, pages of the tensor being packed.
        self.check_peak_memory(result, reported + (32 << 20))

    def test_loading_big_tensors_holds_little_of_the_file(self):
        model = made_model("olmoe", "olmoe-1b-7b", "Q4_K", layers=1)  # a layer's experts: 216 MiB
        result = self.succeeds("run", "-m", model, "-p", "a", "-n", 1)
        self.check_peak_memory(result, model.stat().st_size + (128 << 20))


class ProgressTest(RunTestCase):
    def shown_on_a_terminal(self, *args):
        """What `witan run` in its slowest kernels writes to standard error when that is a terminal."""
        terminal, its_end = pty.openpty()
        slow = {"WITAN_ISA": "reference"}
        with program.start("run", *args, env=slow, stdout=subprocess.DEVNULL, stderr=its_end) as process:
            os.close(its_end)
            shown = b""
            with contextlib.suppress(OSError):  # how a terminal's end is told
                while piece := os.read(terminal, 1 << 16):
                    shown += piece
        os.close(terminal)
        self.assertEqual(process.returncode, 0, shown)
        return shown.decode()

    def test_a_long_prompt_has_a_bar_that_is_wiped_before_the_answer(self):
        prompt = self.file("long.txt", "a b " * 500)
        shown = self.shown_on_a_terminal("-m", made_model("qwen3moe"), "-f", prompt, "-n", "1")
        self.assertRegex(shown, r"\rreading \[#+ +\] +\d+ %")
        self.assertRegex(shown, r"\r\x1b\[Kprompt \d+ tokens[^\r]*\r\n$")

    def test_several_answers_have_one_bar(self):
        prompt = self.file("long.txt", "a b " * 300)
        args = ["-f", prompt, "-f", prompt, "--no-prefix-cache", "-n", "3"]
        shown = self.shown_on_a_terminal("-m", made_model("qwen3moe"), *args)
        self.assertRegex(shown, r"\ranswering \[#+ +\] +\d+ %")


class InterruptTest(RunTestCase):
    def test_a_second_ctrl_c_does_not_wait_for_the_step(self):
        prompt = self.file("long.txt", "a b " * 2000)
        args = ["run", "-m", made_model("qwen3moe"), "-f", prompt, "--step-tokens", "8000", "-n", "1"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with program.start(*args, env={"WITAN_ISA": "reference"}, **pipes) as process:
            time.sleep(1)  # it has loaded, and its one step of the prompt takes many times that
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            self.assertIsNone(process.poll())
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        self.assertEqual(process.returncode, -signal.SIGINT)

    def test_ctrl_c_ends_the_answer_with_its_statistics(self):
        path = self.folder / "stats.json"
        args = ["run", "-m", made_model("qwen3moe"), "-p", "a", "-n", "100000", "--ignore-eos", "--stats-json", path]
        slow = {"WITAN_ISA": "reference"}
        with program.start(*args, env=slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertTrue(out.endswith(b"\n"))
        line = STATISTICS.fullmatch(err.decode())
        self.assertIsNotNone(line, err)
        generated = json.loads(path.read_text())["generated_tokens"]
        self.assertEqual(int(line["generated"]), generated)
        self.assertTrue(0 < generated < 8000, generated)


if __name__ == "__main__":
    program.main()
