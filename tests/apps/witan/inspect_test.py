"""witan inspect: what it tells of models, as text and as JSON."""

import json
import re
import shutil

import program
from program import golden, made_model


class InspectTest(program.WitanTestCase):
    def inspect_json(self, model, *args):
        return json.loads(self.succeeds("inspect", "-m", model, "--json", *args).out)

    def test_knows_the_golden_models(self):
        mixtral = {
            "architecture": "mixtral",
            "format": "gguf",
            "layers": 3,
            "layers_without_window": 3,
            "moe_layers": [0, 1, 2],
            "experts": 8,
            "experts_per_token": 2,
            "model_dim": 64,
            "heads": 4,
            "kv_heads": 2,
            "key_dim": 16,
            "value_dim": 16,
            "vocab_size": 320,
            "context_length": 32768,
            "kv_bytes_per_token": 3 * 2 * (16 + 16) * 2,
            "parameters": 208832,
            "file_bytes": 4 * 208832,
            "expert_bytes": 3 * 64 * 28 * 4,
            "tokenizer": None,
        }
        qwen3moe = {
            "architecture": "qwen3_moe",
            "format": "huggingface",
            "experts": 16,
            "experts_per_token": 4,
            "key_dim": 24,
            "context_length": 40960,
            "kv_bytes_per_token": 3 * 2 * (24 + 24) * 2,
            "expert_bytes": 3 * 64 * 12 * 4,
        }
        deepseek2 = {
            "architecture": "deepseek2",
            "moe_layers": [1, 2],
            "kv_heads": 1,
            "key_dim": 48,
            "value_dim": 32,
            "kv_bytes_per_token": 3 * 48 * 2,  # the values are a part of the keys
        }
        models = {"mixtral/model.gguf": mixtral, "qwen3moe/hf": qwen3moe, "deepseek2-v2lite/model.gguf": deepseek2}
        for path, expected in models.items():
            with self.subTest(path):
                found = self.inspect_json(golden(path), "--kv-type", "f16")
                self.assertEqual({key: found[key] for key in expected}, expected)
                self.assertEqual(found["path"], str(golden(path)))
                self.assertEqual(found["parameters"], sum(product(tensor["shape"]) for tensor in found["tensors"]))
                self.assertEqual(found["file_bytes"], sum(tensor["bytes"] for tensor in found["tensors"]))
                self.assertEqual(sum(kind["tensors"] for kind in found["types"].values()), len(found["tensors"]))

    def test_layers_with_a_window_are_told_from_the_others(self):
        found = self.inspect_json(made_model("gpt-oss"))
        self.assertEqual((found["layers"], found["layers_without_window"]), (3, 1))

    def test_the_plan_of_memory_adds_up(self):
        model = golden("mixtral/model.gguf")
        plan = self.inspect_json(model, "--memory", "1GB", "--context", 1000, "--kv-type", "f32")["memory"]
        self.assertEqual(plan["budget_bytes"], 1 << 30)
        self.assertEqual(plan["context_tokens"], 1000)
        self.assertEqual(plan["kv_context_bytes"], 1024 * 768)  # whole blocks of 32
        parts = ("weight_bytes", "expert_bytes", "activation_bytes", "kv_available_bytes")
        self.assertEqual(sum(plan[part] for part in parts), plan["budget_bytes"])
        self.assertTrue(plan["fits"])
        self.assertFalse(self.inspect_json(model, "--memory", "20MB")["memory"]["fits"])
        self.assertIn("does not fit", self.succeeds("inspect", "-m", model, "--memory", "20MB").out)

    def test_tells_people_the_same(self):
        text = self.succeeds("inspect", "-m", golden("mixtral/model.gguf"), "-c", 64).out
        for pattern in [
            r"architecture +mixtral \(GGUF\)",
            r"parameters +0\.209 million, 0\.8 MiB",
            r"attention +4 heads, 2 kv heads, keys 16, values 16",
            r"experts +8 per layer in 3 layers, 2 per token, 0\.02 MiB each",
            r"tokenizer +none",
            r"context +32768 tokens",
            r"KV cache +384 bytes per token",
            r"F32 +\d+ tensors +0\.8 MiB",
            r"64 tokens need 0\.0 MiB",
        ]:
            self.assertRegex(text, pattern)
        self.assertRegex(self.succeeds("inspect", "-m", made_model("llama")).out, r"experts +none \(dense\)")

    def test_lists_tensors_when_asked_to(self):
        model = made_model("qwen3moe", dtype="Q4_K")
        self.assertNotIn("blk.0", self.succeeds("inspect", "-m", model).out)
        text = self.succeeds("inspect", "-m", model, "--tensors").out
        listed = re.findall(r"(?m)^(\w+) +\[([\d, ]+)\] +(\S+)$", text)
        self.assertEqual(len(listed), len(self.inspect_json(model)["tensors"]))
        self.assertIn(("Q4_K", "8, 256, 256", "blk.1.ffn_gate_exps.weight"), listed)
        self.assertIn(("F32", "256", "blk.1.attn_norm.weight"), listed)

    def test_loads_no_weights(self):
        model = made_model("llama", layers=20)
        result = self.succeeds("inspect", "-m", model, "--tensors")
        self.check_peak_memory(result, model.stat().st_size)

    def test_an_unknown_architecture_is_named_with_the_known(self):
        content = golden("mixtral/model.gguf").read_bytes()
        model = self.file("alien.gguf", content.replace(b"llama", b"alien", 1).replace(b"llama.", b"alien."))
        self.fails("inspect", "-m", model, says=["alien.gguf", "alien\"", "qwen3moe", "deepseek2"])

        folder = self.folder / "hf"
        shutil.copytree(golden("qwen3moe/hf"), folder, copy_function=shutil.copyfile)
        config = folder / "config.json"
        config.write_text(config.read_text().replace("qwen3_moe", "alien").replace("Qwen3Moe", "Alien"))
        self.fails("inspect", "-m", folder, says=[folder, "alien", "qwen3_moe", "deepseek_v2"])


def product(values):
    result = 1
    for value in values:
        result *= value
    return result


if __name__ == "__main__":
    program.main()
