"""Reuse of documents' KV entries against plain NumPy versions of the papers: EPIC (arXiv 2410.15332), CacheBlend
(arXiv 2405.16444), and the latter by routes. Arguments: the program kv_reuse_dump, the folder of witan-tiny."""

import copy
import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import unittest

try:
    import numpy as np
except ImportError:
    print(f"SKIPPED: {sys.executable} has no NumPy (Debian: python3-numpy), so that no reuse was compared")
    sys.exit(77)

DUMP, MODEL = sys.argv[1], pathlib.Path(sys.argv[2])

BLOCK = 32  # documents are reused in whole blocks
NUM_TOKENS = 6  # generated
TOLERANCE = 1e-3  # of log probabilities; Witan computes in float32, this in float64
NEAR_TIE = 5e-5  # relative, of two deviations, or of two experts' probabilities: either may come first in float32


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def read_safetensors(path):
    """{name: float64} of a file of BF16 tensors."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, tensor in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        assert tensor["dtype"] == "BF16", name
        begin, end = tensor["data_offsets"]
        bits = np.frombuffer(data[8 + size + begin : 8 + size + end], "<u2").astype(np.uint32) << 16
        tensors[name] = bits.view(np.float32).astype(np.float64).reshape(tensor["shape"])
    return tensors


class Entries:
    """KV entries of a text, by position; NaN where none was computed yet."""

    def __init__(self, model, num_tokens):
        shape = (model.num_layers, num_tokens, model.num_kv_heads, model.head_dim)
        self.keys, self.values = np.full(shape, np.nan), np.full(shape, np.nan)


class Model:
    """Qwen3-MoE (arXiv 2505.09388)."""

    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text())
        assert config["norm_topk_prob"] and config["tie_word_embeddings"] and not config["rope_scaling"]
        self.num_layers, self.head_dim = config["num_hidden_layers"], config["head_dim"]
        self.num_heads, self.num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.num_experts, self.top_k = config["num_experts"], config["num_experts_per_tok"]
        self.theta, self.epsilon = config["rope_theta"], config["rms_norm_eps"]
        self.weights = read_safetensors(folder / "model.safetensors")

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * self.weights[name + ".weight"]

    def linear(self, x, name):
        return x @ self.weights[name + ".weight"].T

    def rotate(self, x, positions):
        """RoPE of heads [n, heads, dim] by positions [n], or further by one distance."""
        half = self.head_dim // 2
        angles = np.reshape(positions, (-1, 1, 1)) * self.theta ** (-np.arange(half) / half)
        a, b, cos, sin = x[..., :half], x[..., half:], np.cos(angles), np.sin(angles)
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)

    def heads(self, x, name):
        return self.linear(x, name).reshape(len(x), -1, self.head_dim)

    def attend(self, q, keys, values, positions):
        """Rows at `positions` over the entries up to their own: [n, heads * dim]"""
        group, seen = self.num_heads // self.num_kv_heads, np.arange(positions[-1] + 1)
        keys, values = (x[: len(seen)].repeat(group, 1) for x in (keys, values))
        scores = np.einsum("qhd,khd->hqk", q, keys) * self.head_dim**-0.5
        scores[:, seen[None, :] > positions[:, None]] = -np.inf
        return np.einsum("hqk,khd->qhd", softmax(scores), values).reshape(len(q), -1)

    def route(self, x, name):
        """Weights of the experts, 0 for those that are not chosen: [n, experts]"""
        p = softmax(self.linear(x, name))
        order = np.argsort(-p, axis=-1, kind="stable")
        ranked = np.take_along_axis(p, order, -1)
        gaps = 1 - ranked[:, self.top_k] / ranked[:, self.top_k - 1]
        assert gaps.min() > NEAR_TIE, "two experts are as likely: take other texts"
        np.put_along_axis(p, order[:, self.top_k :], 0, -1)
        return p / p.sum(-1, keepdims=True)

    def experts(self, x, weights, name):
        out = np.zeros_like(x)
        for e in range(self.num_experts):
            rows, expert = np.flatnonzero(weights[:, e]), f"{name}.experts.{e}"
            hidden = silu(self.linear(x[rows], expert + ".gate_proj")) * self.linear(x[rows], expert + ".up_proj")
            out[rows] += weights[rows, e, None] * self.linear(hidden, expert + ".down_proj")
        return out

    def forward(self, tokens, positions, entries, last_layer=None):
        """Rows in ascending order, whose entries are replaced by those that they make: hidden states [n, dim] and
        routes [layers, n, experts]. With last_layer only the layers before it, and of it the entries."""
        x, routes = self.weights["model.embed_tokens.weight"][tokens], []
        for layer in range(self.num_layers):
            name = f"model.layers.{layer}"
            h, attention = self.norm(x, name + ".input_layernorm"), name + ".self_attn"
            k = self.norm(self.heads(h, attention + ".k_proj"), attention + ".k_norm")
            entries.keys[layer, positions] = self.rotate(k, positions)
            entries.values[layer, positions] = self.heads(h, attention + ".v_proj")
            if layer == last_layer:
                break
            q = self.norm(self.heads(h, attention + ".q_proj"), attention + ".q_norm")
            mixed = self.attend(self.rotate(q, positions), entries.keys[layer], entries.values[layer], positions)
            x = x + self.linear(mixed, attention + ".o_proj")
            h = self.norm(x, name + ".post_attention_layernorm")
            routes.append(self.route(h, name + ".mlp.gate"))
            x = x + self.experts(h, routes[-1], name + ".mlp")
        return x, np.array(routes)

    def log_probabilities(self, x):
        logits = self.linear(self.norm(x, "model.norm"), "model.embed_tokens")
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

    def generate(self, prompt, entries, first):
        """Tokens of the prompt from `first` on, then greedy ones: tokens [n], log probabilities [n, vocab]"""
        text, logprobs = list(prompt), []
        for _ in range(NUM_TOKENS):
            positions = np.arange(first, len(text))
            x, _ = self.forward(np.array(text)[positions], positions, entries)
            logprobs.append(self.log_probabilities(x[-1]))
            first = len(text)
            text.append(int(logprobs[-1].argmax()))
        return text[len(prompt) :], np.array(logprobs)


@dataclasses.dataclass
class Rule:
    """Which tokens of documents are computed again."""

    first: int = 0  # of each document
    by: str = ""  # then those whose "values" or "routes" deviate most
    share: float = 0.0  # of all, those first ones included
    layers: int = 1  # computed of all tokens to find them


def reusable(documents, num_prompt):
    """Whole blocks; not of a document that begins the prompt, nor the last token of the prompt."""
    spans = [(begin, begin + (min(end, num_prompt - 1) - begin) // BLOCK * BLOCK) for begin, end in documents]
    return [(begin, end) for begin, end in spans if begin > 0 and end > begin]


class Prompt:
    """With its documents' entries copied to where they stand, and the routes [layers, n, experts] of each alone."""

    def __init__(self, model, tokens, documents):
        self.tokens, self.spans = np.array(tokens), reusable(documents, len(tokens))
        self.entries, self.routes = Entries(model, len(tokens) + NUM_TOKENS), []
        before = np.arange(self.spans[0][0])
        model.forward(self.tokens[before], before, self.entries)
        for begin, end in self.spans:
            alone, rows = Entries(model, end - begin), np.arange(end - begin)
            self.routes.append(model.forward(self.tokens[begin:end], rows, alone)[1])
            for layer in range(model.num_layers):
                self.entries.keys[layer, begin:end] = model.rotate(alone.keys[layer], begin)
                self.entries.values[layer, begin:end] = alone.values[layer]


