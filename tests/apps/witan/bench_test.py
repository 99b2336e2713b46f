"""witan bench: its cases, what it counts, and what is wrong with its flags. No speed is asserted."""

import json

import program
from program import golden, made_model


class BenchTest(program.WitanTestCase):
    def setUp(self):
        super().setUp()
        self.model = made_model("qwen3moe")

    def bench(self, *flags, rounds=1):  # each takes most of a second to find the machine's limits
        flags = ["-t", "1", "-r", rounds, "--json", *flags]
        return json.loads(self.succeeds("bench", "-m", self.model, *flags).out)

    def test_cases_are_prompts_and_depths_by_batches(self):
        result = self.bench("-p", "20,40", "-d", "0,50", "-b", "1,3", "-n", "4", rounds=2)
        self.assertEqual(
            [c["name"] for c in result["cases"]],
            ["prompt 20", "prompt 40", "generate, 1 x 0 deep", "generate, 3 x 0 deep", "generate, 1 x 50 deep",
             "generate, 3 x 50 deep"])  # fmt: skip
        for case in result["cases"]:
            self.assertEqual(len(case["rounds"]), 2)
            self.assertGreater(min(case["rounds"]), 0)
            self.assertTrue(min(case["rounds"]) <= case["tokens_per_second"] <= max(case["rounds"]))
        self.assertEqual((result["architecture"], result["threads"]), ("qwen3_moe", 1))
        self.assertIn(result["kv_type"], ("f16", "bf16"), "as the CPU likes it")
        self.assertGreater(result["limits"]["read_bandwidth"], 0)
        self.assertGreater(result["peak_pool_bytes"], self.model.stat().st_size)

    def test_generating_counts_the_experts_that_were_chosen_and_the_entries(self):
        one, three = self.bench("-p", "1", "-d", "50", "-b", "1,3", "-n", "4")["cases"][1:]
        self.assertEqual(one["distinct_experts_per_step"], 2 * 2)  # layers, experts a token
        self.assertTrue(4 < three["distinct_experts_per_step"] <= 12)
        expert, entry = 3 * 256 * 256 * 4, 2 * 2 * (128 + 128) * 2
        dense = one["bytes_per_token"] - 4 * expert - (50 + 2.5) * entry  # entries seen: 51 to 54
        self.assertAlmostEqual(
            three["bytes_per_token"], (dense + three["distinct_experts_per_step"] * expert) / 3 + 52.5 * entry, places=3
        )

    def test_sequences_deeper_than_a_step_generate_together(self):
        (case,) = self.bench("-p", "1", "-d", "700", "-b", "6", "-n", "3")["cases"][1:]
        self.assertEqual(case["name"], "generate, 6 x 700 deep")

    def test_kv_policies_are_measured_beside_all_entries(self):
        flags = ["-p", "1", "-d", "100", "-n", "4", "--kv", "snapkv(window=8),keep=0.2", "--kv", "keydiff,tokens=50"]
        dense, fifth, half = self.bench(*flags)["cases"][1:]
        self.assertEqual(fifth["name"], "generate, 1 x 100 deep, snapkv(window=8),keep=0.2")
        self.assertEqual(half["kv"], "keydiff,tokens=50")
        self.assertGreater(half["compression_seconds"], 0)
        entry = 2 * 2 * (128 + 128) * 2
        self.assertAlmostEqual(dense["bytes_per_token"] - fifth["bytes_per_token"], 80 * entry, places=3)
        self.assertAlmostEqual(dense["bytes_per_token"] - half["bytes_per_token"], 50 * entry, places=3)

    def test_depths_that_are_copied(self):
        flags = ["-p", "1", "-d", "200", "-b", "3", "-n", "4", "--kv", "snapkv(window=8),keep=0.2"]
        own, copied = self.bench(*flags), self.bench(*flags, "--copy-depth")
        self.assertEqual((own["copied_depth"], copied["copied_depth"]), (False, True))
        self.assertEqual([c["name"] for c in copied["cases"]], [c["name"] for c in own["cases"]])
        dense, fifth = copied["cases"][1:]
        self.assertNotIn("kv", dense)
        self.assertGreater(fifth["compression_seconds"], 0)
        entry, expert = 2 * 2 * (128 + 128) * 2, 3 * 256 * 256 * 4
        experts = (dense["distinct_experts_per_step"] - fifth["distinct_experts_per_step"]) * expert / 3
        self.assertAlmostEqual(dense["bytes_per_token"] - experts - fifth["bytes_per_token"], 160 * entry, places=3)
        for case, of_own in zip(copied["cases"][1:], own["cases"][1:]):
            self.assertEqual(case["operations_per_token"], of_own["operations_per_token"])
        json_policy = ["--kv", '{"parts": [{"part": "snapkv", "window": 100}], "keep": 0.2}']
        (case,) = self.bench("-p", "1", "-d", "200", "-b", "6", "-n", "2", "--copy-depth", *json_policy)["cases"][2:]
        self.assertEqual(case["kv"], "snapkv(window=100),keep=0.2")
        self.fails("bench", "-m", self.model, "-d", "63", "--copy-depth", says="at least 64")
        self.fails("bench", "-m", self.model, "-d", "64", "--copy-depth", "--kv", "h2o,keep=0.5",
                   says="the reuse of documents")  # fmt: skip

    def test_a_request_that_fails_says_why(self):
        self.fails("bench", "-m", self.model, "-d", "100", "-n", "8", "--kv", "keydiff,tokens=32,every=4,action=offload",
                   "--kv-offload-dir", "/proc", says=["/proc", "no file for KV entries"])  # fmt: skip

    def test_generating_beside_a_prompt(self):
        flags = ["-p", "1", "-d", "30", "-b", "3", "-n", "4", "--beside", "100", "--mixed-tokens", "16",
                 "--max-slowdown", "0"]  # fmt: skip
        alone, beside = self.bench(*flags)["cases"][1:]
        self.assertEqual(beside["name"], "generate, 3 x 30 deep, beside a prompt")
        self.assertNotIn("prompt_tokens_per_second", alone)
        self.assertNotIn("operations_per_token", beside)
        self.assertGreater(beside["prompt_tokens_per_second"], 0)
        self.assertGreater(beside["tokens_per_second"], 0)
        out = self.succeeds("bench", "-m", self.model, "-r", "1", *flags).out
        self.assertRegex(out, r"(?m)^generate, 3 x 30 deep, beside a prompt +\d")
        self.assertRegex(out, r"beside a prompt: \d+\.\d tokens/s of the prompt")
        self.fails("bench", "-m", self.model, "--beside", "9", "--max-slowdown", "0.5", says="0.5 times slower")

    def test_prompts_of_documents_that_were_there_before(self):
        flags = ["-p", "300", "-n", "4", "--documents", "3", "--kv", "epic", "--kv", "keydiff,keep=0.5", "--kv",
                 "routeblend(recompute=0.3)"]  # fmt: skip
        names = ["prompt 300", "prompt 300 of 3 documents, epic", "prompt 300 of 3 documents, routeblend(recompute=0.3)",
                 "generate, 1 x 0 deep", "generate, 1 x 0 deep, keydiff,keep=0.5"]  # fmt: skip
        cases = self.bench(*flags)["cases"]
        self.assertEqual([c["name"] for c in cases], names)
        self.assertEqual((cases[1]["kv"], cases[1]["documents"]), ("epic", 3))
        self.assertGreater(cases[2]["tokens_per_second"], 0)

    def test_prompts_alone(self):
        self.assertEqual([c["name"] for c in self.bench("-p", "7", "-n", "0")["cases"]], ["prompt 7"])

    def test_the_table_has_a_line_per_case(self):
        out = self.succeeds("bench", "-m", self.model, "-p", "9", "-n", "2", "-r", "1").out
        self.assertRegex(out, r"(?m)^prompt 9 +\d")
        self.assertRegex(out, r"(?m)^generate, 1 x 0 deep +\d")
        self.assertRegex(out, r"(?m)^peak memory \d")

    def test_dry_needs_no_model(self):
        result = json.loads(self.succeeds("bench", "--dry", "-b", "1,40", "-n", "3", "--json").out)["dry"]
        self.assertEqual([c["batch"] for c in result], [1, 40])
        for case in result:
            self.assertGreater(case["schedule_seconds"], 0)
            self.assertGreater(case["commit_seconds"], 0)

    def test_what_is_wrong_is_named(self):
        self.fails("bench", code=2, says="--model and --dry")
        self.fails("bench", "--dry", "-m", self.model, code=2, says="--dry")
        self.fails("bench", "--dry", "-n", "0", code=2, says="--num-tokens")
        self.fails("bench", "-m", self.model, "-p", "0", code=2, says="--prompt")
        self.fails("bench", "-m", self.model, "-p", "12,x", code=2, says="--prompt")
        self.fails("bench", "-m", self.model, "-r", "0", code=2, says="--rounds")
        self.fails("bench", "-m", self.model, "--kv", "epic", says="--documents")
        self.fails("bench", "-m", self.model, "-p", "100", "--documents", "3", says="at least 128")
        self.fails("bench", "-m", self.folder / "none", says="none")
        self.fails("bench", "-m", golden("switch-capacity/hf"), "-p", "9", "-n", "2", says="encoder")


if __name__ == "__main__":
    program.main()
