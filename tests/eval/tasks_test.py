"""The generated tasks: equal seeds give equal samples, lengths are as asked, and a second reading of each prompt, by
rules of its own, comes to the answers that the generator gives. The first argument is the witan program."""

import collections
import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "eval"))

import counting
import tasks
from tasks import documents, lexicon

WITAN = sys.argv[1]

_RECORD = re.compile(r"\bThe (\w+) of (\w+) is (\w+)\.")
# A sample as it has been since the first release.
_PINNED_VALUES = ("horse",)
_PINNED_LINE = "The animal of Arthur is horse."
_count = counting.PieceCounter.estimate


def make(task, variant, length, index, turns=3, purpose="eval"):
    room = tasks.Room(length, _count, turns)
    return tasks.EVAL_TASKS[task][variant](tasks.rng_of(purpose, task, variant, length, index), room)


def samples(task, variant, lengths=(64, 150, 700, 3000), count=12):
    """Samples of several lengths; those too long for a length are left out, but not all."""
    made = []
    for length in lengths:
        for index in range(count):
            try:
                made.append((length, make(task, variant, length, index)))
            except tasks.NoRoom:
                continue
    assert made, f"{task}:{variant} fits in no length"
    return made


def each_variant():
    return [(task, variant) for task, variants in tasks.EVAL_TASKS.items() for variant in variants]


def in_orders(made, turn, count=3, number=4):
    """The sample with this turn alone, its text in documents of several orders; [] where the text is too short."""
    one = dataclasses.replace(made, turns=(turn,))
    try:
        found = documents.in_orders(tasks.rng_of("eval", turn.question), one, count, number)
    except tasks.NoRoom:
        return []
    return [dataclasses.replace(one, document="".join(texts), turns=(dataclasses.replace(turn, evidence=evidence),))
            for texts, evidence in found]  # fmt: skip


def facts_of(document):
    """{(attribute, key): [values]} of the records in a document, bulleted ones as "value"."""
    facts = collections.defaultdict(list)
    for line in document.split("\n"):
        if bullet := re.fullmatch(r"- (\w+): (\w+)", line):
            facts["value", bullet[1]].append(bullet[2])
    for attribute, key, value in _RECORD.findall(document):
        facts[attribute, key].append(value)
    return facts


def left_to_right(expression):
    """7 + 12 - 3 without precedence."""
    terms = expression.split()
    total = int(terms[0])
    for sign, right in zip(terms[1::2], terms[2::2]):
        total = {"+": total + int(right), "-": total - int(right), "*": total * int(right)}[sign]
    return total


class GeneratorTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def for_each_sample(self, task, variant, check):
        for length, made in samples(task, variant):
            for turn in made.turns:
                with self.subTest(task=task, variant=variant, length=length, question=turn.question[:200]):
                    check(made, turn)
                    if documents.why_not(task, variant) is None:
                        for reordered in in_orders(made, turn):
                            check(reordered, *reordered.turns)

    def test_equal_seeds_give_equal_samples_and_others_do_not(self):
        for task, variant in each_variant():
            with self.subTest(task=task, variant=variant):
                self.assertEqual(make(task, variant, 1500, 1), make(task, variant, 1500, 1))
                self.assertNotEqual(make(task, variant, 1500, 1), make(task, variant, 1500, 2))
                self.assertNotEqual(make(task, variant, 1500, 1), make(task, variant, 1500, 1, purpose="train"))

    def test_samples_are_the_same_in_every_release(self):
        # Published figures are about these very prompts. Where this changes, they must be measured again.
        made = make("following", "hops", 96, 0, turns=1)
        self.assertEqual(made.turns[0].values, _PINNED_VALUES, made)
        self.assertEqual(made.document.split("\n")[0], _PINNED_LINE)

    def test_samples_fit_in_their_length(self):
        for task, variant in each_variant():
            for length, made in samples(task, variant):
                text = "".join(given + reply for given, reply in made.raw_parts())
                with self.subTest(task=task, variant=variant, length=length):
                    self.assertLessEqual(_count(text), length)

    def test_documents_fill_their_length(self):
        fixed = {"running", "columns", "few_shot"}  # as long as they are
        for task, variant in each_variant():
            if variant in fixed or task == "lists":
                continue
            for length in (1024, 4096):
                sizes = []
                for index in range(8):
                    made = make(task, variant, length, index, turns=1)
                    sizes.append(_count("".join(given + reply for given, reply in made.raw_parts())))
                with self.subTest(task=task, variant=variant, length=length):
                    self.assertGreater(sum(sizes) / len(sizes), 0.8 * length)

    def test_many_turns_leave_half_of_the_room_to_the_document(self):
        for task, variant in each_variant():
            for turns in (3, 20, 1000):
                with self.subTest(task=task, variant=variant, turns=turns):
                    made = make(task, variant, 1024, 1, turns=turns)
                    if len(made.turns) > 1 and made.document:
                        self.assertGreater(_count(made.document), 0.4 * 1024)

    def test_as_many_turns_are_made_as_fit(self):
        for task, variant in each_variant():
            if task in ("long_answer", "ruler", "language"):
                continue
            with self.subTest(task=task, variant=variant):
                turns = [len(make(task, variant, 1024, index, turns=1000).turns) for index in range(8)]
                self.assertGreater(sum(turns) / len(turns), 4)

    def test_the_expected_reply_scores_full_marks_and_none_gets_none(self):
        tasks_file, replies = self.folder / "tasks.jsonl", self.folder / "replies.jsonl"
        with open(tasks_file, "w", encoding="utf-8") as lines, open(replies, "w", encoding="utf-8") as given:
            for task, variant in each_variant():
                turns = [turn for _, made in samples(task, variant) for turn in made.turns]
                for i, turn in enumerate(turns):
                    for name, reply in (("right", turn.answer), ("empty", ""), ("odd", "?")):
                        line = {"id": f"{task}/{variant}/{i}/{name}", "task": name, "prompt": "-", "max_tokens": 1}
                        line |= {"answers": turn.values, "scoring": turn.scoring}
                        lines.write(json.dumps(line) + "\n")
                        given.write(json.dumps({"id": line["id"], "reply": reply}) + "\n")
        out = self.folder / "results.jsonl"
        command = [WITAN, "eval", "--tasks", tasks_file, "--replies", replies, "--out", out]
        subprocess.run(command, check=True, capture_output=True)
        for line in out.read_text(encoding="utf-8").splitlines()[1:]:
            result = json.loads(line)
            if result["task"] == "right":
                self.assertEqual(set(result["correct"]), {True}, line)
            else:
                self.assertNotIn(True, result["correct"], line)

    def test_evidence_is_in_the_document_at_the_places_given(self):
        for variant in ("one_key", "two_keys", "needle"):

            def check(made, turn):
                at = made.document.index(turn.answer.lstrip("- ")) / len(made.document)
                self.assertAlmostEqual(turn.evidence[0], at, delta=0.25)

            self.for_each_sample("retrieval", variant, check)

    def test_retrieval(self):
        def check(made, turn):
            facts = facts_of(made.document)
            attribute = re.search(r"the (\w+) of|each (\w+) of", turn.question)
            attribute = attribute[1] or attribute[2]
            keys = re.search(r"of (?:each of these: )?([\w, ]+)\?", turn.question)[1].split(", ")
            expected = [value for key in keys for value in facts[attribute, key]]
            self.assertEqual(list(turn.values), expected)

        for variant in tasks.TASKS["retrieval"]:
            self.for_each_sample("retrieval", variant, check)

    def test_variables_follow_to_their_numbers(self):
        def check(made, turn):
            assigned = dict(re.findall(r"Set (\w+) = (\w+)\.", made.document))
            at = re.search(r"What is (\w+)\?", turn.question)[1]
            while at in assigned:
                at = assigned[at]
            self.assertEqual(turn.values, (at,))
            self.assertTrue(at.isdigit())

        self.for_each_sample("following", "variables", check)

    def test_hops_follow_from_fact_to_fact(self):
        def check(made, turn):
            facts = facts_of(made.document)
            self.assertTrue(all(len(values) == 1 for values in facts.values()))
            *relations, start = re.fullmatch(r"What is (.*)\?", turn.question)[1].split(" of ")
            at = start
            for relation in reversed(relations):
                (at,) = facts[relation.removeprefix("the "), at]
            self.assertEqual(turn.values, (at,))

        self.for_each_sample("following", "hops", check)

    def test_arithmetic_is_right_at_every_step(self):
        def check(made, turn):
            for left, right in re.findall(r"([\d +*-]*\d) = (\d+)", turn.answer):
                self.assertEqual(left_to_right(left), int(right))
            numbers = re.findall(r"\d+", turn.question)
            if "Compute" in turn.question:
                expected = left_to_right(turn.question[len("Compute ") : -1])
            elif "Add" in turn.question:
                expected = sum(map(int, numbers))
            else:
                facts = facts_of(made.document)
                attribute, keys = re.search(r"total (\w+) of (.*)\?", turn.question).groups()
                expected = sum(int(facts[attribute, key][0]) for key in re.split(r", | and ", keys))
            self.assertEqual(turn.values, (str(expected),))

        for variant in tasks.TASKS["arithmetic"]:
            self.for_each_sample("arithmetic", variant, check)

    def test_long_answers(self):
        def value_of(question, facts, answers):
            if earlier := re.fullmatch(r"Add (\d+) to Answer_(\d+)\.", question):
                return answers[int(earlier[2]) - 1] + int(earlier[1])
            if start := re.search(r"items that \w+ has is (\d+)", question):
                total = int(start[1])
                for more, less, times in re.findall(r"buys (\d+)|away (\d+)|multiplied by (\d+)", question):
                    total = total + int(more) if more else total - int(less) if less else total * int(times)
                return total
            return sum(int(facts[fact][0]) for fact in re.findall(r"the (\w+) of (\w+)", question))

        def check(made, turn):
            facts = facts_of(made.document)
            answers = []
            for i, line in enumerate(turn.question.split("\n")):
                label, question = line.split(": ", 1)
                self.assertEqual(label, f"Question_{i + 1}")
                answers.append(value_of(question, facts, answers))
            self.assertEqual(turn.values, tuple(map(str, answers)))

        for variant in tasks.TASKS["long_answer"]:
            self.for_each_sample("long_answer", variant, check)

    def test_twenty_questions_fit_where_they_are_asked_for(self):
        for length in (1536, 2048, 4096):
            self.assertEqual(len(make("long_answer", "k20", length, 0).turns[0].values), 20)

    def test_lists(self):
        def check(made, turn):
            items = turn.question.rpartition(": ")[2].rstrip(".").split(", ")
            if group := re.match(r"Count the (\w+)", turn.question):
                self.assertEqual(turn.values, (str(sum(item in lexicon.GROUPS[group[1]] for item in items)),))
                return
            half, expected = len(items) // 2, None
            for words, result in {
                "Copy": items, "Reverse": list(reversed(items)), "first half": items[0:half],
                "second item": [item for i, item in enumerate(items) if i % 2], "without its first": items[1:],
                "without its last": items[: len(items) - 1], "then the first": [items[len(items) - 1], items[0]],
            }.items():  # fmt: skip
                if words in turn.question:
                    expected = result
            self.assertEqual(list(turn.values), expected)

        for variant in ("rewrite", "choose"):
            self.for_each_sample("lists", variant, check)

    def test_few_shot_cases_follow_the_rule_of_their_examples(self):
        def check(made, turn):
            shots = re.findall(r"Input: (.*)\nOutput: (.*)\n", made.document)
            asked = turn.question.removeprefix("Input: ").split()
            renamed = {given.split()[0]: out.split()[0] for given, out in shots}
            added = shots[0][1].split()[-1]
            rules = (
                lambda w: w[::-1], lambda w: [w[0], *w], lambda w: w[1:], lambda w: [*w, added],
                lambda w: [renamed.get(w[0]), *w[1:]],
            )  # fmt: skip
            fitting = [rule for rule in rules if all(rule(a.split()) == b.split() for a, b in shots)]
            self.assertIn(turn.values[0], [" ".join(map(str, rule(asked))) for rule in fitting])

        self.for_each_sample("lists", "few_shot", check)

    def test_ruler_needles_are_hidden_once(self):
        for variant in ("single", "multi_key", "multi_key_only", "multi_value", "multi_query"):

            def check(made, turn):
                names = re.search(r"numbers for (.*) in the text", turn.question)[1].split(", ")
                hidden = re.findall(r"numbers for (\S+) is (\d+)\.", made.document)
                expected = sorted(value for name, value in hidden if name in names)
                self.assertEqual(sorted(turn.values), expected)

            self.for_each_sample("ruler", variant, check)

    def test_ruler_variables_share_their_value(self):
        def check(made, turn):
            values = {}
            for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", made.document):
                values[name] = values.get(value, value)
            wanted = re.search(r"value (\d+)", turn.question)[1]
            self.assertEqual(sorted(turn.values), sorted(name for name, value in values.items() if value == wanted))

        self.for_each_sample("ruler", "variable_tracking", check)

    def test_ruler_frequent_words_are_the_most_frequent(self):
        for variant in ("common_words", "frequent_words"):

            def check(made, turn):
                counts = collections.Counter(re.findall(r"\d+\. (\w+)", made.document)).most_common()
                wanted = len(turn.values)
                self.assertEqual({word for word, _ in counts[:wanted]}, set(turn.values))
                self.assertGreater(counts[wanted - 1][1], counts[wanted][1])

            self.for_each_sample("ruler", variant, check)

    def test_knowledge_is_not_in_the_text(self):
        known = {"France": "Paris", "Japan": "Tokyo", "gold": "79", "iron": "26"}
        asked = set()
        for variant in ("capitals", "elements"):

            def check(made, turn):
                subject = re.search(r" of ([\w ]+)\?", turn.question)[1]
                self.assertNotIn(turn.values[0], made.document)
                self.assertEqual(turn.values[0], known.get(subject, turn.values[0]))
                self.assertEqual(turn.evidence, ())
                asked.add(subject)

            self.for_each_sample("knowledge", variant, check)
        self.assertLess(set(known), asked)


