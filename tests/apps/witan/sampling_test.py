"""The sampling flags of witan run: what each does to a text, and values that it cannot have."""

import program
from program import golden

MODEL = "e2e-bytes/model.gguf"
VOCAB_SIZE = 320


class SamplingTest(program.WitanTestCase):
    def tokens(self, *args):
        answers = self.succeeds("run", "-m", golden(MODEL), "-p", "Hello", "-n", 16, "--json", *args).json_lines()
        return answers[0]["tokens"]

    def test_what_leaves_one_token_is_greedy(self):
        greedy = self.tokens()
        hot = ["--temperature", 5, "--seed", 1]
        self.assertNotEqual(self.tokens(*hot), greedy)
        for narrow in (["--top-k", 1], ["--top-p", 1e-6], ["--min-p", 1]):
            with self.subTest(narrow):
                self.assertEqual(self.tokens(*hot, *narrow), greedy)

    def test_a_bias_forces_or_forbids_a_token(self):
        greedy = self.tokens()
        self.assertNotIn(greedy[0], self.tokens("--logit-bias", f"{greedy[0]}=-inf"))
        self.assertEqual(self.tokens("--logit-bias", "100=1e4", "--logit-bias", "101=+1e3"), [100] * 16)

    def test_penalties_work_against_repetition(self):
        forced = ["--logit-bias", "100=60", "--logit-bias", "101=50"]
        self.assertEqual(set(self.tokens(*forced)), {100})
        for penalty in (["--repetition-penalty", 1.5], ["--presence-penalty", 30], ["--frequency-penalty", 30]):
            with self.subTest(penalty):
                self.assertEqual(set(self.tokens(*forced, *penalty)[:2]), {100, 101})

    def test_every_value_out_of_range_is_named_before_a_model_is_loaded(self):
        bad = {
            "temperature": ["nan", "inf", "-1"],
            "top-p": ["nan", "inf", "-1", "0", "1.1"],
            "min-p": ["nan", "inf", "-0.1", "1.1"],
            "repetition-penalty": ["nan", "inf", "-1", "0"],
            "presence-penalty": ["nan", "inf", "-inf"],
            "frequency-penalty": ["nan", "inf", "-inf"],
            "top-k": ["-1"],
        }
        for name, values in bad.items():
            for value in values:
                with self.subTest(f"{name} {value}"):
                    says = [name.replace("-", "_"), f"not {value}"]
                    self.fails("run", "-m", "missing.gguf", "-p", "a", f"--{name}", value, says=says)

    def test_a_bias_that_is_none_is_named(self):
        for bias in ("", "5", "5=", "=5", "x=5", "5=x", "5=1x", "5 = 1", "5==1", "99999999999=1"):
            with self.subTest(bias):
                self.fails("run", "-m", "missing.gguf", "-p", "a", "--logit-bias", bias, says=["--logit-bias", bias])
        for bias in ("5=nan", "5=inf"):
            self.fails("run", "-m", "missing.gguf", "-p", "a", "--logit-bias", bias, says="logit_bias of token 5")

    def test_tokens_outside_of_the_vocabulary_are_named(self):
        for token in (-1, VOCAB_SIZE):
            run = ["run", "-m", golden(MODEL), "-p", "a"]
            self.fails(*run, "--logit-bias", f"{token}=1", says=str(token))
            self.fails(*run, "--stop-token", token, says=[str(token), "0 to 319"])
        self.fails("run", "-m", golden(MODEL), "-p", "a", "--json", "--logprobs", 321, says=["num_logprobs", "320"])


if __name__ == "__main__":
    program.main()
