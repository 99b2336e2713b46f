"""witan logits: files of logits and experts against the goldens, and that they do not depend on how they are made."""

import json
import os
import shutil
import signal
import subprocess
import time
import unittest

import program
from program import golden, golden_json, made_model, read_array

VOCAB_SIZE = 320
TOLERANCE = 1e-3
EXACT = ["--exact", "--kv-type", "f32"]


class LogitsTestCase(program.WitanTestCase):
    def logits(self, model, tokens, *args, **options):
        """The bytes that `witan logits` writes for a list of ids."""
        path = self.folder / "logits.f32"
        self.succeeds("logits", "-m", model, "--tokens", self.file("ids", tokens), "--out", path, *args, **options)
        return path.read_bytes()

    def check_logits(self, found, expected):
        self.assertEqual(len(found), len(expected))
        self.assertLess(max(abs(a - b) for a, b in zip(found, expected)), TOLERANCE)


class GoldenLogitsTest(LogitsTestCase):
    def test_logits_and_experts_are_the_golden_ones(self):
        for name, model in [("mixtral", "model.gguf"), ("qwen3moe", "hf"), ("deepseek2-v2lite", "model.gguf")]:
            with self.subTest(name):
                data = golden_json(f"{name}/golden.json")
                experts_path = self.folder / "experts.i32"
                self.logits(golden(name) / model, data["prompt"], *EXACT, "--experts-out", experts_path)
                found = read_array(self.folder / "logits.f32", "f")
                self.assertEqual(len(found), len(data["prompt"]) * VOCAB_SIZE)
                self.check_logits(found, read_array(golden(name) / "logits.f32", "f"))

                top_k = data["files"]["experts.i32"][2]
                expected = read_array(golden(name) / "experts.i32", "i")
                chosen = read_array(experts_path, "i")
                self.assertEqual(len(chosen), len(expected))
                for row in range(0, len(expected), top_k):
                    self.assertEqual(set(chosen[row : row + top_k]), set(expected[row : row + top_k]))

    def test_so_are_those_of_a_long_prompt(self):
        data = golden_json("mixtral/golden.json")
        self.logits(golden("mixtral/model.gguf"), data["prompt_long"], *EXACT)
        found = read_array(self.folder / "logits.f32", "f")
        self.assertEqual(len(found), len(data["prompt_long"]) * VOCAB_SIZE)
        self.check_logits(found[-8 * VOCAB_SIZE :], read_array(golden("mixtral/logits_long_last8.f32"), "f"))


class LatentAttentionTest(LogitsTestCase):
    """Keys and values that are made of latents for a prompt: bf16 where the cached latents are multiplied as such."""

    def both(self, kv_type, isa):
        model, tokens, env = made_model("deepseek2"), list(range(20, 90)), {"WITAN_ISA": isa}
        return [self.logits(model, tokens, "--kv-type", kv_type, *args, env=env) for args in ([], ["--exact"])]

    def test_they_are_floats_for_other_caches_and_other_cpus(self):
        for kv_type, isa in [("bf16", "avx2"), ("f16", "avx2"), ("q8_0", "avx2")]:
            with self.subTest(f"{kv_type} {isa}"):
                fast, exact = self.both(kv_type, isa)
                self.assertEqual(fast, exact)

    def test_they_are_rounded_with_the_cache(self):
        if program.witan("--list", env={"WITAN_ISA": "avx512_bf16"}).code != 0:
            self.skipTest("no BF16 instructions")
        fast, exact = (memoryview(logits).cast("f") for logits in self.both("bf16", "avx512_bf16"))
        distance = max(abs(a - b) for a, b in zip(fast, exact))
        self.assertGreater(distance, 0)
        self.assertLess(distance, 0.02 * max(map(abs, exact)))
        fast, exact = self.both("f16", "avx512_bf16")
        self.assertEqual(fast, exact)


