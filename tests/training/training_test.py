"""Training: batches, curriculum, model, optimiser, resuming, and witan running what is exported.

Needs PyTorch; where it is missing the whole file is skipped (exit code 77). First argument: the witan program.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

try:
    import torch
except ImportError:
    print(f"SKIPPED: {sys.executable} has no PyTorch (Debian: python3-torch), so that nothing of training/ was tested")
    sys.exit(77)

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "training"))

import batches
import curriculum
import export
import model as model_module
import numpy
import optimizer
import presets
import tokenizer
import train
from tasks import sample

WITAN = pathlib.Path(sys.argv[1])


def small_model(**changes):
    fields = {"vocab_size": 2304, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "num_experts": 4,
              "expert_size": 32}  # fmt: skip
    model = model_module.Model(model_module.ModelConfig(**fields | changes), seed=3)
    model.start_with_previous_token_heads()
    return model


class BatchesTest(unittest.TestCase):
    def test_a_row_is_a_function_of_its_arguments(self):
        self.assertEqual(batches.make_row(1, 2, 3, 256), batches.make_row(1, 2, 3, 256))
        self.assertNotEqual(batches.make_row(1, 2, 3, 256), batches.make_row(1, 2, 4, 256))
        self.assertNotEqual(batches.make_row(1, 2, 3, 256), batches.make_row(1, 3, 3, 256))
        self.assertNotEqual(batches.make_row(1, 2, 3, 256), batches.make_row(2, 2, 3, 256))

    def test_a_chat_row_is_what_the_template_makes(self):
        coder = tokenizer.build()
        turns = tuple(sample.Turn(f"What is {i}?", f"The answer is {i}.", (str(i),), "last") for i in range(2))
        made = sample.Sample("x", "x", "Read this.\n", turns)
        ids, weights, replies = batches.encode_sample(made, coder, chat=True)
        self.assertEqual(
            coder.decode(ids),
            "<|im_start|>user\nRead this.\nWhat is 0?<|im_end|>\n<|im_start|>assistant\nThe answer is 0.<|im_end|>\n"
            "<|im_start|>user\nWhat is 1?<|im_end|>\n<|im_start|>assistant\nThe answer is 1.<|im_end|>\n",
        )
        for i in range(2):
            learned = [token for token, reply in zip(ids, replies) if reply == i]
            self.assertEqual(coder.decode(learned), f"The answer is {i}.<|im_end|>")
        self.assertEqual([w > 0 for w in weights], [reply >= 0 for reply in replies])

    def test_what_counts_in_a_batch_is_the_next_token_of_a_reply(self):
        coder = tokenizer.build()
        batch = batches.make_batch(1, 0, 24, 256)
        self.assertTrue((batch.reply[:, -1] == -1).all() and (batch.weights[:, -1] == 0).all())
        spoken = [[] for _ in batch.reply_task]
        for row, at in zip(*numpy.nonzero(batch.reply >= 0)):
            self.assertGreater(batch.weights[row, at], 0)
            spoken[batch.reply[row, at]].append(batch.tokens[row, at + 1])
        for reply in spoken:
            self.assertRegex(coder.decode(reply), r"(?s)^ ?\S.*(<\|im_end\|>|\n)$")
        self.assertGreater(len(set(batch.reply_task)), 2)

    def test_every_task_is_learned_at_the_lengths_that_hold_it(self):
        for length, names in ((64, {"retrieval", "following"}), (1024, set(batches.TASK_NAMES))):
            seen = {batches.make_row(1, step, 0, length)[0] for step in range(100)}
            self.assertLessEqual(names, seen, f"length {length}")


class CurriculumTest(unittest.TestCase):
    def test_lengths_grow_when_retrieval_is_learned_and_not_before(self):
        plan = curriculum.Curriculum(seed=1, patience=1000)
        for _ in range(5):
            plan.end_block({64: (10, 100)}, tokens=0)
        self.assertEqual(set(plan.stages), {0})
        for _ in range(8):
            plan.end_block({64: (95, 100)}, tokens=0)
        self.assertEqual(plan.stages[-1], 1, "the next length waits for its own accuracy")

    def test_what_will_not_be_learned_is_left_behind(self):
        plan = curriculum.Curriculum(seed=1, patience=1000)
        for tokens in range(100, 8000, 100):
            plan.end_block({}, tokens)
            self.assertEqual(plan.stages[-1], min(7, (tokens - 1) // 1000))

    def test_all_lengths_so_far_are_drawn_and_no_others(self):
        plan = curriculum.Curriculum(seed=1, patience=1000, stages=[2] * 20)
        drawn = [plan.length(step) for step in range(20 * curriculum.BLOCK_STEPS)]
        self.assertEqual(set(drawn), {64, 128, 256})
        self.assertGreater(drawn.count(256), len(drawn) * 0.4)

    def test_long_and_short_lengths_are_drawn_less_when_all_are_learned(self):
        plan = curriculum.Curriculum(seed=1, patience=10**9, stages=[6, 6])
        for _ in range(10):
            plan.end_block({4096: (99, 100)}, tokens=0)
        self.assertEqual(plan.stages[-1], 7)
        plan.stages += [7] * 40
        drawn = [plan.length(step) for step in range(12 * curriculum.BLOCK_STEPS, 52 * curriculum.BLOCK_STEPS)]
        for length, share in zip(curriculum.LENGTHS, (1, 2, 3, 3, 3, 2, 1)):
            self.assertAlmostEqual(drawn.count(length) / len(drawn), share / 15, delta=0.04)

    def test_state_comes_back_through_a_checkpoint(self):
        plan = curriculum.Curriculum(seed=1, patience=1000)
        plan.end_block({64: (60, 100)}, tokens=0)
        again = curriculum.Curriculum(1, 1000, **plan.state())
        for each in (plan, again):
            each.end_block({64: (100, 100)}, tokens=500)
        self.assertEqual(plan.state(), again.state())


class ModelTest(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(1)

    def test_sizes_are_within_what_may_ship(self):
        for name, preset in presets.PRESETS.items():
            config = preset.model_config()
            with self.subTest(name):
                model = model_module.Model(config)
                self.assertEqual(config.num_parameters(), sum(p.numel() for p in model.parameters()))
                self.assertLess(2 * config.num_parameters(), export.MAX_BYTES - 100_000)
                self.assertEqual((config.hidden_size % 32, config.expert_size % 32), (0, 0))

    def test_attention_by_blocks_of_queries_is_attention_in_values_and_gradients(self):
        for length, heads, kv_heads in ((1, 2, 2), (255, 4, 2), (256, 2, 1), (600, 4, 2)):
            q = torch.randn(3, heads, length, 16, dtype=torch.float64, requires_grad=True)
            k, v = (torch.randn(3, kv_heads, length, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
            keys, values = (model_module.repeat_heads(x, q) for x in (k, v))
            scores = (q @ keys.transpose(2, 3) / 4).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            expected, actual = scores.softmax(-1) @ values, model_module.causal_attention(q, k, v)
            self.assertLess((actual - expected).abs().max().item(), 1e-12)
            gradient = torch.randn_like(q)
            expected, actual = (torch.autograd.grad(out, (q, k, v), gradient) for out in (expected, actual))
            for a, e in zip(actual, expected):
                self.assertLess((a - e).abs().max().item(), 1e-12)

    def test_dense_and_gathered_experts_agree_in_values_and_gradients(self):
        experts = small_model().layers[0].experts
        results = []
        for mix in (experts._dense, experts._gathered):
            x = torch.randn(50, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
            chosen = (x @ experts.router.weight.T).softmax(-1).topk(2)
            out = mix(x, chosen.indices, chosen.values)
            experts.zero_grad()
            out.pow(2).sum().backward()
            gradients = [p.grad.clone() for n, p in experts.named_parameters() if "_proj" in n]
            results.append([out, x.grad, *gradients])
        for dense, gathered in zip(*results):
            self.assertLess((dense - gathered).abs().max().item(), 1e-5)

    def test_an_unused_expert_is_no_trouble(self):
        experts = small_model().layers[0].experts
        x = torch.randn(3, 64)
        only = torch.tensor([[0, 1]] * 3)
        self.assertTrue(torch.isfinite(experts._gathered(x, only, torch.ones(3, 2))).all())

    def test_the_first_heads_begin_by_looking_back(self):
        model = small_model(hidden_size=256)
        attention, config = model.layers[0].attention, model.config
        x = model.layers[0].attention_norm(model.embedding(torch.randint(0, 2000, (1, 40))))
        cos, sin = model.angles(40, x.device)

        def heads(projection, norm, count):
            return model_module.rotate(norm(projection(x).view(1, 40, count, 64)).transpose(1, 2), cos, sin)

        q = heads(attention.q_proj, attention.q_norm, config.num_heads)
        k = heads(attention.k_proj, attention.k_norm, config.num_kv_heads).repeat_interleave(2, dim=1)
        for head in range(config.num_heads):
            scores = (q @ k.transpose(2, 3))[0, head]
            for at in range(10, 40):
                self.assertEqual(scores[at, : at + 1].argmax().item(), at - 1 - head)

    def test_later_tokens_change_nothing_before_them(self):
        model = small_model()
        tokens = torch.randint(0, 2000, (1, 300))
        changed = tokens.clone()
        changed[0, 200:] = 7
        with torch.no_grad():
            first, second = (model(t, torch.ones(1, 300))[0] for t in (tokens, changed))
        self.assertLess((first - second)[0, :200].abs().max().item(), 1e-5)
        self.assertGreater((first - second)[0, 200:].abs().max().item(), 1e-2)

    def test_balanced_routing_has_the_least_loss(self):
        model = small_model()
        layer = model.layers[0].experts
        x = torch.randn(400, 64)
        routing = layer(x, torch.ones(400))[1]
        self.assertAlmostEqual(routing.load.sum().item(), 1, places=5)
        with torch.no_grad():
            layer.router.weight[0] = 10 * x.mean(0).sign()
            layer.router.weight[1:] = -layer.router.weight[0]
        skewed = layer(x + 3 * layer.router.weight[0], torch.ones(400))[1]
        self.assertGreater(skewed.balance_loss.item(), routing.balance_loss.item() + 0.5)


class OptimizerTest(unittest.TestCase):
    def test_orthogonalizing_brings_singular_values_near_one(self):
        torch.manual_seed(1)
        for rows, columns in ((64, 64), (32, 96), (96, 32)):
            values = torch.linalg.svdvals(optimizer.orthogonalize(torch.randn(3, rows, columns)))
            self.assertGreater(values.min().item(), 0.3)
            self.assertLess(values.max().item(), 1.4)

    def test_every_parameter_is_moved(self):
        model = small_model()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        both = optimizer.Optimizer(model, lr=1e-2)
        hidden, routings = model(torch.randint(0, 2000, (2, 50)), torch.ones(2, 50))
        (model.logits(hidden).pow(2).mean() + sum(r.z_loss for r in routings)).backward()
        both.step(1.0)
        for name, p in model.named_parameters():
            self.assertFalse(torch.equal(p, before[name]), name)


class TrainTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def train(self, out, *arguments):
        command = [sys.executable, "-B", REPOSITORY / "training" / "train.py", "--size", "test", "--threads", "1"]
        done = subprocess.run(
            [*command, "--out", self.folder / out, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_a_run_that_was_stopped_goes_on_exactly_as_one_that_was_not(self):
        tokens = 2 * curriculum.BLOCK_STEPS * presets.PRESETS["test"].batch_tokens
        self.train("whole", "--tokens", tokens)
        self.train("parts", "--tokens", tokens, "--minutes", 0.001)
        self.assertIn("goes on from step 32", self.train("parts", "--tokens", tokens, "--workers", 1))
        whole, parts = (
            [json.loads(line) for line in (self.folder / run / "log.jsonl").read_text().splitlines()]
            for run in ("whole", "parts")
        )
        self.assertEqual(len(whole), 2)
        for one, other in zip(whole, parts, strict=True):
            self.assertEqual({**one, "seconds": 0}, {**other, "seconds": 0})
        weights = [(self.folder / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "parts")]
        self.assertEqual(*weights)

    def test_another_size_or_seed_does_not_resume(self):
        self.train("run", "--tokens", 1000)
        command = [sys.executable, "-B", REPOSITORY / "training" / "train.py", "--out", self.folder / "run"]
        done = subprocess.run([*command, "--size", "cpu"], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("is of --size test --seed 1", done.stderr)

    def test_witan_computes_the_logits_of_what_is_exported(self):
        torch.manual_seed(1)
        model = small_model()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "norm" in name:
                    p.mul_(1 + 0.3 * torch.randn_like(p))
                p.copy_(p.bfloat16().float())
        export.write_model(model, self.folder / "model")
        ids = batches.make_row(1, 0, 0, 512)[1]
        (self.folder / "ids").write_text(" ".join(map(str, ids)))
        done = subprocess.run(
            [WITAN, "logits", "-m", self.folder / "model", "--tokens", self.folder / "ids", "--out", self.folder / "logits",
             "--exact", "--kv-type", "f32"], capture_output=True, text=True, check=False
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        found = torch.from_numpy(numpy.fromfile(self.folder / "logits", "<f4")).view(len(ids), -1)
        with torch.no_grad():
            expected = model.logits(model(torch.tensor([ids]), torch.ones(1, len(ids)))[0])[0]
        self.assertGreater(expected.std().item(), 0.1)
        self.assertLess((found - expected).abs().max().item(), 1e-3)

    def test_witan_renders_a_chat_as_training_did(self):
        export.write_model(small_model(), self.folder / "model")
        turn = sample.Turn("What is 1?", "", (), "last")
        chat = sample.Sample("x", "x", "Read this.\n", (turn,))
        messages = self.folder / "messages.json"
        messages.write_text(json.dumps({"messages": chat.messages()[:1]}))
        done = subprocess.run(
            [WITAN, "render", "-m", self.folder / "model", "--messages", messages], capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        coder = tokenizer.build()
        ids, _, replies = batches.encode_sample(chat, coder, chat=True)
        self.assertEqual(done.stdout.rstrip("\n") + "\n", coder.decode(ids[: replies.index(0)]))

    def test_the_card_shows_what_witan_measured(self):
        self.train("run", "--tokens", 1000)
        run = self.folder / "run"

        def script(path, *arguments):
            done = subprocess.run([sys.executable, "-B", REPOSITORY / path, *map(str, arguments)], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout

        names = ("retrieval:needle", "long_answer:k20")
        made = [argument for name in names for argument in ("--task", name)]
        script("eval/make_tasks", *made, "--lengths", "256,1536", "--samples", 2, "--out", run / "tasks.jsonl")
        evaluate = [WITAN, "eval", "-m", run / "model", "--tasks", run / "tasks.jsonl"]
        for out, flags in (("results.jsonl", []), ("forgetful.jsonl", ["--kv", "streamingllm,keep=0.2"])):
            subprocess.run([*evaluate, *flags, "--out", run / out], check=True, capture_output=True)
        script("training/model_card.py", "--out", run)
        card = (run / "model" / "README.md").read_text()
        self.assertIn("\n| retrieval: needle | 0 | 0 |\n", card)
        self.assertIn("\n| retrieval | 0, 0 | 0, 0 |\n", card)
        self.assertIn("`--kv streamingllm,keep=0.2`", card)
        self.assertIn("Short of its aim: long_answer at 256 tokens is right to 0 %, where 80 % were wanted, k20 to 0 %.", card)
        self.assertIn("training/train.py --size test --seed 1 --tokens 1000 --out DIR", card)
        shares = re.search(r"\n\| 0 \| ([\d. |]+) \|\n", card[card.index("## Routing") :])[1].split(" | ")
        self.assertAlmostEqual(sum(map(float, shares)), 100, delta=0.3)

    def test_a_model_too_large_to_ship_is_refused(self):
        with self.assertRaisesRegex(ValueError, "model.safetensors would take"):
            export.write_model(small_model(vocab_size=1 << 17), self.folder / "model")
        self.assertFalse((self.folder / "model" / "model.safetensors").exists())


if __name__ == "__main__":
    torch.set_num_threads(1)
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
