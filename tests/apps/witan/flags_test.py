"""What holds for all commands of witan: help, unknown and missing flags, closed and full standard streams."""

import re
import signal
import subprocess

import program
from program import golden, made_model, witan

COMMANDS = ["run", "chat", "render", "inspect", "tokenize", "logits", "make-model", "quantize", "eval", "perplexity", "bench",
            "completion"]  # fmt: skip
BYTES_MODEL = "e2e-bytes/model.gguf"


def help_entries(text):
    """{long name: entry} of a help text, entries on one line."""
    entries = re.findall(r"^  (?:-\w, |    )--.*(?:\n {28}.*)*", text, re.MULTILINE)
    lines = [" ".join(entry.split()) for entry in entries]
    return {re.search(r"--([\w-]+)", line).group(1): line for line in lines}


class HelpTest(program.WitanTestCase):
    def test_lists_the_commands(self):
        result = self.succeeds("--help")
        for command in COMMANDS:
            self.assertRegex(result.out, rf"(?m)^  {command} ")
        self.assertIn("--list", result.out)
        self.assertIn("WITAN_ISA", result.out)
        self.assertEqual(self.succeeds("-h").out, result.out)
        self.assertEqual(result.err, "")

    def test_fits_a_terminal(self):
        for command in ["", *COMMANDS]:
            for line in self.succeeds(*command.split(), "--help").out.splitlines():
                self.assertLessEqual(len(line), 80, f"{command}: {line}")
                self.assertEqual(line, line.rstrip())
                self.assertTrue(line.isprintable(), repr(line))

    def test_shows_each_flag_with_its_default(self):
        expected = {
            "run": "model prompt file tokens jsonl document parse-special json quiet stats-json exact kv-type threads memory "
            "context kv-offload-dir step-tokens sequences no-prefix-cache num-tokens choices temperature top-k top-p min-p "
            "repetition-penalty presence-penalty frequency-penalty seed logprobs logit-bias kv kv-pin kv-pin-text stop "
            "stop-token ignore-eos",
            "chat": "model system load template template-name extra exact kv-type threads memory context "
            "kv-offload-dir num-tokens temperature top-k top-p min-p repetition-penalty presence-penalty frequency-penalty seed logit-bias kv "
            "kv-pin-system stop stop-token ignore-eos",
            "render": "model template template-name messages",
            "completion": "",
            "inspect": "model json tensors kv-type threads memory context step-tokens sequences",
            "tokenize": "model prompt file ids jsonl no-special parse-special ids-only",
            "logits": "model tokens decoder-tokens expert-capacity out experts-out chunk exact kv-type threads memory context",
            "make-model": "arch preset type layers seed tokenizer",
            "quantize": "type experts override threads",
            "eval": "model tasks out replies on-error template template-name extra exact kv-type threads memory context "
            "kv-offload-dir step-tokens sequences num-tokens temperature top-k top-p min-p repetition-penalty presence-penalty "
            "frequency-penalty seed logit-bias kv ignore-eos",
            "perplexity": "model file window out kv prompt-tokens exact kv-type threads memory kv-offload-dir",
            "bench": "model dry prompt documents depth copy-depth batch kv beside num-tokens rounds json exact kv-type threads memory "
            "kv-offload-dir step-tokens mixed-tokens max-slowdown",
        }
        inputs = {
            "run": ["prompt", "file", "tokens", "jsonl"],
            "tokenize": ["prompt", "file", "ids", "jsonl"],
            "render": ["model"],
            "eval": ["model"],
            "bench": ["model"],
        }
        for command, names in expected.items():
            entries = help_entries(self.succeeds(command, "--help").out)
            self.assertEqual(set(entries), {"help", *names.split()}, command)
            for name, entry in entries.items():
                takes_value = re.match(r"(-\w, )?(--[\w-]+(, )?)+ [A-Z]+(=X)? ", entry)
                if takes_value and name not in inputs.get(command, []) and "(required)" not in entry:
                    self.assertRegex(entry, r"\(default: .+\)", command)

    def test_tells_the_defaults_that_hold(self):
        entries = help_entries(self.succeeds("run", "--help").out)
        defaults = {"num-tokens": "256", "temperature": "0", "top-p": "1", "kv-type": "auto", "step-tokens": "512"}
        for name, default in defaults.items():
            self.assertIn(f"(default: {default})", entries[name])

    def test_version_and_list_print_to_standard_output(self):
        self.assertRegex(self.succeeds("--version").out, r"^witan \d+\.\d+\.\d+\n$")
        listing = self.succeeds("--list").out
        for word in ["qwen3moe", "deepseek2", "Q4_K", "q8_0", "int4-latent", "reference", "selected"]:
            self.assertIn(word, listing)
        self.assertNotIn("int4-kivi", listing, "no type of a whole cache")


