"""Model files that are broken: an error that names the file, soon and in little memory, whatever the command."""

import json
import os
import shutil
import struct

import program
from program import golden

COMMANDS = [["run", "-p", "a"], ["inspect"], ["tokenize", "-p", "a"]]
MEMORY_LIMIT = 200 << 20
GGUF_VERSION = 3


def gguf_header(num_tensors, num_entries, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", GGUF_VERSION, num_tensors, num_entries) + rest


def text(content):
    return struct.pack("<Q", len(content)) + content


class BadFilesTest(program.WitanTestCase):
    def check(self, path, commands=COMMANDS, says=()):
        for command, *args in commands:
            with self.subTest(path=path, command=command):
                result = self.fails(command, "-m", path, *args, says=[path, *says])
                self.assertLess(result.cpu_seconds, 1)
                self.check_peak_memory(result, MEMORY_LIMIT)

    def test_what_is_no_model(self):
        self.check(self.folder / "missing.gguf", says=["No such file"])
        self.check(self.folder, says=["config.json"])
        self.check("/dev/null", says=["regular file"])
        self.check(self.file("empty.gguf", ""), says=["empty"])
        self.check(self.file("text.gguf", "Once upon a time\n" * 100), says=["GGUF", '"Once"'])
        self.check(self.file("zeros.gguf", bytes(4096)), says=["GGUF"])
        self.check(self.file("magic.gguf", "GGUF"), says=["magic.gguf"])

    def test_headers_that_promise_more_than_the_file_has(self):
        huge = 1 << 60
        array_type, uint8, string = 9, 0, 8
        headers = {
            "tensors": gguf_header(huge, 0, bytes(64)),
            "entries": gguf_header(0, huge, bytes(64)),
            "all-ones": gguf_header(2**64 - 1, 2**64 - 1, bytes(64)),
            "key": gguf_header(1, 1, struct.pack("<Q", huge) + bytes(64)),
            "string": gguf_header(1, 1, text(b"general.name") + struct.pack("<IQ", string, huge) + bytes(64)),
            "array": gguf_header(1, 1, text(b"a") + struct.pack("<IIQ", array_type, uint8, huge) + bytes(64)),
            "strings": gguf_header(1, 1, text(b"a") + struct.pack("<IIQ", array_type, string, huge) + bytes(64)),
            "shape": gguf_header(1, 0, text(b"t") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0) + bytes(64)),
            "offset": gguf_header(1, 0, text(b"t") + struct.pack("<IQIQ", 1, 32, 0, huge) + bytes(256)),
        }
        for name, content in headers.items():
            self.check(self.file(f"{name}.gguf", content))

    def test_a_broken_tokenizer_is_found_before_the_weights_are_read(self):
        model = self.folder / "hf"
        shutil.copytree(golden("qwen3moe/hf"), model)
        (model / "tokenizer.json").write_text("{}")
        ids = self.file("ids", [1, 2, 3])
        self.succeeds("logits", "-m", model, "--tokens", ids, "--out", self.folder / "out")  # has no use for one
        config = json.loads((model / "config.json").read_text())
        config["num_hidden_layers"] += 1  # whose tensors are missing
        (model / "config.json").write_text(json.dumps(config))
        self.fails("logits", "-m", model, "--tokens", ids, "--out", self.folder / "out", says="is missing")
        self.fails("run", "-m", model, "--tokens", ids, says="tokenizer.json")

    def test_truncated_files(self):
        content = golden("e2e-bytes/model.gguf").read_bytes()
        cuts = [4, 8, 23, 24, 25, 100, 1000, 5000, len(content) // 2, len(content) - 4096, len(content) - 1]
        for cut in cuts:
            self.check(self.file(f"cut-{cut}.gguf", content[:cut]))

    def test_a_name_with_control_characters_does_not_reach_the_terminal(self):
        name = b"bad\x1b[31mname"
        path = self.file("tensor.gguf", gguf_header(1, 0, text(name) + struct.pack("<IQIQ", 1, 32, 0, 1 << 60)))
        self.assertNotIn("\x1b", self.fails("inspect", "-m", path).err)

    def test_hugging_face_folders_with_broken_files(self):
        source = golden("qwen3moe/hf")
        weights = (source / "model.safetensors").read_bytes()
        config = (source / "config.json").read_bytes()
        broken = {
            "no weights": (config, None, "safetensors"),
            "no config": (None, weights, "config.json"),
            "empty config": (b"", weights, "config.json"),
            "config is a list": (b"[]", weights, "config.json"),
            "config cut": (config[: len(config) // 2], weights, "config.json"),
            "config without layers": (config.replace(b"num_hidden_layers", b"layers"), weights, "num_hidden_layers"),
            "config of negative size": (config.replace(b'_size": 64', b'_size": -64'), weights, "hidden_size"),
            "empty weights": (config, b"", "model.safetensors"),
            "weights cut": (config, weights[:-1], "model.safetensors"),
            "header of 2^60 bytes": (config, struct.pack("<Q", 1 << 60) + weights[8:], "model.safetensors"),
            "header no JSON": (config, struct.pack("<Q", 64) + bytes(1000), "model.safetensors"),
        }
        for number, (name, (config_bytes, weight_bytes, says)) in enumerate(broken.items()):
            folder = self.folder / str(number)
            folder.mkdir()
            if config_bytes is not None:
                (folder / "config.json").write_bytes(config_bytes)
            if weight_bytes is not None:
                (folder / "model.safetensors").write_bytes(weight_bytes)
            with self.subTest(name):
                self.check(folder, commands=[["inspect"], ["run", "-p", "a"]], says=[says])

    def test_a_file_without_permission(self):
        if os.geteuid() == 0:
            self.skipTest("root may read everything")
        path = self.folder / "model.gguf"
        shutil.copyfile(golden("e2e-bytes/model.gguf"), path)
        path.chmod(0)
        self.check(path, says=["Permission denied"])


if __name__ == "__main__":
    program.main()