class HuggingFaceSettingsTest(LogitsTestCase):
    """Settings of config.json that are easily read past."""

    def model_with(self, removed=(), **settings):
        model = self.folder / f"hf{len(list(self.folder.iterdir()))}"
        shutil.copytree(golden("qwen3moe/hf"), model)
        config = json.loads((model / "config.json").read_text())
        for key in removed:
            del config[key]
        (model / "config.json").write_text(json.dumps({**config, **settings}))
        return model

    def test_newer_files_keep_the_rotary_base_in_an_object(self):
        tokens = list(range(3, 60))
        expected = self.logits(golden("qwen3moe/hf"), tokens)
        theta = json.loads((golden("qwen3moe/hf") / "config.json").read_text())["rope_theta"]
        newer = {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
        self.assertEqual(self.logits(self.model_with(["rope_theta"], **newer), tokens), expected)
        newer["rope_parameters"]["rope_theta"] = theta * 2
        self.assertNotEqual(self.logits(self.model_with(["rope_theta"], **newer), tokens), expected)

    def test_a_window_that_is_not_in_use_is_none(self):
        tokens = list(range(3, 60))
        expected = self.logits(golden("qwen3moe/hf"), tokens)
        self.assertEqual(self.logits(self.model_with(["use_sliding_window"], sliding_window=16), tokens), expected)
        window = {"sliding_window": 16, "use_sliding_window": True}
        self.assertEqual(self.logits(self.model_with(**window, max_window_layers=99), tokens), expected)
        self.assertNotEqual(self.logits(self.model_with(**window, max_window_layers=1), tokens), expected)

    def fails_with(self, model, says):
        ids = self.file("ids", [1, 2])
        self.fails("logits", "-m", model, "--tokens", ids, "--out", self.folder / "out", says=says)

    def test_another_activation_is_refused(self):
        self.fails_with(self.model_with(hidden_act="gelu"), ["hidden_act", "gelu", "expected silu"])

    def test_embeddings_are_tied_only_where_the_file_says_so(self):
        model = self.model_with(tie_word_embeddings=False)
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes().replace(b'"lm_head.weight"', b'"lm_head.weighs"'))
        self.fails_with(model, "tensor lm_head.weight is missing")