def deviations(model, prompt, rule, entries):
    """By position, of the documents' tokens; the entries that are computed for it stay."""
    rows = np.arange(prompt.spans[0][0], prompt.spans[-1][1])
    copied = entries.values[rule.layers].copy()
    _, routes = model.forward(prompt.tokens[rows], rows, entries, rule.layers)
    if rule.by == "values":
        return ((entries.values[rule.layers] - copied) ** 2).sum((1, 2))
    found = np.full(len(prompt.tokens), np.nan)
    for (begin, end), alone in zip(prompt.spans, prompt.routes, strict=True):
        here = routes[:, begin - rows[0] : end - rows[0]]
        found[begin:end] = np.abs(here - alone[: rule.layers]).sum((0, 2)) / 2
    return found


def choose(spans, rule, deviation, swap=False):
    """Positions to be computed again, ascending. With `swap` the last one chosen gives way to the next in order."""
    inside = [i for begin, end in spans for i in range(begin, end)]
    between = set(range(spans[0][0], spans[-1][1])) - set(inside)
    firsts = {i for begin, end in spans for i in range(begin, min(end, begin + rule.first))}
    count = max(0, math.ceil(rule.share * len(inside)) - len(firsts))
    others = []
    if count:
        others = sorted(set(inside) - firsts, key=lambda i: (-deviation[i], i))
        last, following = others[count - 1 : count + 1]
        gap = 1 - deviation[following] / deviation[last]
        assert gap > NEAR_TIE, f"tokens {last} and {following} deviate alike: take other texts"
        if swap:
            others[count - 1] = following
    return np.array(sorted([*between, *firsts, *others[:count]]), int)


