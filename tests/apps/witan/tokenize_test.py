"""witan tokenize: ids and pieces of texts, and back."""

import json

import program
from program import golden, golden_json, made_model

MODEL = "e2e-bytes/model.gguf"


def cases():
    return golden_json("e2e-bytes/golden.json")["cases"]


class TokenizeTest(program.WitanTestCase):
    def tokenize(self, *args, **options):
        return self.succeeds("tokenize", "-m", golden(MODEL), *args, **options).out

    def tokenize_fails(self, *args, **options):
        return self.fails("tokenize", "-m", golden(MODEL), *args, **options)

    def test_gives_the_golden_ids(self):
        for case in cases():
            with self.subTest(case["prompt"]):
                self.assertEqual(self.tokenize("-p", case["prompt"], "--ids-only").split(), texts(case["prompt_ids"]))
                bare = self.tokenize("-f", "-", "--ids-only", "--no-special", stdin=case["prompt"])
                self.assertEqual(bare.split(), texts(case["prompt_ids"][1:]))

    def test_lists_an_id_and_its_piece_per_line(self):
        lines = ['       1  "<s>"', '     297  "▁a"', '     279  "b"', '      13  "<0x0A>"']
        self.assertEqual(self.tokenize("-p", "ab\n").splitlines(), lines)

    def test_turns_ids_back_into_text(self):
        for case in cases():
            with self.subTest(case["prompt"]):
                path = self.file("ids", case["prompt_ids"])
                self.assertEqual(self.tokenize("--ids", path), "<s> " + case["prompt"] + "\n")
                self.assertEqual(self.tokenize("--ids", path, "--no-special"), case["prompt"] + "\n")
                greedy = self.tokenize("--ids", self.file("greedy", case["greedy_tokens"]))
                self.assertEqual(greedy.strip("\n"), case["greedy_text"].strip())

    def test_control_tokens_in_text_are_text_unless_asked_for(self):
        self.assertGreater(len(self.tokenize("-p", "</s>", "--ids-only").split()), 2)
        self.assertEqual(self.tokenize("-p", "</s>", "--ids-only", "--parse-special").split(), ["1", "2"])

    def test_takes_bytes_that_are_no_utf8_one_by_one(self):
        for content, pieces in {
            b"\xff\xfe": ["<0xFF>", "<0xFE>"],
            b"a\x80b": ["▁a", "<0x80>", "b"],
            b"\xe4\xbd": ["<0xE4>", "<0xBD>"],
            b"\xed\xa0\x80": ["<0xED>", "<0xA0>", "<0x80>"],
            b"\x00": ["▁", "<0x00>"],
        }.items():
            with self.subTest(content):
                lines = self.tokenize("-f", self.file("bytes", content), "--no-special").splitlines()
                self.assertEqual([json.loads(line.split(maxsplit=1)[1]) for line in lines], pieces)

    def test_prints_what_is_no_utf8_as_replacement_characters(self):
        ids = self.tokenize("-f", self.file("bytes", b"a\x80b"), "--ids-only", "--no-special")
        self.assertEqual(self.tokenize("--ids", self.file("ids", ids)), "a\ufffdb\n")

    def test_an_empty_text_is_just_its_special_tokens(self):
        for args in (["-p", ""], ["-f", "/dev/null"]):
            self.assertEqual(self.tokenize(*args, "--ids-only"), "1\n")
            self.assertEqual(self.tokenize(*args, "--ids-only", "--no-special"), "\n")

    def test_reads_and_writes_lines_of_json(self):
        lines = []
        expected = []
        for case in cases():
            lines.append({"text": case["prompt"], "add_special": True})
            expected.append(case["prompt_ids"])
            lines.append({"text": case["prompt"]})
            expected.append(case["prompt_ids"][1:])
        lines.append({"text": "</s>", "add_special": False, "parse_special": True, "other": [1]})
        expected.append([2])
        path = self.file("in.jsonl", "\n\n".join(map(json.dumps, lines)))
        answers = [json.loads(line) for line in self.tokenize("--jsonl", path).splitlines()]
        self.assertEqual([answer["ids"] for answer in answers], expected)
        self.assertEqual([answer["text"] for answer in answers[:-1:2]], [case["prompt"] for case in cases()])
        self.assertEqual(answers[-1]["text"], "</s>")

    def test_names_the_broken_line(self):
        broken = {
            '{"text": "a"': "expected a JSON object",
            "[1]": "expected a JSON object",
            '{"prompt": "a"}': '"text"',
            '{"text": 1}': '"text"',
            '{"text": "a", "add_special": 1}': '"add_special" is not true or false',
            '{"text": "a", "parse_special": "no"}': '"parse_special" is not true or false',
            '{"text": "\ud800"}'.encode("utf-8", "surrogatepass"): "expected a JSON object",
        }
        for line, says in broken.items():
            with self.subTest(line):
                content = b'{"text": ""}\n\n' + (line if isinstance(line, bytes) else line.encode())
                result = program.witan("tokenize", "-m", golden(MODEL), "--jsonl", self.file("in.jsonl", content))
                self.assertEqual(result.code, 1)
                self.assertIn("in.jsonl: line 3", result.err)
                self.assertIn(says, result.err)

    def test_refuses_ids_that_are_none(self):
        refusals = {"1 x": '"x"', "": "no token ids", "320": ["320", "0 to 319"], "-1": "-1", "9" * 11: "9" * 11}
        for content, says in refusals.items():
            with self.subTest(content):
                self.tokenize_fails("--ids", self.file("bad.ids", content), says=says)

    def test_refuses_files_that_are_none(self):
        for flag in ("-f", "--ids", "--jsonl"):
            for path in (self.folder / "missing", self.folder, ""):
                with self.subTest(flag=flag, path=path):
                    self.tokenize_fails(flag, path, says=path)

    def test_a_model_without_a_tokenizer_is_named(self):
        model = golden("mixtral/model.gguf")
        self.fails("tokenize", "-m", model, "-p", "a", says=[model, "no tokenizer"])

    def test_made_models_have_a_byte_tokenizer(self):
        args = ["-m", made_model("llama"), "-p", "abc", "--no-special"]
        pieces = [json.loads(line.split(maxsplit=1)[1]) for line in self.succeeds("tokenize", *args).out.splitlines()]
        self.assertEqual(pieces[-3:], ["<0x61>", "<0x62>", "<0x63>"])


def texts(ids):
    return [str(token) for token in ids]


if __name__ == "__main__":
    program.main()
