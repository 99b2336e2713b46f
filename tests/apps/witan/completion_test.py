"""witan completion: the scripts as the shells run them."""

import shutil
import subprocess
import unittest

import program


class BashTest(program.WitanTestCase):
    def setUp(self):
        super().setUp()
        self.script = self.file("witan.bash", self.succeeds("completion", "bash").out)

    def complete(self, *words):
        """What Tab offers behind these words, the last of which is being typed."""
        line = " ".join(["witan", *words])
        code = (
            f"source {self.script}; COMP_WORDS=(witan {' '.join(repr(word) for word in words)}); "
            f"COMP_CWORD={len(words)}; COMP_LINE={line!r}; _witan; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        result = subprocess.run(["bash", "--norc", "-euc", code], capture_output=True, text=True, cwd=self.folder, check=True)
        self.assertEqual(result.stderr, "")
        return set(result.stdout.split("\n")) - {""}

    def test_sourcing_registers_it(self):
        code = f"source {self.script}; complete -p witan"
        out = subprocess.run(["bash", "--norc", "-euc", code], capture_output=True, text=True, check=True).stdout
        self.assertEqual(out, "complete -F _witan witan\n")

    def test_completes_commands_and_flags(self):
        self.assertEqual(self.complete("to"), {"tokenize"})
        self.assertLessEqual({"run", "chat", "render", "inspect", "--help", "--version"}, self.complete(""))
        self.assertEqual(self.complete("run", "--temp"), {"--temperature", "--temp"})
        self.assertEqual(self.complete("run", "-m", "x", "--top-"), {"--top-k", "--top-p"})
        self.assertEqual(self.complete("inspect", "--tens"), {"--tensors"})
        self.assertEqual(self.complete("inspect", "--temp"), set())

    def test_completes_files_behind_flags_that_take_one(self):
        self.file("model.gguf", "")
        self.assertEqual(self.complete("run", "--model", "mod"), {"model.gguf"})
        self.assertEqual(self.complete("run", "-m", "mod"), {"model.gguf"})
        self.assertEqual(self.complete("run", "--seed", "mod"), set())

    def test_knows_every_flag_of_the_help(self):
        for command in ["run", "chat", "render", "inspect", "tokenize", "logits", "make-model", "quantize", "eval", "perplexity", "bench", "completion"]:
            for word in self.complete(command, "--"):
                self.assertIn(word, self.succeeds(command, "--help").out, command)


class ZshTest(program.WitanTestCase):
    def test_is_valid(self):
        script = self.file("_witan", self.succeeds("completion", "zsh").out)
        self.assertTrue(script.read_text().startswith("#compdef witan\n"))
        if shutil.which("zsh") is None:
            raise unittest.SkipTest("no zsh")
        subprocess.run(["zsh", "-fn", script], check=True)
        code = f"autoload -Uz compinit && compinit -D -d {self.folder}/dump && source {script} && print $_comps[witan]"
        out = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, check=True)
        self.assertEqual(out.stdout, "_witan\n", out.stderr)


class ErrorTest(program.WitanTestCase):
    def test_knows_two_shells(self):
        self.fails("completion", "fish", code=2, says="fish")
        self.fails("completion", code=2, says="SHELL")


if __name__ == "__main__":
    program.main()
