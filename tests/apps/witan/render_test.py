"""witan render: prompts byte for byte, where templates and special tokens come from, and what is wrong with the input."""

import json

import program
from program import golden, golden_json, made_model

HELLO = [{"role": "user", "content": "Hello"}]


class RenderTest(program.WitanTestCase):
    def render(self, template, conversation, *flags):
        path = self.file("c.json", json.dumps(conversation))
        source = ["--template", template] if template else []
        return self.succeeds("render", *source, "--messages", path, *flags).out_bytes.decode()

    def test_goldens_byte_for_byte(self):
        names = ["Qwen-Qwen3-0.6B", "deepseek-ai-DeepSeek-V3.1", "mistralai-Mistral-7B-Instruct-v0.2", "openai-gpt-oss-120b"]
        if not golden("chat-templates").is_dir():
            self.skipTest("golden data not present: chat-templates")
        for name in names:
            data = golden_json(f"chat-templates/{name}.json")
            template = golden(f"chat-templates/{name}.jinja")
            for case in data["cases"]:
                conversation = {key: case[key] for key in ["messages", "tools", "add_generation_prompt", "extra"]}
                conversation |= {"bos_token": data["bos_token"], "eos_token": data["eos_token"], "now": "2025-01-15 12:34:56"}
                if "error" in case:
                    path = self.file("c.json", json.dumps(conversation))
                    cause = case["error"].split(": ", 1)[1]
                    self.fails("render", "--template", template, "--messages", path, says=[cause, f"{name}.jinja: line"])
                else:
                    self.assertEqual(self.render(template, conversation), case["expected"], case["name"])

    def test_a_gguf_file_has_its_template_and_tokens(self):
        self.assertEqual(self.render(None, {"messages": HELLO}, "-m", made_model("qwen3moe")), "[user] Hello\n[assistant] ")
        template = self.file("t.jinja", "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token is defined }}")
        self.assertEqual(self.render(template, {"messages": HELLO}, "-m", made_model("qwen3moe")), "<s></s><unk>False")

    def test_reads_standard_input(self):
        template = self.file("t.jinja", "{{ messages[0].content }}")
        result = self.succeeds("render", "--template", template, "--messages", "-", stdin=json.dumps({"messages": HELLO}))
        self.assertEqual(result.out, "Hello")

    def test_now_is_the_current_time_by_default(self):
        template = self.file("t.jinja", "{{ strftime_now('%Y') }}")
        self.assertGreaterEqual(int(self.render(template, {"messages": []})), 2025)
        self.assertEqual(self.render(template, {"messages": [], "now": "1999-12-31 00:00:00"}), "1999")

    def test_names_what_is_wrong(self):
        template = self.file("t.jinja", "{{ messages }}")
        cases = [
            ("", "not valid JSON"),
            ("{", "not valid JSON"),
            ("[]", "expected an object with \"messages\""),
            ("{}", '"messages" is missing'),
            ('{"messages": "x"}', '"messages" is of type str, expected an array of objects'),
            ('{"messages": ["x"]}', '"messages[0]" is of type str, expected an object'),
            ('{"messages": [], "tools": {}}', '"tools" is of type dict'),
            ('{"messages": [], "add_generation_prompt": 1}', "expected true or false"),
            ('{"messages": [], "extra": []}', '"extra" is of type list, expected an object'),
            ('{"messages": [], "bos_token": 1}', '"bos_token" is of type int, expected a string'),
            ('{"messages": [], "now": "noon"}', "expected a time such as"),
            ('{"messages": [], "thinking": true}', 'unknown key "thinking"'),
        ]
        for text, message in cases:
            path = self.file("c.json", text)
            self.fails("render", "--template", template, "--messages", path, says=["c.json", message])
        ok = self.file("ok.json", '{"messages": []}')
        self.fails("render", "--messages", ok, code=2, says="One of --model and --template")
        self.fails("render", "--template", self.folder / "none", "--messages", ok, says="No such file")
        self.fails("render", "--template", template, "--template-name", "x", "--messages", ok, says="--template-name")
        for source, message in [("{{ x | frob }}", "line 1: no filter named 'frob'"),
                                ("\n{% include 'x' %}", "line 2: the statement 'include' is something that Witan"),
                                ("{{ x.y }}", "'x' is undefined"),
                                ("{{ 'a' * 10**10 }}", "take too much memory")]:
            template = self.file("t.jinja", source)
            self.fails("render", "--template", template, "--messages", ok, says=["t.jinja: line", message])


