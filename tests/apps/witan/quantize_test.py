"""witan quantize: files that run, a table that is true, errors and interruptions that leave nothing."""

import json
import os
import signal
import time

import program
from program import made_model

TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q4_K_S", "Q4_K_M", "Q5_K", "Q5_K_S", "Q5_K_M", "Q6_K", "MXFP4"]
ROW = r"(?m)^{} +{} +[\d.]+ +[\d.]+ +{} +{}  {}$"


class QuantizeTest(program.WitanTestCase):
    def types_of(self, path):
        tensors = json.loads(self.succeeds("inspect", "-m", path, "--json").out)["tensors"]
        return {tensor["name"]: tensor["type"] for tensor in tensors}

    def test_every_type_gives_a_model_that_runs(self):
        model = made_model("qwen3moe", dtype="BF16")
        for dtype in TYPES:
            with self.subTest(dtype):
                path = self.folder / f"{dtype}.gguf"
                self.succeeds("quantize", model, path, "--type", dtype)
                answer = self.succeeds("run", "-m", path, "-p", "a", "-n", 4, "--json").json_lines()[0]
                self.assertEqual((len(answer["tokens"]), answer["finish_reason"]), (4, "length"))

    def test_higher_precision_gives_closer_logits(self):
        model = made_model("llama", "tiny-mixtral", "F32")
        tokens = self.file("tokens", list(range(10, 60)))

        def logits(path):
            out = self.folder / "logits"
            self.succeeds("logits", "-m", path, "--tokens", tokens, "--out", out, "--exact")
            return program.read_array(out, "f")

        exact = logits(model)
        errors = []
        for dtype in ["BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K"]:
            path = self.folder / "model.gguf"
            self.succeeds("quantize", model, path, "--type", dtype)
            errors.append(sum(abs(a - b) for a, b in zip(exact, logits(path))) / len(exact))
        self.assertEqual(errors, sorted(errors))
        self.assertGreater(errors[0], 0)
        self.assertLess(errors[-1], 0.5)

    def test_the_table_sums_up_each_class(self):
        path = self.folder / "out.gguf"
        out = self.succeeds("quantize", made_model("qwen3moe", dtype="BF16"), path, "--type", "Q4_K").out
        self.assertRegex(out, r"(?m)^class +tensors +MiB before +MiB after +bits +rms error  types$")
        self.assertRegex(out, ROW.format("experts", 6, "4.500", r"0\.05\d+", "Q4_K"))
        self.assertRegex(out, ROW.format("routers", 2, "32.000", "-", "F32"))
        self.assertRegex(out, ROW.format("output", 1, "6.562", r"0\.01\d+", "Q6_K"))
        self.assertRegex(out, rf"(?m)^{path}: \d+\.\d MiB, \d+\.\d s$")
        self.assertEqual(list(self.folder.iterdir()), [path])

    def test_a_hugging_face_directory_gives_a_file_with_the_same_logits(self):
        for name in ("mixtral", "qwen3moe"):  # with and without rows that GGUF files have in another order
            with self.subTest(name):
                path = self.folder / f"{name}.gguf"
                self.succeeds("quantize", program.golden(f"{name}/hf"), path, "--type", "F32")
                tokens = self.file("tokens", program.golden_json(f"{name}/golden.json")["prompt"])
                out = self.folder / "logits"
                self.succeeds(
                    "logits", "-m", path, "--tokens", tokens, "--out", out, "--exact", "--kv-type", "f32"
                )
                expected = program.read_array(program.golden(f"{name}/logits.f32"), "f")
                found = program.read_array(out, "f")
                self.assertEqual(len(found), len(expected))
                self.assertLess(max(abs(a - b) for a, b in zip(found, expected)), 1e-3)

    def test_experts_and_overrides(self):
        path = self.folder / "out.gguf"
        flags = ["--type", "Q4_K_M", "--experts", "MXFP4", "--override", r"blk\.0\.attn_q=q8_0"]
        flags += ["--override", "attn_(q|k)=F16"]
        self.succeeds("quantize", made_model("qwen3moe", dtype="BF16"), path, *flags)
        types = self.types_of(path)
        self.assertEqual(types["blk.0.ffn_down_exps.weight"], "MXFP4")
        self.assertEqual(types["blk.0.attn_q.weight"], "Q8_0")
        self.assertEqual(types["blk.1.attn_q.weight"], "F16")
        self.assertEqual(types["blk.1.attn_k.weight"], "F16")

    def test_rows_that_do_not_fit_are_named(self):
        path = self.folder / "out.gguf"
        out = self.succeeds("quantize", made_model("deepseek2", dtype="BF16"), path, "--type", "Q4_K").out
        self.assertRegex(out, r"(?m)^note: attn_k_b\.weight \(3 tensors\) is Q5_0, not Q4_K: rows of \d+ are no whole")
        self.assertEqual(self.types_of(path)["blk.0.attn_k_b.weight"], "Q5_0")

    def test_a_file_may_be_replaced_by_its_own_conversion(self):
        path = self.file("model.gguf", made_model("llama", dtype="BF16").read_bytes())
        self.succeeds("quantize", path, path, "--type", "Q8_0")
        self.assertEqual(self.types_of(path)["blk.0.attn_q.weight"], "Q8_0")

    def test_the_number_of_threads_does_not_show(self):
        model = made_model("llama", dtype="BF16")
        paths = [self.folder / "1", self.folder / "3"]
        for path in paths:
            self.succeeds("quantize", model, path, "--type", "Q4_K_M", "--threads", path.name)
        self.assertEqual(paths[0].read_bytes(), paths[1].read_bytes())

    def test_types_and_patterns_that_are_none(self):
        model, out = made_model("llama"), self.folder / "out.gguf"
        cases = [
            (["--type", "Q4_L"], ["--type Q4_L", "unknown", "Q4_K_M", "MXFP4"]),
            (["--type", "IQ4_XS"], ["IQ4_XS", "reads", "Q4_K_M"]),
            (["--type", "F8_E4M3"], ["F8_E4M3", "unknown"]),
            (["--type", "Q8_0", "--experts", "Q4_K_M"], ["--experts", "Q4_K_M", "Q4_K"]),
            (["--type", "Q8_0", "--override", "attn_q"], ["--override attn_q", "PATTERN=TYPE"]),
            (["--type", "Q8_0", "--override", "attn_q=Q9"], ["attn_q=Q9", "Q9", "Q8_0"]),
            (["--type", "Q8_0", "--override", "(=F16"], ['"("', "regular expression"]),
            (["--type", "Q8_0", "--override", "nothing=F16"], ['"nothing"', "matches"]),
        ]
        for flags, says in cases:
            with self.subTest(flags):
                self.fails("quantize", model, out, *flags, says=says)
        self.fails("quantize", model, out, code=2, says="--type")
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_inputs_that_are_no_models(self):
        out = self.folder / "out.gguf"
        for path in [self.folder / "missing.gguf", self.file("text.gguf", "text"), self.folder]:
            with self.subTest(path):
                self.fails("quantize", path, out, "--type", "Q8_0", says=path)
        self.assertFalse(out.exists())

    def test_a_disk_that_fills_up(self):
        path = self.file("model.gguf", "earlier")
        args = ["quantize", made_model("llama"), path, "--type", "Q8_0"]
        self.fails(*args, through=program.limited_to_files_of(100), says=[path, "File too large"])
        self.assertEqual(path.read_text(), "earlier")
        self.assertEqual(list(self.folder.iterdir()), [path])

    def test_a_place_that_cannot_be_written(self):
        for path in (self.folder / "missing" / "model.gguf", self.folder, "/dev/full"):
            with self.subTest(path):
                self.fails("quantize", made_model("llama"), path, "--type", "Q8_0", says=path)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_an_interrupted_conversion_leaves_nothing(self):
        model = made_model("qwen3moe", "qwen3-30b-a3b", "Q8_0", 1)  # about a GB: seconds of work
        process = program.start("quantize", model, self.folder / "out.gguf", "--type", "Q4_K", "--threads", 1)
        time.sleep(0.5)
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=30), -signal.SIGINT)
        if os.uname().sysname == "Linux":
            self.assertEqual(list(self.folder.iterdir()), [])


if __name__ == "__main__":
    program.main()
