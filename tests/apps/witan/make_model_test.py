"""witan make-model: files that every command can use, and errors that leave no file."""

import json
import shutil

import program
from program import golden, made_model

TINY = [("llama", "tiny"), ("llama", "tiny-mixtral"), ("qwen3", "tiny"), ("qwen3moe", "tiny"), ("deepseek2", "tiny")]
TYPES = [
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "MXFP4"),
]


class MakeModelTest(program.WitanTestCase):
    def make(self, *args):
        return self.succeeds("make-model", *args)

    def test_every_tiny_model_of_every_type_runs(self):
        for arch, preset in TINY:
            for dtype in TYPES:
                with self.subTest(arch=arch, preset=preset, dtype=dtype):
                    model = made_model(arch, preset, dtype)
                    types = json.loads(self.succeeds("inspect", "-m", model, "--json").out)["types"]
                    self.assertIn(dtype, types)
                    answer = self.succeeds("run", "-m", model, "-p", "a", "-n", 4, "--json").json_lines()[0]
                    self.assertEqual((len(answer["tokens"]), answer["finish_reason"]), (4, "length"))

    def test_help_lists_the_presets(self):
        text = self.succeeds("make-model", "--help").out
        for arch, preset in [*TINY, ("llama", "mixtral-8x7b"), ("qwen3moe", "qwen3-30b-a3b")]:
            self.assertRegex(text, rf"(?m)^  {arch} +{preset} ")

    def test_tells_what_it_wrote(self):
        path = self.folder / "model.gguf"
        args = ["--arch", "qwen3moe", "--preset", "tiny", "--type", "Q4_K", "--layers", 1]
        out = self.make(*args, path).out
        self.assertRegex(out, rf"(?m)^{path}: \d+\.\d+ million random weights in \d+ tensors, \d+\.\d MiB, \d+\.\d s$")
        self.assertEqual(json.loads(self.succeeds("inspect", "-m", path, "--json").out)["layers"], 1)
        self.assertEqual(list(self.folder.iterdir()), [path])

    def test_the_seed_decides_the_bytes(self):
        paths = [self.folder / name for name in ("a", "b", "c")]
        args = ["--arch", "llama", "--preset", "tiny", "--type", "Q4_K"]
        self.make(*args, paths[0])
        self.make(*args, "--seed", 1, paths[1])
        self.make(*args, "--seed", 2, paths[2])
        contents = [path.read_bytes() for path in paths]
        self.assertEqual(contents[0], contents[1])
        self.assertNotEqual(contents[0], contents[2])

    def test_replaces_a_file(self):
        path = self.file("model.gguf", "earlier")
        self.make("--arch", "llama", "--preset", "tiny", "--type", "Q8_0", path)
        self.assertEqual(path.read_bytes()[:4], b"GGUF")

    def tokens_of(self, model, text):
        return self.succeeds("tokenize", "-m", model, "-p", text, "--parse-special").out

    def test_a_tokenizer_of_another_model_can_be_copied(self):
        source = golden("e2e-bytes/model.gguf")
        path = self.folder / "made.gguf"
        self.make("--arch", "qwen3moe", "--preset", "tiny", "--type", "Q4_K", "--tokenizer", source, path)
        self.assertEqual(self.tokens_of(path, "Hello <s> é"), self.tokens_of(source, "Hello <s> é"))
        self.succeeds("run", "-m", path, "-p", "Hello", "-n", 4)
        again = self.folder / "again.gguf"
        self.make("--arch", "qwen3moe", "--preset", "tiny", "--type", "Q4_K", "--tokenizer", source, again)
        self.assertEqual(path.read_bytes(), again.read_bytes())

    def test_so_can_one_of_a_directory(self):
        source = self.folder / "tokenizer"
        source.mkdir()
        pieces = {piece: i for i, piece in enumerate(["a", "b", "c", "ab", "Ġ", "Ġa"])}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        tokenizer = {
            "added_tokens": [{"id": 6, "content": "<end>", "special": True}],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": pieces, "merges": ["a b", "Ġ a"]},
        }
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
        (source / "chat_template.jinja").write_text("{{ messages[0].content }}!")
        path = self.folder / "made.gguf"
        self.make("--arch", "llama", "--preset", "tiny", "--type", "F16", "--tokenizer", source, path)
        ids = [line.split()[0] for line in self.tokens_of(path, "ab a<end>").splitlines()]
        self.assertEqual(ids, ["3", "5", "6"])
        messages = self.file("messages.json", '{"messages": [{"role": "user", "content": "hi"}]}')
        self.assertEqual(self.succeeds("render", "-m", path, "--messages", messages).out, "hi!")

    def test_what_has_no_tokenizer_is_named(self):
        args = ["--arch", "llama", "--preset", "tiny", "--type", "F16", self.folder / "made.gguf", "--tokenizer"]
        self.fails("make-model", *args, self.folder / "none.gguf", says=["none.gguf", "No such file"])
        self.fails("make-model", *args, self.folder, says=["tokenizer.json", "No such file"])
        self.fails("make-model", *args, golden("mixtral/model.gguf"), says=["mixtral/model.gguf", "no tokenizer in it"])
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_names_what_it_does_not_have_with_what_it_has(self):
        cases = [
            (("alien", "tiny", "F32"), ["'alien'", "llama", "qwen3moe", "deepseek2"]),
            (("llama", "alien", "F32"), ["'alien'", "mixtral-8x7b", "tiny-mixtral"]),
            (("qwen3", "tiny-mixtral", "F32"), ["'tiny-mixtral'", "qwen3"]),
            (("llama", "tiny", "IQ2_XXS"), ["IQ2_XXS", *TYPES]),
        ]
        for (arch, preset, dtype), says in cases:
            with self.subTest(arch=arch, preset=preset, dtype=dtype):
                args = ["--arch", arch, "--preset", preset, "--type", dtype, self.folder / "model.gguf"]
                self.fails("make-model", *args, says=says)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_numbers_of_layers_that_no_model_has(self):
        args = ["make-model", "--arch", "llama", "--preset", "tiny", "--type", "F32", self.folder / "model.gguf"]
        for layers in (1025, -1):
            self.fails(*args, "--layers", layers, says=[f"{layers} layers", "1 to 1024"])
        self.fails(*args, "--layers", "all", code=2, says="--layers")
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_file_larger_than_the_disk_is_refused_at_once(self):
        if shutil.disk_usage(self.folder).free > 5e12:
            self.skipTest("the disk is larger")
        args = ["--arch", "llama", "--preset", "mixtral-8x7b", "--type", "F32", "--layers", 1024]
        result = self.fails("make-model", *args, self.folder / "model.gguf", says=["model.gguf", "bytes", "free"])
        self.assertLess(result.cpu_seconds, 1)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_disk_that_fills_up(self):
        path = self.file("model.gguf", "earlier")
        args = ["--arch", "llama", "--preset", "tiny", "--type", "F32", path]
        self.fails("make-model", *args, through=program.limited_to_files_of(100), says=[path, "File too large"])
        self.assertEqual(path.read_text(), "earlier")
        self.assertEqual(list(self.folder.iterdir()), [path])

    def test_a_place_that_cannot_be_written(self):
        args = ["make-model", "--arch", "llama", "--preset", "tiny", "--type", "F32"]
        for path in (self.folder / "missing" / "model.gguf", self.folder, "/dev/full"):
            with self.subTest(path):
                self.fails(*args, path, says=path)
        self.assertEqual(list(self.folder.iterdir()), [])


if __name__ == "__main__":
    program.main()