class HuggingFaceTest(program.WitanTestCase):
    """Templates, tokens and defaults of generation from the files of a directory."""

    def model(self, **files):
        """A copy of a small directory with further files, given as JSON values or texts."""
        source = golden("qwen3moe/hf")
        for path in source.iterdir():
            (self.folder / path.name).symlink_to(path.resolve())
        for name, content in files.items():
            name = name.replace("__", ".")
            self.file(name, content if isinstance(content, str) else json.dumps(content))
        return self.folder

    def render(self, model, *flags, **conversation):
        path = self.file("c.json", json.dumps({"messages": HELLO, **conversation}))
        return self.succeeds("render", "-m", model, "--messages", path, *flags).out

    def test_tokenizer_config_has_a_template(self):
        config = {"chat_template": "{{ bos_token }}|{{ eos_token }}", "bos_token": {"content": "<B>"}, "eos_token": "<E>"}
        self.assertEqual(self.render(self.model(tokenizer_config__json=config)), "<B>|<E>")

    def test_the_file_comes_before_the_key(self):
        config = {"chat_template": "key"}
        model = self.model(tokenizer_config__json=config, chat_template__jinja="file {{ pad_token }}",
                           special_tokens_map__json={"pad_token": "<P>"})
        self.assertEqual(self.render(model), "file <P>")

    def test_named_templates(self):
        templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"},
                     {"name": "rag", "template": "rag"}]
        model = self.model(tokenizer_config__json={"chat_template": templates})
        self.assertEqual(self.render(model), "plain")
        self.assertEqual(self.render(model, tools=[{"name": "f"}]), "tools")
        self.assertEqual(self.render(model, "--template-name", "rag"), "rag")

    def test_wrong_files_are_named(self):
        cases = [
            ({"chat_template": 5}, ["tokenizer_config.json", "chat_template is the number 5"]),
            ({"chat_template": [{"name": "x"}]}, ["chat_template[0]", '"template"']),
            ({"chat_template": "x", "bos_token": 5}, ["bos_token is the number 5"]),
            ({"chat_template": "{% if %}"}, ["tokenizer_config.json: chat_template: line 1"]),
            ("{", ["tokenizer_config.json", "not valid JSON"]),
        ]
        path = None
        for config, says in cases:
            if path is None:
                model = self.model(tokenizer_config__json=config)
            path = self.file("c.json", json.dumps({"messages": HELLO}))
            self.file("tokenizer_config.json", config if isinstance(config, str) else json.dumps(config))
            self.fails("render", "-m", model, "--messages", path, says=says)

    def test_generation_config_gives_defaults_and_flags_win(self):
        prompt = self.file("ids.txt", list(range(10, 20)))
        defaults = {"do_sample": True, "temperature": 1.5, "top_k": 40, "max_new_tokens": 5}
        model = self.model(generation_config__json=defaults)

        def tokens(*flags):
            return self.succeeds("run", "-m", model, "--tokens", prompt, "-q", "--seed", "3", *flags).out.split()

        sampled = tokens()
        self.assertEqual(len(sampled), 5)
        self.assertEqual(sampled, tokens("--temperature", "1.5", "--top-k", "40", "-n", "5"))
        self.assertEqual(len(tokens("-n", "7")), 7)
        greedy = tokens("--temperature", "0")
        self.assertNotEqual(sampled, greedy)
        self.file("generation_config.json", json.dumps({**defaults, "do_sample": False}))
        self.assertEqual(tokens(), greedy)
        self.file("generation_config.json", json.dumps({"temperature": 1.5}))
        self.assertEqual(tokens("-n", "5"), greedy)

    def test_a_wrong_generation_config_is_named(self):
        prompt = self.file("ids.txt", [1])
        model = self.model()
        for key, value in [("temperature", -1), ("temperature", "hot"), ("top_p", 0), ("top_k", 1.5), ("top_k", -2),
                           ("repetition_penalty", 0), ("max_new_tokens", 0), ("do_sample", "yes"), ("min_p", 2)]:
            self.file("generation_config.json", json.dumps({key: value}))
            self.fails("run", "-m", model, "--tokens", prompt, says=["generation_config.json", key])


if __name__ == "__main__":
    program.main()