class SameBytesTest(LogitsTestCase):
    def test_whatever_the_chunk_and_the_threads(self):
        tokens = golden_json("mixtral/golden.json")["prompt"]
        goldens = [golden("mixtral/model.gguf"), golden("deepseek2-v2lite/model.gguf")]
        for model in [*goldens, made_model("qwen3moe", dtype="Q4_K")]:
            expected = self.logits(model, tokens)
            experts = self.folder / "experts"
            self.logits(model, tokens, "--experts-out", experts)
            expected_experts = experts.read_bytes()
            for args in (["--chunk", 1], ["--chunk", 7], ["--chunk", 70], ["-t", 1], ["-t", 3, "--chunk", 16]):
                with self.subTest(model=model, args=args):
                    self.assertEqual(self.logits(model, tokens, *args, "--experts-out", experts), expected)
                    self.assertEqual(experts.read_bytes(), expected_experts)

    def test_the_kv_type_is_bf16_where_the_cpu_multiplies_it(self):
        model = made_model("qwen3moe", dtype="Q4_K")

        def logits(*args, isa):
            return self.logits(model, [1, 2, 3], *args, env={"WITAN_ISA": isa})

        has_bf16 = program.witan("--list", env={"WITAN_ISA": "avx512_bf16"}).code == 0
        for isa in ("reference", "avx2", *(["avx512_bf16"] if has_bf16 else [])):
            with self.subTest(isa):
                for args in ([], ["--exact"]):
                    kv_type = "bf16" if isa == "avx512_bf16" and not args else "f16"
                    self.assertEqual(logits(*args, isa=isa), logits(*args, "--kv-type", kv_type, isa=isa))
                    self.assertEqual(logits(*args, isa=isa), logits(*args, "--kv-type", "auto", isa=isa))

    def test_not_with_another_precision_or_kv_type(self):
        model = made_model("qwen3moe", dtype="Q4_K")
        expected = self.logits(model, [1, 2, 3], "--kv-type", "f16")
        for args in (["--exact"], ["--kv-type", "f32"], ["--kv-type", "bf16"], ["--kv-type", "q8_0"]):
            with self.subTest(args):
                self.assertNotEqual(self.logits(model, [1, 2, 3], *args), expected)

    def test_from_standard_input_and_to_devices_and_pipes(self):
        model = golden("mixtral/model.gguf")
        expected = self.logits(model, [1, 2, 3])
        args = ["logits", "-m", model, "--tokens", "-"]
        self.succeeds(*args, "--out", "/dev/null", stdin="1 2 3")
        with program.start(*args, "--out", "/dev/stdout", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            self.assertEqual(process.communicate(b"1\n2\t3\r\n")[0], expected)
        with open(self.folder / "file", "wb") as file:
            self.succeeds(*args, "--out", "/dev/stdout", stdin="1 2 3", stdout=file)
        self.assertEqual((self.folder / "file").read_bytes(), expected)
        self.assertTrue(os.path.islink("/dev/stdout"))


class LogitsErrorsTest(LogitsTestCase):
    def setUp(self):
        super().setUp()
        self.model = golden("mixtral/model.gguf")
        self.out = self.folder / "out" / "logits.f32"
        self.out.parent.mkdir()

    def check_fails(self, *args, says, tokens="1 2 3", **options):
        """A run that fails and leaves nothing of its own beside what was there."""
        before = {path: path.read_bytes() for path in self.out.parent.iterdir()}
        path = self.file("ids", tokens)
        self.fails("logits", "-m", self.model, "--tokens", path, *args, says=says, **options)
        self.assertEqual({path: path.read_bytes() for path in self.out.parent.iterdir()}, before)

    def test_tokens_that_are_none(self):
        cases = [("1 x", ["token 1", '"x"']), ("", "no token ids"), ("5 320", ["token 1", "320", "0 to 319"])]
        for tokens, says in [*cases, ("-1", ["token 0", "-1"]), ("5 99999999999", ["token 1", "99999999999"])]:
            with self.subTest(tokens):
                self.check_fails("--out", self.out, tokens=tokens, says=says)

    def test_more_tokens_than_the_context(self):
        self.check_fails("--out", self.out, "-c", 2, says=["3 tokens", "context of 2"])

    def test_a_budget_too_small(self):
        self.check_fails("--out", self.out, "--memory", "10MB", says=[self.model, "budget"])
        # A chunk is a step of the plan.
        self.check_fails("--out", self.out, "--memory", "100MB", "--chunk", 65536, says="budget")
        path = self.file("ids", [5])
        self.succeeds("logits", "-m", self.model, "--tokens", path, "--out", self.out, "--memory", "100MB")

    def test_files_that_cannot_be_written_are_found_before_the_model_is_opened(self):
        self.model = "missing.gguf"
        for path in (self.folder / "missing" / "out", self.folder, ""):
            with self.subTest(path):
                self.check_fails("--out", path, says=f"{path}: cannot be written")
                self.check_fails("--out", self.out, "--experts-out", path or self.folder, says="cannot be written")

    def test_a_full_device(self):
        self.check_fails("--out", "/dev/full", says="/dev/full: writing failed: No space left on device")
        self.check_fails("--out", self.out, "--experts-out", "/dev/full", says="/dev/full: writing failed")

    def test_a_disk_that_fills_up(self):
        limit = program.limited_to_files_of(100)
        self.check_fails("--out", self.out, tokens=[5] * 500, through=limit, says=[self.out, "File too large"])

    def test_one_file_for_both(self):
        for path in (self.out, self.out.parent / ".." / "out" / self.out.name):
            self.check_fails("--out", self.out, "--experts-out", path, says=["--experts-out", self.out])

    def test_the_experts_of_a_dense_model(self):
        self.model = made_model("llama")
        self.check_fails("--out", self.out, "--experts-out", self.folder / "experts", says=["--experts-out", "dense"])

    def test_an_earlier_file_stays_when_a_run_fails_and_goes_when_it_succeeds(self):
        self.out.write_bytes(b"earlier")
        self.check_fails("--out", self.out, "-c", 2, says="context")
        self.succeeds("logits", "-m", self.model, "--tokens", self.file("ids", [5]), "--out", self.out)
        self.assertEqual(self.out.stat().st_size, 4 * VOCAB_SIZE)
        self.assertEqual(list(self.out.parent.iterdir()), [self.out])

    def test_a_run_that_is_killed_leaves_nothing(self):
        try:
            os.close(os.open(self.out.parent, os.O_TMPFILE | os.O_WRONLY))
        except OSError as error:
            raise unittest.SkipTest("this file system has no nameless files") from error
        args = ["logits", "-m", made_model("qwen3moe"), "--tokens", self.file("ids", [5] * 4000), "--out", self.out]
        with program.start(*args, "--chunk", 1, env={"WITAN_ISA": "reference"}) as process:
            while not self.has_open(process.pid, self.out.parent):
                self.assertIsNone(process.poll())
                time.sleep(0.001)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(), -signal.SIGTERM)
        self.assertEqual(list(self.out.parent.iterdir()), [])

    def has_open(self, pid, folder):
        links = []
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            try:
                links.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
            except FileNotFoundError:  # closed meanwhile
                pass
        return any(link.startswith(f"{folder}/") for link in links)


if __name__ == "__main__":
    program.main()
