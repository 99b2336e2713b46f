"""The tokenizer of witan-tiny: the builder, its encoder, and witan reading the file. First argument: the witan program."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "training"), str(REPOSITORY / "eval")]

import counting
import tasks
import tokenizer
from tasks import lexicon

WITAN = pathlib.Path(sys.argv[1])


def generated_texts():
    for task, variants in tasks.TASKS.items():
        for variant, generate in variants.items():
            for length in (128, 1000):
                try:
                    made = generate(tasks.rng_of("test", variant), tasks.Room(length, counting.PieceCounter.estimate, 3))
                except tasks.NoRoom:
                    continue
                yield task, "".join(given + reply for given, reply in made.raw_parts())


class TokenizerTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.coder = tokenizer.build()

    def test_every_word_after_a_space_is_one_token(self):
        for text in [f" {word}" for word in lexicon.all_words()] + list(lexicon.OPENING):
            self.assertEqual(self.coder.count(text), 1, repr(text))

    def test_digits_are_one_token_each(self):
        self.assertEqual(self.coder.count("0123456789"), 10)
        self.assertEqual([self.coder.decode([i]) for i in self.coder.encode(" is 472.\n")], [" is", " ", "4", "7", "2", ".\n"])

    def test_generated_texts_are_whole_words_and_come_back(self):
        for task, text in generated_texts():
            ids = self.coder.encode(text)
            self.assertEqual(self.coder.decode(ids), text)
            self.assertEqual(len(ids), counting.PieceCounter.estimate(text), task)

    def test_any_ascii_comes_back(self):
        text = "".join(map(chr, range(1, 128))) + " zyx'll Don't  stop\n\n  x\r\n\tfoo_bar(1.5)"
        self.assertEqual(self.coder.decode(self.coder.encode(text)), text)

    def test_other_text_is_refused_rather_than_cut_wrongly(self):
        with self.assertRaises(ValueError):
            self.coder.encode("caf\N{LATIN SMALL LETTER E WITH ACUTE}")

    def test_the_vocabulary_has_no_gap_and_no_repetition(self):
        self.assertEqual(len(set(self.coder.tokens)), len(self.coder.tokens))
        self.assertEqual(len(self.coder) % tokenizer.MULTIPLE, 0)
        parsed = json.loads(self.coder.to_json())
        ids = sorted([*parsed["model"]["vocab"].values(), *(added["id"] for added in parsed["added_tokens"])])
        self.assertEqual(ids, list(range(len(self.coder))))

    def test_witan_reads_the_file_and_agrees(self):
        with tempfile.TemporaryDirectory() as folder:
            # A model is its configuration and weights; a tokenizer alone goes with those that the exporter would write.
            texts = [text for _, text in generated_texts()]
            texts += ["zyx'll Don't  stop\n\n  x\r\n\tfoo_bar(1.5)", " ", "\n", "Answer_12: 7"]
            model = write_model(folder, self.coder)
            lines = pathlib.Path(folder, "texts.jsonl")
            lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            done = subprocess.run(
                [WITAN, "tokenize", "-m", model, "--jsonl", lines], capture_output=True, text=True, check=False
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            for text, line in zip(texts, done.stdout.splitlines(), strict=True):
                found = json.loads(line)
                self.assertEqual(found["ids"], self.coder.encode(text))
                self.assertEqual(found["text"], text)


def write_model(folder, coder):
    """A directory that has the tokenizer, and as weights a single unused tensor: `witan tokenize` reads no more."""
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    model = pathlib.Path(folder, "model")
    model.mkdir()
    model.joinpath("model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    model.joinpath("config.json").write_text(json.dumps({"model_type": "qwen3_moe", "vocab_size": len(coder)}))
    model.joinpath("tokenizer.json").write_text(coder.to_json())
    return model


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