class DocumentsTest(unittest.TestCase):
    def test_each_variant_can_be_cut_or_says_why_not(self):
        for task, variant in each_variant():
            self.assertNotIn("not known", documents.why_not(task, variant) or "", (task, variant))
        self.assertIn("not known", documents.why_not("cooking", "soup"))

    def test_a_text_is_cut_in_documents_of_about_the_same_length(self):
        for task, variant in each_variant():
            if documents.why_not(task, variant):
                continue
            for index in range(6):
                made = make(task, variant, 1024, index, turns=1)
                texts, evidence = documents.in_orders(tasks.rng_of("eval"), made, 7, 1)[0]
                with self.subTest(task=task, variant=variant, index=index):
                    self.assertEqual("".join(texts).split(), made.document.split(), "the first order is the text's own")
                    self.assertTrue(all(text.endswith((".\n", "\n")) and text.strip() for text in texts))
                    self.assertLess(max(map(len, texts)), 1.6 * min(map(len, texts)))
                    for place, kept in zip(made.turns[0].evidence, evidence):
                        self.assertAlmostEqual(place, kept, delta=0.03)

    def test_sentences_stay_whole(self):
        made = make("retrieval", "needle", 1024, 0, turns=1)
        sentences = set(re.split(r"(?<=\.)\s+", made.document.strip()))
        for texts, _ in documents.in_orders(tasks.rng_of("eval"), made, 40, 3):
            for text in texts:
                self.assertLessEqual(set(re.split(r"(?<=\.)\s+", text.strip())), sentences)

    def test_orders_differ_and_have_the_same_documents(self):
        made = make("following", "hops", 1024, 0, turns=1)
        found = [tuple(texts) for texts, _ in documents.in_orders(tasks.rng_of("eval"), made, 4, 24)]
        self.assertEqual(len(set(found)), 24)
        self.assertEqual({tuple(sorted(texts)) for texts in found}, {tuple(sorted(found[0]))})
        self.assertEqual(len({texts[0] for texts in found[:4]}), 4, "none begins as one before")
        with self.assertRaises(tasks.NoRoom):
            documents.in_orders(tasks.rng_of("eval"), made, 500, 1)


class WordsTest(unittest.TestCase):
    def test_lists_of_words_hold_none_twice(self):
        lists = {name: value for name, value in vars(lexicon).items() if isinstance(value, tuple) and name.isupper()}
        for name, words in lists.items():
            if name not in ("CONNECTING", "OPENING"):
                self.assertEqual([w for w, n in collections.Counter(words).items() if n > 1], [], name)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
