"""eval/report: what it counts in result files, what its page holds, and what it says about wrong input.

The first argument is the witan program, the second the folder of golden data.
"""

import html.parser
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "eval"))

import page
import plots
import results

WITAN, GOLDENS = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])

VOID = {"meta", "br"}


def header(**settings):
    settings = {"kv_type": "f16", "context": 4096, "exact": False, "temperature": 0.0} | settings
    return {"format": "witan-eval-1", "version": "0.1.0", "model": "models/witan-tiny", "architecture": "qwen3_moe",
            "settings": settings, "tasks": ["tasks.jsonl"]}  # fmt: skip


def sample(name, correct, **fields):
    line = {"id": name, "task": "retrieval", "variant": "one_key", "length": 256, "correct": correct, "positions": [],
            "prompt_tokens": 250, "generated_tokens": 12, "max_tokens": 40, "finish_reason": "stop", "reply": "It is 7.",
            "answers": ["7"] * len(correct), "seconds": 0.3, "fingerprint": "00"}  # fmt: skip
    return line | fields


def perplexity(value):
    return {"perplexity": {"file": "texts/a.txt", "tokens": 12345, "window": 2048, "nll": 2.3, "value": value}}


class Page(html.parser.HTMLParser):
    """A page's elements and text; checks that every element is closed where it has to be."""

    def __init__(self, content):
        super().__init__()
        self.open, self.elements, self.tables, self.rows, self.text = [], [], [], [], ""
        self.feed(content)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> after {self.elements[-1]}"

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, heading):
        return next(row[1:] for row in self.rows if row[0].replace("\xa0", " ") == heading)

    def all(self, tag, kind=None):
        return [found for name, found in self.elements if name == tag and kind in (None, *found.get("class", "").split())]


class ReportTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def file(self, *lines, name="results.jsonl", end=""):
        path = self.folder / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end, encoding="utf-8")
        return path

    def run_it(self, *args):
        command = [sys.executable, REPOSITORY / "eval" / "report", "--out", self.folder / "report.html", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def page(self, *args):
        done = self.run_it(*args)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertFalse((self.folder / "report.html.partial").exists())
        return Page((self.folder / "report.html").read_text(encoding="utf-8"))

    def fails(self, *args, says):
        done = self.run_it(*args)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(says, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(list(self.folder.glob("report.html*")), [], "a run that fails leaves no file")


class CountsTest(ReportTest):
    def samples(self, *lines):
        return results.read(self.file(header(), *lines)).samples

    def test_the_interval_is_wilsons(self):
        for part, whole, low, high in ((8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (1, 1, 0.206549, 1.0)):
            found = results.Share(part, whole).interval()
            self.assertAlmostEqual(found[0], low, 5)
            self.assertAlmostEqual(found[1], high, 5)

    def test_a_missing_answer_is_wrong_and_not_given(self):
        tally = results.Tally(self.samples(
            sample("a", [True, False, None]), sample("b", [True], generated_tokens=15, finish_reason="length")
        ))  # fmt: skip
        self.assertEqual(tally.right, results.Share(2, 4))
        self.assertEqual(tally.given, results.Share(3, 4))
        self.assertEqual((tally.num_samples, tally.num_cut_off, tally.mean_tokens), (2, 1, 13.5))

    def test_replies_of_another_program_have_no_mean_length(self):
        self.assertIsNone(results.Tally(self.samples(sample("a", [True], finish_reason="", generated_tokens=0))).mean_tokens)

    def test_by_number_of_the_answer_counts_replies_with_several(self):
        samples = self.samples(sample("a", [True, False, None]), sample("b", [True, True]), sample("c", [False]))
        self.assertEqual(
            results.by_index(samples), {1: results.Share(2, 2), 2: results.Share(1, 2), 3: results.Share(0, 1)}
        )

    def test_by_place_counts_tenths(self):
        samples = self.samples(
            sample("a", [True, False, None], positions=[0, 0.099, 0.1]), sample("b", [True], positions=[1]),
            sample("c", [True]),
        )  # fmt: skip
        self.assertEqual(
            results.by_place(samples), {0: results.Share(1, 2), 1: results.Share(0, 1), 9: results.Share(1, 1)}
        )

    def test_by_length_keeps_few_lengths_and_groups_many(self):
        few = self.samples(
            sample("a", [True], length=300), sample("b", [False, True], length=100), sample("c", [True], length=0)
        )
        shown = results.length_groups(few)
        self.assertEqual(
            list(results.by_length(few, shown).items()), [(100, results.Share(1, 2)), (300, results.Share(1, 1))]
        )
        many = self.samples(*(sample(str(n), [True], length=1000 + n) for n in range(13)), sample("a", [False], length=1500))
        self.assertEqual(
            results.by_length(many, results.length_groups(many)), {1024: results.Share(13, 13), 2048: results.Share(0, 1)}
        )

    def test_statistics_of_resumed_runs_are_put_together(self):
        runs = [{"prompt_tokens": 100, "prefill_seconds": 1.0, "kv_peak_bytes": 5},
                {"prompt_tokens": 500, "prefill_seconds": 2}]  # fmt: skip
        self.assertEqual(results.throughput(runs, "prompt_tokens", "prefill_seconds"), 200)
        self.assertEqual(results.largest(runs, "kv_peak_bytes"), 5)
        self.assertIsNone(results.throughput([], "prompt_tokens", "prefill_seconds"))
        self.assertIsNone(results.largest(runs, "weight_bytes"))

    def test_a_task_that_ran_later_is_not_among_those_that_did_not(self):
        late = {"id": "a", "task": "retrieval", "variant": "", "length": 1, "line": 3, "error": "no room"}
        found = results.read(self.file(header(), late, sample("a", [False]), sample("a", [True]), late | {"id": "b"}))
        self.assertEqual([one.id for one in found.not_run], ["b"])
        self.assertEqual([one.correct for one in found.samples], [[True]])

    def test_names_are_the_settings_that_differ(self):
        def of(*headers):
            return [results.ResultFile(f"{i}.jsonl", one) for i, one in enumerate(headers)]

        files = of(header(), header(kv_type="q8_0", top_k=5))
        self.assertEqual(results.names(files), ["kv_type f16, top_k none", "kv_type q8_0, top_k 5"])
        self.assertEqual(list(results.common_traits(files)),
                         ["model", "architecture", "tasks", "version", "context", "exact", "temperature"])  # fmt: skip
        self.assertEqual(results.names(of(header(), header())), ["0.jsonl", "1.jsonl"])
        other = header() | {"model": "models/other"}
        self.assertEqual(results.names(of(header(), other, other)), ["witan-tiny", "other, 1.jsonl", "other, 2.jsonl"])


class PageTest(ReportTest):
    def test_the_summary_has_the_numbers(self):
        lines = (
            header(),
            sample("a", [True, False, None], generated_tokens=20, finish_reason="length"),
            sample("b", [True], variant="two_keys", length=512),
            {"id": "tasks.jsonl:17", "line": 17, "error": "tasks.jsonl: line 17: no \"answers\""},
            {"run": {"prompt_tokens": 3000, "prefill_seconds": 2.0, "decode_tokens": 50, "decode_seconds": 0.5,
                     "kv_peak_bytes": 3 << 20, "weight_bytes": 12 << 20, "distinct_experts": 30, "all_experts": 32}},
        )  # fmt: skip
        shown = self.page(self.file(*lines))
        for heading, value in (
            ("tasks that ran", "2"), ("tasks that did not run", "1"), ("answers expected", "4"), ("answers right", "50.0 %"),
            ("answers given (completion)", "75.0 %"), ("mean tokens of a reply", "16.0"), ("replies cut off", "1"),
            ("prefill, tokens/s", "1,500"), ("decode, tokens/s", "100"), ("KV cache, peak", "3.0 MiB"),
            ("weights", "12.0 MiB"), ("experts used", "30 of 32"),
        ):  # fmt: skip
            self.assertEqual(shown.row(heading), [value], heading)
        self.assertIn('tasks.jsonl:17: tasks.jsonl: line 17: no "answers"', shown.text)
        self.assertEqual(shown.row("one_key"), ["33.3 %", "6.1–79.2 %", "66.7 %", "1", "3", "33.3 %", "–"])
        self.assertEqual(shown.row("all"), ["50.0 %", "15.0–85.0 %", "75.0 %", "2", "4", "33.3 %", "100.0 %"])

    def test_files_are_compared(self):
        first = self.file(header(), sample("a", [True]), name="a.jsonl")
        second = self.file(header(kv_type="q8_0"), sample("a", [False]), sample("b", [True], task="lists", variant="choose"),
                           name="b.jsonl")  # fmt: skip
        shown = self.page(first, second, "--title", "Two <types>")
        self.assertIn("Two <types>", shown.text)
        self.assertIn("A: kv_type f16", shown.text)
        self.assertIn("B: kv_type q8_0", shown.text)
        self.assertEqual(shown.row("answers right"), ["100.0 %", "50.0 %"])
        self.assertEqual((shown.row("one_key A")[0], shown.row("one_key B")[0]), ("100.0 %", "0.0 %"))
        labels = [svg["aria-label"] for svg in shown.all("svg", "plot")]
        self.assertEqual(labels, ["Right answers by length: lists", "Right answers by length: retrieval"])
        self.assertIn("Not every task ran in all of them", shown.text)
        self.assertNotIn("Not every task ran", self.page(first, first).text)

    def test_a_run_without_results_has_a_page(self):
        shown = self.page(self.file(header()))
        self.assertEqual((shown.row("tasks that ran"), shown.row("answers right")), (["0"], ["–"]))
        self.assertNotIn("Examples", shown.text)

    def test_tasks_and_variants_need_no_names(self):
        line = {key: value for key, value in sample("a", [True]).items() if key not in ("task", "variant", "length")}
        shown = self.page(self.file(header(), line))
        self.assertIn("(no task name)", shown.text)
        self.assertEqual(shown.all("svg", "plot"), [], "no length, no plot by it")

    def test_one_file_has_a_line_per_task(self):
        lines = [sample(f"{task}{n}", [n % 2 == 0], task=task, length=n) for task in ("retrieval", "lists") for n in (64, 128)]
        lines.append(sample("c", [True, False, True], task="long_answer", positions=[0.1, 0.5, 0.9]))
        shown = self.page(self.file(header(), *lines))
        labels = [svg["aria-label"] for svg in shown.all("svg", "plot")]
        self.assertEqual(labels, ["Right answers by length: all tasks",
                                  "Right answers by their number in the reply: long_answer",
                                  "Right answers by place of the evidence: long_answer"])  # fmt: skip
        self.assertEqual(len(shown.all("path", "marker")), 3 + 5 + 3 + 3)  # legend, points by length, number and place
        self.assertIn("answer 2: 0.0 % of 1, 95 % interval 0.0 to 79.3 %", shown.text)
        self.assertIn("50 to 60 %: 0.0 % of 1", shown.text)

    def test_perplexities_stand_in_a_table(self):
        alone = self.page(self.file(header(), perplexity(10.07)))
        self.assertEqual(alone.row("a.txt"), ["10.0700", "2.30000", "12,345", "2,048"])
        self.assertNotIn("Summary", alone.text)
        both = self.page(self.file(header(), perplexity(10.07), name="a.jsonl"),
                         self.file(header(kv_type="q8_0"), perplexity(None), name="b.jsonl"),
                         self.file(header(), sample("a", [True]), name="c.jsonl"))  # fmt: skip
        self.assertEqual(both.row("a.txtkv_type q8_0")[0], "–")
        self.assertEqual(both.row("answers right"), ["100.0 %"])

    def test_settings_stand_once_where_a_file_holds_tasks_and_perplexity(self):
        mixed = self.file(header(), sample("a", [True]), perplexity(10.07), name="mixed.jsonl")
        self.assertEqual(len(self.page(mixed).all("dl")), 1)
        other = self.file(header(kv_type="q8_0"), perplexity(9.0), name="other.jsonl")
        self.assertEqual(len(self.page(mixed, other).all("dl")), 2, "what is the same in all is less here")
        self.assertEqual(len(self.page(other).all("dl")), 1)

    def test_examples_are_the_best_and_the_worst_reply(self):
        replies = {"a": [False, True], "b": [True, True], "c": [None, False], "d": [True, True]}
        lines = [sample(name, marks, reply=f"reply {name}", answers=["7", "8"]) for name, marks in replies.items()]
        shown = self.page(self.file(header(), *lines, sample("long", [True], task="lists", reply="x" * 4010)))
        examples = shown.text[shown.text.index("Examples") :]
        self.assertIn("b: 2 of 2 right✓ 7✓ 8reply b", examples)
        self.assertIn("c: 0 of 2 right– 7✗ 8reply c", examples)
        self.assertEqual(re.findall("reply [a-d]", examples), ["reply b", "reply c"])
        self.assertIn("10 characters more", examples)
        self.assertEqual(len(shown.all("details")), 2)

    def test_a_cut_off_last_line_is_left_out_and_said(self):
        whole = self.file(header(), sample("a", [True]), end=json.dumps(sample("b", [False])))
        self.assertEqual(len(results.read(whole).samples), 2, "only the newline is missing")
        cut = self.file(header(), sample("a", [True]), end='{"id": "b", "reply": "\u00e9'[:-1])
        cut.write_bytes(cut.read_bytes() + "é".encode()[:1])
        shown = self.page(cut)
        self.assertEqual(shown.row("tasks that ran"), ["1"])
        self.assertIn("results.jsonl: its last line is incomplete and left out", shown.text)

    def test_everything_is_escaped_and_nothing_is_loaded(self):
        evil = "</pre><script src=//evil.example/x></script><img src='http://evil.example/i' onerror=\"alert(1)\">&amp;"
        lines = [sample(evil + str(n), [n > 0, None], task=evil, variant=evil, reply=evil, answers=[evil] * 2, length=99 + n,
                        positions=[0, 1]) for n in range(2)]  # fmt: skip
        lines += [{"id": evil, "error": evil}, perplexity(3.0)]
        lines[-1]["perplexity"]["file"] = evil
        files = []
        for n in range(2):
            head = header(**{evil: evil, "other": evil + str(n)}) | {"model": evil, "architecture": evil, "tasks": [evil]}
            files.append(self.file(head, *lines, name=f"<b>{n}.jsonl"))
        for arguments in (files, files[:1]):
            shown = self.page(*arguments, "--title", evil)
            self.assertEqual({tag for tag, _ in shown.elements} & {"script", "img", "link", "iframe", "b"}, {"b"})
            for tag, attributes in shown.elements:
                self.assertFalse({"src", "href", "onerror"} & set(attributes), tag)
            self.assertIn(evil, shown.text)
            policy = [meta["content"] for meta in shown.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
            self.assertEqual(policy, ["default-src 'none';style-src 'unsafe-inline'"])
        self.assertNotRegex((REPOSITORY / "eval" / "page.css").read_text(), "url|@import|</")

    def test_half_a_surrogate_pair_does_not_matter(self):
        self.assertIn("a?b", self.page(self.file(header(), sample("a", [True], reply="a\ud800b"))).text)

    def test_pages_suit_phones_and_screen_readers(self):
        shown = self.page(self.file(header(), sample("a", [True, False]), sample("b", [True, None], length=512)))
        self.assertIn({"name": "viewport", "content": "width=device-width,initial-scale=1"}, shown.all("meta"))
        self.assertEqual(len(shown.all("div", "scroll")), len(shown.all("table")))
        drawings = shown.all("svg", "plot")
        self.assertEqual(len(drawings), 2)
        for drawing in drawings:
            self.assertEqual(drawing["role"], "img")
            self.assertTrue(drawing["aria-label"])

    def test_it_reads_what_witan_writes(self):
        model = GOLDENS / "e2e-bytes" / "model.gguf"
        task = {"task": "made", "variant": "up", "scoring": "last", "max_tokens": 3, "answers": ["7"], "length": 9}
        tasks = self.file(*(task | {"id": str(n), "prompt": "x" * n} for n in (5, 9000)), {"id": "broken"}, name="tasks.jsonl")
        text = self.folder / "text.txt"
        text.write_text("The quick brown fox jumps over the lazy dog. " * 9)
        out, other = self.folder / "a.jsonl", self.folder / "b.jsonl"
        for command in (["eval", "-m", model, "--tasks", tasks, "--out", out, "--on-error", "skip"],
                        ["perplexity", "-m", model, "-f", text, "--window", "64", "--out", other]):  # fmt: skip
            subprocess.run([WITAN, *command], check=True, capture_output=True, timeout=120)
        shown = self.page(out, other)
        self.assertEqual(shown.row("tasks that ran"), ["1"])
        self.assertEqual(shown.row("tasks that did not run"), ["2"])
        self.assertNotIn("–", "".join(shown.row(name)[0] for name in ("decode, tokens/s", "KV cache, peak", "experts used")))
        self.assertGreater(float(shown.row("text.txt")[0].replace(",", "")), 1)


class PlotsTest(unittest.TestCase):
    def panel(self, shares, label=""):
        points = [(x, results.Share(part, 10), str(x)) for x, part in enumerate(shares)]
        return plots.panel("p", plots.Axis("x", 0, 10, []), [plots.Line(i, label, points) for i in range(3)])

    def test_shares_stand_between_zero_and_a_hundred_percent(self):
        drawn = self.panel([0, 10])
        grid = [float(y) for y in re.findall(r'class="grid" d="M\d+ ([\d.]+)H', drawn)]
        (_, zero), (_, full) = re.findall(r'class="marker" transform="translate\(([\d.]+) ([\d.]+)\)', drawn)[:2]
        self.assertEqual((float(zero), float(full)), (grid[0], grid[-1]))

    def test_labels_at_the_same_height_are_spread(self):
        for share in (0, 5, 10):
            found = re.findall(r'class="end" x="[\d.]+" y="([\d.]+)"', self.panel([share] * 2, "A"))
            heights = sorted(map(float, found))
            self.assertEqual(len(heights), 3)
            self.assertTrue(all(b - a >= 12.9 for a, b in zip(heights, heights[1:])), heights)

    def test_labels_of_many_lines_all_stand_within_the_plot(self):
        for count in (1, 14, 15, 40):
            lines = [plots.Line(i, f"L{i}", [(5, results.Share(5, 10), "x")]) for i in range(count)]
            drawn = plots.panel("p", plots.Axis("x", 0, 10, []), lines)
            height = float(re.search(r'viewBox="0 0 \d+ ([\d.]+)"', drawn)[1])
            found = sorted(float(y) for y in re.findall(r'class="end" x="[\d.]+" y="(-?[\d.]+)"', drawn))
            self.assertEqual(len(found), count)
            self.assertGreaterEqual(found[0], 11, "a line of text is 11 pixels high")
            self.assertLess(found[-1], height - 30, "above the numbers and the name of the axis")
            self.assertTrue(all(b - a >= 12.9 for a, b in zip(found, found[1:])), found)

    def test_lengths_are_ticks_on_a_logarithmic_axis(self):
        axis = plots.length_axis({1024, 256, 512})
        self.assertEqual([(x, label) for x, label in axis.ticks], [(8.0, "256"), (9.0, "512"), (10.0, "1024")])

    def test_ticks_of_answers_are_few(self):
        for count in (1, 2, 10, 20, 60, 1000, 100000):
            labels = [label for _, label in plots.index_axis(count).ticks]
            self.assertEqual(labels[0], "1")
            self.assertLessEqual(len(labels), 11)

    def test_lines_look_different(self):
        self.assertEqual(len({plots.swatch(i) for i in range(56)}), 56)


class ErrorsTest(ReportTest):
    def test_a_file_without_the_header_is_named(self):
        says = "results.jsonl: line 1: no header of results of witan eval"
        self.fails(self.file(sample("a", [True])), says=says)
        self.fails(self.file(header() | {"format": "witan-eval-2"}), says=says)
        self.fails(self.file([]), says=says)
        self.fails(self.file(header() | {"settings": []}), says='line 1: "settings" is []')
        self.fails(self.file(end='{"format": "witan-ev'), says="results.jsonl: line 1: not JSON")
        self.fails(self.file(), says="results.jsonl: empty")
        self.fails(self.folder / "none.jsonl", says="none.jsonl")

    def test_a_broken_line_is_named(self):
        good = sample("a", [True])
        for line, says in (
            ([], "expected a JSON object"),
            ({"x": 1}, 'no "id"'),
            ({"run": 5}, 'no "id"'),
            ({"id": 5, "error": "x"}, '"id" is 5'),
            ({"id": ["a"]}, '"id" is ["a"]'),
            (good | {"correct": [1]}, '"correct" is [1]'),
            (good | {"correct": [True, None]}, '2 "correct" for 1 "answers"'),
            (good | {"positions": [1.5]}, '"positions" is [1.5]'),
            (good | {"positions": [0.5, 0.5]}, '2 "positions" for 1 "answers"'),
            (good | {"length": -1}, '"length" is -1'),
            (good | {"generated_tokens": 10**400}, '"generated_tokens" is 1000'),
            (good | {"positions": [10**400]}, '"positions" is [1000'),
            (good | {"positions": [float("nan")]}, '"positions" is [NaN]'),
            ({key: good[key] for key in good if key != "reply"}, 'no "reply"'),
            (perplexity("x"), '"value" is "x"'),
        ):
            with self.assertRaises(results.ResultsError) as caught:
                results.read(self.file(header(), line, good))
            self.assertIn(f"results.jsonl: line 2: {says}", str(caught.exception))
        for broken in ('{"id": ', "[" * 100000):
            path = self.file(header())
            path.write_text(path.read_text() + broken + "\n" + json.dumps(good) + "\n")
            self.fails(path, says="results.jsonl: line 2: not JSON")
            path.write_text(json.dumps(header()) + "\n" + broken + "\n")
            self.fails(path, says="results.jsonl: line 2: not JSON")

    def test_results_are_not_overwritten(self):
        path = self.file(header(), sample("a", [True]))
        before = path.read_text()
        self.fails(path, "--out", path, says="is one of the results")
        self.assertEqual(path.read_text(), before)

    def test_a_page_that_cannot_be_written_leaves_nothing(self):
        (self.folder / "folder").mkdir()
        path = self.file(header(), sample("a", [True]))
        self.fails(path, "--out", self.folder / "folder", says="folder")
        self.assertFalse((self.folder / "folder.partial").exists())
        self.fails(path, "--out", self.folder / "none" / "page.html", says="page.html")


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