def answer(model, prompt, rule, swap=False):
    """Tokens, log probabilities, and how many tokens were computed again."""
    entries = copy.deepcopy(prompt.entries)
    deviation = deviations(model, prompt, rule, entries) if rule.by else None
    chosen = choose(prompt.spans, rule, deviation, swap)
    if len(chosen):
        model.forward(prompt.tokens[chosen], chosen, entries)
    return *model.generate(prompt.tokens, entries, prompt.spans[-1][1]), len(chosen)


RULES = {
    "epic(first=0)": Rule(),
    "epic": Rule(first=16),
    "epic(first=5)": Rule(first=5),
    "cacheblend": Rule(by="values", share=0.15),
    "cacheblend(recompute=0.3,first=4,layers=2)": Rule(by="values", share=0.3, first=4, layers=2),
    "routeblend": Rule(by="routes", share=0.15),
    "routeblend(recompute=0.3,first=4,layers=2)": Rule(by="routes", share=0.3, first=4, layers=2),
    "routeblend(recompute=0.3,layers=3)": Rule(by="routes", share=0.3, layers=3),  # of 4: all entries are new
}

KEYS = """
window bike onion eagle cream fork beer carpet salad card table flag pencil corn bell pie coffee page store lamp
"""


def records(attribute, count, seed):
    """Lines of 10 tokens each."""
    keys = KEYS.split()
    lines = []
    for i in range(count):
        key, value = keys[(seed + 7 * i) % len(keys)], 100 + (seed * 131 + i * 373) % 900
        lines.append(f"The {attribute} of {key} is {value}.\n")
    return "".join(lines)


def text(string):
    return {"text": string, "is_document": False}


def document(*arguments):
    return {"text": records(*arguments), "is_document": True}


PROMPTS = {
    "texts before, between and behind documents, the last too short": [
        text("The weight of hotel is 12.\n"),
        document("weight", 12, 3),
        document("score", 7, 7),
        text("The score of hotel is 7.\n"),
        document("weight", 10, 5),
        document("age", 2, 4),
        text("What is the weight of eagle?\n"),
    ],
    "documents from the first token to the last": [
        document("age", 3, 14),
        document("weight", 7, 16),
        document("weight", 16, 18),  # of 160 tokens, the last of which is computed in any case
    ],
}


def ask_witan():
    """By prompt: its tokens, its documents, and by policy what Witan answers."""
    policies = ["", *RULES]
    asked = [{"parts": parts, "policies": policies, "num_tokens": NUM_TOKENS} for parts in PROMPTS.values()]
    with tempfile.TemporaryDirectory() as name:
        lines = "".join(json.dumps(request) + "\n" for request in asked)
        done = subprocess.run([DUMP, MODEL, name], input=lines, check=True, stdout=subprocess.PIPE, text=True)
        logprobs = np.fromfile(pathlib.Path(name) / "logprobs.f32", np.float32)
    logprobs = logprobs.reshape(len(asked), len(policies), NUM_TOKENS, -1)
    for line, of_prompt in zip(map(json.loads, done.stdout.splitlines()), logprobs, strict=True):
        said = {p: {**a, "logprobs": one} for p, a, one in zip(policies, line["answers"], of_prompt, strict=True)}
        yield line["prompt"], line["documents"], said


class ReuseTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = Model(MODEL)
        cls.cases = [
            (name, Prompt(cls.model, tokens, documents), said)
            for name, (tokens, documents, said) in zip(PROMPTS, ask_witan(), strict=True)
        ]

    def compare(self, said, tokens, logprobs):
        np.testing.assert_allclose(said["logprobs"], logprobs, rtol=0, atol=TOLERANCE)
        self.assertEqual(said["tokens"], tokens)

    def test_without_a_policy_the_model_is_the_same(self):
        for name, prompt, said in self.cases:
            with self.subTest(prompt=name):
                entries = Entries(self.model, len(prompt.tokens) + NUM_TOKENS)
                self.compare(said[""], *self.model.generate(prompt.tokens, entries, 0))

    def test_answers_are_those_of_the_papers(self):
        for name, prompt, said in self.cases:
            for policy, rule in RULES.items():
                with self.subTest(policy, prompt=name):
                    *expected, num_recomputed = answer(self.model, prompt, rule)
                    self.compare(said[policy], *expected)
                    self.assertEqual(said[policy]["reused"], sum(end - begin for begin, end in prompt.spans))
                    self.assertEqual(said[policy]["recomputed"], num_recomputed)

    def test_another_token_computed_again_would_show(self):
        for name, prompt, said in self.cases:
            for policy, rule in RULES.items():
                if not rule.by or rule.layers + 1 == self.model.num_layers:  # then all tokens' entries are computed
                    continue
                with self.subTest(policy, prompt=name):
                    _, logprobs, _ = answer(self.model, prompt, rule, swap=True)
                    self.assertGreater(np.abs(said[policy]["logprobs"] - logprobs)[0].max(), 5 * TOLERANCE)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
