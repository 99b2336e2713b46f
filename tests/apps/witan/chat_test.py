"""witan chat: turns, commands, what stays of the conversation, reasoning, and what is wrong with templates."""

import json
import os
import pty
import re
import select
import signal
import termios
import time

import program
from program import golden, made_model, start

REASONING_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' and false %}</think>{% endif %}[{{ m.role }}] {{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] <think>\n{% endif %}"
)


class ChatTestCase(program.WitanTestCase):
    def setUp(self):
        super().setUp()
        self.model = made_model("qwen3moe")

    def chat(self, text, *flags, limit=6):
        return self.succeeds("chat", "-m", self.model, "-n", limit, "-c", "600", *flags, stdin=text)

    def saved(self, path):
        return json.loads(path.read_text(encoding="utf-8"))["messages"]


class TurnTest(ChatTestCase):
    def test_answers_every_line(self):
        result = self.chat("Hello\n\n  \nAnd again\n")
        self.assertEqual(len(result.out.splitlines()), 2)
        self.assertEqual(result.err.count("6 tokens are the limit (-n)"), 2)

    def test_an_answer_is_that_of_the_rendered_conversation(self):
        path = self.folder / "c.json"
        out = self.chat(f"Hello\nAnd again\n/save {path}\n").out.splitlines()
        messages = self.saved(path)
        self.assertEqual([m["role"] for m in messages], ["user", "assistant"] * 2)
        self.assertEqual([m["content"] for m in messages[1::2]], out)
        first = self.file("first.json", json.dumps({"messages": messages[:1]}))
        prompt = self.succeeds("render", "-m", self.model, "--messages", first).out
        run = self.succeeds("run", "-m", self.model, "-p", prompt, "-n", "6", "-c", "600", "-q")
        self.assertEqual(run.out, out[0] + "\n")

    def test_lines_can_be_joined(self):
        path = self.folder / "c.json"
        self.chat(f'one\\\ntwo\n"""\nthree\n\nfour\n"""\n//slash\n/save {path}\n')
        self.assertEqual([m["content"] for m in self.saved(path)[::2]], ["one\ntwo", "three\n\nfour", "/slash"])

    def test_the_system_message_can_be_pinned(self):
        system = "Answer in one word. "
        flags = ["--kv", "streamingllm,tokens=90", "--system", system]
        question = "a long question " * 8 + "\nmore\n"
        self.assertNotEqual(self.chat(question, *flags).out, self.chat(question, *flags, "--kv-pin-system").out)
        result = self.chat("Hello\n", *flags[:2], "--system", system * 8, "--kv-pin-system")
        self.assertIn("pinned tokens need the room of", result.err)
        template = self.file("t.jinja", "{% for m in messages %}{{ m.content | upper }}{% endfor %}<s>")
        result = self.chat("Hello\n/system\nHello\n", *flags, "--kv-pin-system", "--template", template)
        self.assertEqual(result.err.count("--kv-pin-system: the system message is not in the prompt"), 1)
        self.assertEqual(len(result.out.splitlines()), 1)
        self.fails("chat", "-m", "nowhere", "--kv-pin-system", says="--kv-pin-system needs --kv")

    def test_the_same_seed_gives_the_same_conversation(self):
        flags = ["--temperature", "1", "--seed", "5"]
        first = self.chat("Hello\nMore\n", *flags).out
        self.assertEqual(self.chat("Hello\nMore\n", *flags).out, first)
        self.assertNotEqual(self.chat("Hello\nMore\n", "--temperature", "1", "--seed", "6").out, first)

    def test_a_turn_computes_only_what_is_new(self):
        # A control token ends every answer, so that history keeps its tokens; the second prompt adds a line to them.
        template = self.file("t.jinja", "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}<s>")
        long = "a long question " * 10
        result = self.chat(f"{long}\nshort\n/stats\n", "--template", template)
        prompt = int(program.STATISTICS.search(result.err).group("prompt"))
        cached = int(re.search(r"(\d+) prompt tokens from the prefix cache", result.err).group(1))
        self.assertGreaterEqual(cached, len(long) // 32 * 32)
        self.assertLess(prompt, len(long) + 120)


class CommandTest(ChatTestCase):
    def test_commands_change_the_conversation(self):
        path = self.folder / "c.json"
        self.chat(f"/system Be brief.\nHello\n/clear\n/save {path}\n")
        self.assertEqual(self.saved(path), [{"role": "system", "content": "Be brief."}])
        self.chat(f"/system\nHi\n/save {path}\n", "--system", "Be long.")
        self.assertEqual([m["role"] for m in self.saved(path)], ["user", "assistant"])

    def test_a_saved_conversation_goes_on(self):
        path = self.folder / "c.json"
        whole = self.chat(f"Hello\n/save {path}\nAnd again\n").out.splitlines()
        self.assertEqual(self.chat(f"/load {path}\nAnd again\n").out.splitlines(), whole[1:])
        self.assertEqual(self.chat("And again\n", "--load", path).out.splitlines(), whole[1:])

    def test_help_stats_and_exit(self):
        result = self.chat("/help\nHello\n/stats\n/exit\nnever asked\n")
        self.assertIn("/save FILE", result.err)
        self.assertRegex(result.err, program.STATISTICS)
        self.assertEqual(len(result.out.splitlines()), 1)

    def test_stats_say_what_kv_auto_chose(self):
        self.assertNotIn("--kv auto", self.chat("/stats\nHello\n", "--kv", "auto").err, "before there is an answer")
        self.assertIn("--kv auto: every entry stays: ", self.chat("Hello\n/stats\n", "--kv", "auto").err)
        self.assertNotIn("--kv auto", self.chat("Hello\n/stats\n").err)

    def test_mistakes_are_told_and_change_nothing(self):
        path = self.folder / "c.json"
        bad = self.file("bad.json", '{"messages": [{"role": "user"}]}')
        lines = ["Hello", "/nonsense", "/save", "/load", f"/load {self.folder}/none", f"/load {bad}", f"/load {self.model}",
                 f"/save {self.folder}/no/such/folder", f"/save {path}"]
        result = self.chat("\n".join(lines) + "\n")
        for part in ["unknown command '/nonsense'", "/save needs the name of a file", "/load needs", "none: No such file",
                     'bad.json: messages[0]: expected a string "content"', "not valid JSON", "No such file"]:
            self.assertIn(part, result.err)
        self.assertEqual(len(self.saved(path)), 2)

    def test_a_full_context_loses_nothing(self):
        path = self.folder / "c.json"
        result = self.chat(f"Hello\n{'long ' * 200}\nshort\n/save {path}\n")
        self.assertIn("the message is not sent, and nothing is lost", result.err)
        self.assertEqual([m["content"] for m in self.saved(path)[::2]], ["Hello", "short"])
        self.assertIn("the context of 600 tokens is full", self.chat(f"{'long ' * 110}\n", limit=400).err)


class ReasoningTest(ChatTestCase):
    def test_reasoning_is_marked_and_kept_apart(self):
        template = self.file("t.jinja", REASONING_TEMPLATE)
        path = self.folder / "c.json"
        result = self.chat(f"Hello\n/save {path}\n", "--template", template)
        self.assertRegex(result.out, r"^\[reasoning\]\n.+\n\[/reasoning\]\n\n$")
        self.assertEqual(self.saved(path)[1]["content"], "")
        self.assertIn(self.saved(path)[1]["reasoning_content"], result.out)


class TemplateErrorTest(ChatTestCase):
    def test_a_template_that_refuses_leaves_the_conversation_as_it_was(self):
        template = self.file("t.jinja", "{% if messages | length > 1 %}\n{{ raise_exception('one only') }}{% endif %}x")
        path = self.folder / "c.json"
        result = self.chat(f"Hello\nmore\n/save {path}\n", "--template", template)
        self.assertIn("t.jinja: line 2: one only", result.err)
        self.assertEqual(len(self.saved(path)), 2)

    def test_what_is_wrong_ends_before_the_first_turn(self):
        bad = self.file("t.jinja", "a\n{% for %}")
        self.fails("chat", "-m", self.model, "--template", bad, says=["t.jinja: line 2", "expected a name"])
        self.fails("chat", "-m", self.model, "--template-name", "rag", says=["no chat template named 'rag'", "default"])
        self.fails("chat", "-m", self.model, "--extra", "[1]", says="--extra: expected a JSON object")
        self.fails("chat", "-m", self.model, "--extra", "{", says="--extra: not valid JSON")
        self.fails("chat", "-m", self.model, "--load", self.folder / "none", says="No such file")
        self.fails("chat", "-m", golden("mixtral/model.gguf"), says="no chat template; --template FILE")
        template = self.file("ok.jinja", "x")
        self.fails("chat", "-m", golden("mixtral/model.gguf"), "--template", template, says="no tokenizer")


class TerminalTest(ChatTestCase):
    """On a pseudo-terminal: the prompt, editing, history, Ctrl-C."""

    def setUp(self):
        super().setUp()
        self.master, slave = pty.openpty()
        self.process = start("chat", "-m", self.model, "-c", "4000", "-n", "3000", "-t", "1", stdin=slave, stdout=slave,
                             stderr=slave, env={"TERM": "vt100"}, start_new_session=True)
        os.close(slave)
        self.seen = ""

    def tearDown(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def wait_for(self, pattern, seconds=60):
        """Reads until `pattern` matches what came since the last match; returns that."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen, re.DOTALL)):
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                self.fail(f"no {pattern!r} in {self.seen!r}")
            try:
                self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
            except OSError:
                self.fail(f"ended without {pattern!r}: {self.seen!r}")
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def type(self, text):
        os.write(self.master, text.encode())

    def test_ctrl_c_ends_an_answer_and_keeps_it(self):
        path = self.folder / "c.json"
        self.wait_for("> ")
        self.type("Hello\n")
        self.wait_for("[a-z]{6} [a-z]{6} ")  # words of the answer, not the echo
        os.kill(self.process.pid, signal.SIGINT)
        self.wait_for("> ")
        self.type(f"/save {path}\n")
        self.wait_for("2 messages in")
        messages = self.saved(path)
        self.assertEqual(len(messages), 2)
        self.assertGreater(len(messages[1]["content"]), 3)
        self.type("/exit\n")
        self.assertEqual(self.process.wait(60), 0)

    def test_keys_count_as_soon_as_the_prompt_shows(self):
        for _ in range(20):
            self.wait_for("> ")
            self.assertFalse(termios.tcgetattr(self.master)[3] & termios.ICANON)  # else a Ctrl-D now would be lost
            self.type("/system\n")
        self.wait_for("> ")
        self.type("\x04")
        self.assertEqual(self.process.wait(60), 0)

    def test_lines_are_edited_and_remembered(self):
        path = self.folder / "c.json"
        self.wait_for("> ")
        self.type("/systen\x7fm Be briefX\x7f.\n")  # backspace
        self.wait_for("> ")
        self.type(f"/save {path}\n")
        self.wait_for("1 messages in")
        self.assertEqual(self.saved(path)[0]["content"], "Be brief.")
        self.wait_for("> ")
        self.type("dropped")
        self.wait_for("dropped")
        os.kill(self.process.pid, signal.SIGINT)  # drops the line
        self.wait_for("> ")
        self.type("/system\n")
        self.wait_for("> ")
        self.type("\x1b[A\x1b[A\n")  # up twice: the save
        self.wait_for("0 messages in")
        self.wait_for("> ")
        self.type("\x04")  # Ctrl-D
        self.assertEqual(self.process.wait(60), 0)


if __name__ == "__main__":
    program.main()