class UsageErrorTest(program.WitanTestCase):
    def test_names_what_it_does_not_know(self):
        cases = [
            (["frobnicate"], ["'frobnicate'", "witan --help"]),
            (["--frobnicate"], ["'--frobnicate'", "witan --help"]),
            ([], ["no command"]),
            (["run", "--frobnicate", "3"], ["run", "'--frobnicate'", "witan run --help"]),
            (["run", "-m", "x", "-p", "a", "--frobnicate"], ["'--frobnicate'"]),
            (["run", "-m", "x", "-p", "a", "stray"], ["'stray'"]),
            (["logits", "--step-tokens", "8"], ["'--step-tokens'"]),
        ]
        for args, says in cases:
            with self.subTest(args):
                self.fails(*args, code=2, says=says)

    def test_names_what_is_missing_or_too_much(self):
        cases = [
            (["run", "-p", "a"], "--model is required"),
            (["run", "-m", "x"], ["--prompt", "--file", "--tokens", "--jsonl", "required"]),
            (["run", "-m", "x", "-m", "y", "-p", "a"], "--model"),
            (["inspect"], "--model is required"),
            (["tokenize", "-m", "x"], "--prompt, --file, --ids and --jsonl is required"),
            (["tokenize", "-m", "x", "-p", "a", "-f", "b"], "Exactly one of --prompt, --file, --ids and --jsonl"),
            (["logits", "-m", "x", "--tokens", "t"], "--out is required"),
            (["logits", "-m", "x", "--out", "o"], "--tokens is required"),
            (["make-model", "--arch", "llama", "--preset", "tiny", "--type", "F32"], "OUT is required"),
            (["make-model", "--arch", "llama", "--preset", "tiny", "out"], "--type is required"),
        ]
        for args, says in cases:
            with self.subTest(args):
                self.fails(*args, code=2, says=says)

    def test_names_the_flag_whose_value_is_wrong(self):
        cases = [
            ("--threads", "-1"),
            ("--threads", "many"),
            ("--context", "-1"),
            ("--step-tokens", "0"),
            ("--sequences", "0"),
            ("--kv-type", "q4"),
            ("--memory", "-5"),
            ("--memory", "nan"),
            ("--memory", ""),
            ("--memory", "8XB"),
            ("--memory", "16EB"),
            ("--num-tokens", "0"),
            ("--num-tokens", "5.5"),
            ("--num-tokens", "99999999999"),
            ("--choices", "0"),
            ("--choices", "129"),
            ("--top-k", "abc"),
            ("--logprobs", "-2"),
        ]
        for flag, value in cases:
            with self.subTest(flag + " " + value):
                self.fails("run", "-m", "x", "-p", "a", flag, value, code=2, says=flag)


class StandardStreamsTest(program.WitanTestCase):
    def commands(self):
        model = golden(BYTES_MODEL)
        return [
            ["--help"],
            ["--version"],
            ["--list"],
            ["run", "--help"],
            ["run", "-m", model, "-p", "a", "-n", "3"],
            ["run", "-m", model, "-p", "a", "-n", "3", "--json"],
            ["inspect", "-m", model, "--json"],
            ["tokenize", "-m", model, "-p", "a"],
            ["make-model", "--arch", "llama", "--preset", "tiny", "--type", "Q8_0", self.folder / "out.gguf"],
        ]

    def test_output_that_cannot_be_written_is_an_error(self):
        for args in self.commands():
            with self.subTest(args), open("/dev/full", "wb") as full:
                self.fails(*args, stdout=full, says="standard output: No space left on device")

    def test_closed_output_is_an_error_and_writes_into_no_other_file(self):
        for args in self.commands():
            with self.subTest(args):
                closed = start_with_closed(1, *args)
                self.assertEqual(closed.returncode, 1)
                self.assertIn(b"witan: standard output: Bad file descriptor", closed.stderr)

    def test_errors_that_cannot_be_written_still_set_the_exit_code(self):
        cases = [(["run", "-m", "missing", "-p", "a"], 1), (["run", "--frobnicate"], 2)]
        cases.append((["run", "-m", golden(BYTES_MODEL), "-p", "a", "-n", "3"], 0))
        for args, code in cases:
            with self.subTest(args), open("/dev/full", "wb") as full:
                self.assertEqual(program.start(*args, stdout=subprocess.DEVNULL, stderr=full).wait(), code)
                self.assertEqual(start_with_closed(2, *args).returncode, code)

    def test_a_reader_that_leaves_ends_the_program_quietly(self):
        args = ["run", "-m", made_model("qwen3moe"), "-p", "a", "-n", "100000", "--ignore-eos"]
        with program.start(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.read(1)
            process.stdout.close()
            self.assertEqual(process.stderr.read(), b"")
            self.assertEqual(process.wait(), -signal.SIGPIPE)


def start_with_closed(descriptor, *args):
    """The finished run of `witan args` with a standard stream closed."""
    shell = f'exec "$0" "$@" {descriptor}>&-'
    with program.start(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, through=["sh", "-c", shell]) as process:
        out, err = process.communicate()
        return subprocess.CompletedProcess(args, process.returncode, out, err)


class KernelVariantTest(program.WitanTestCase):
    def test_each_that_the_cpu_has_gives_the_golden_text(self):
        case = program.golden_json("e2e-bytes/golden.json")["cases"][0]
        variants = re.findall(r"^  (\w+) +this CPU has it", witan("--list").out, re.MULTILINE)
        self.assertIn("reference", variants)
        for variant in variants:
            with self.subTest(variant):
                args = ["run", "-m", golden(BYTES_MODEL), "-p", case["prompt"], "-n", len(case["greedy_tokens"])]
                result = self.succeeds(*args, "--exact", "--kv-type", "f32", env={"WITAN_ISA": variant})
                self.assertEqual(result.out, case["greedy_text"] + "\n")
                listing = self.succeeds("--list", env={"WITAN_ISA": variant}).out
                self.assertRegex(listing, rf"(?m)^  {variant} .*selected$")

    def test_an_unknown_one_is_an_error_that_names_the_known(self):
        for args in (["--list"], ["run", "-m", golden(BYTES_MODEL), "-p", "a"]):
            self.fails(*args, env={"WITAN_ISA": "sse9"}, says=["WITAN_ISA=sse9", "reference", "avx512_bf16"])


if __name__ == "__main__":
    program.main()
