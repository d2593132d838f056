"""Answers read from texts: hand-written cases, files named by tasks, and every record of LLM-Adapters' real files."""

import json
import re
from collections import Counter

import pytest

from nas_llm.data.questions import Question, question
from nas_llm.data.template import alpaca_prompt
from nas_llm.evaluation.answers import FORMS, NUMBER, TASKS, AnswerRule, rule_of
from nas_llm.evaluation.task_files import content_of, read_tasks, task_of

KEY = "objectives.generated_accuracy.test_path"
COMMONSENSE = ("boolq", "piqa", "social_i_qa", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")


@pytest.mark.parametrize(
    ("task", "text", "read"),
    [
        ("boolq", "the correct answer is true", "true"),
        ("boolq", "false, although some say true", "false"),
        ("boolq", "True", None),
        ("piqa", "solution2 is better than solution1", "solution2"),
        ("piqa", "solution3", None),
        ("social_i_qa", "the correct answer is answer3", "answer3"),
        ("ARC-Easy", "answer5", "answer5"),
        ("ARC-Challenge", "answer12", "answer1"),  # as LLM-Adapters reads it
        ("hellaswag", "the correct answer is ending4", "ending4"),
        ("winogrande", "option1option2", "option1"),
        ("openbookqa", "the answer is 2", None),
        ("gsm8k", "12 + 30 = 42 eggs. The answer is 42.", "42."),
        ("gsm8k", "It costs $1,234.50 in all", "1234.50"),
        ("mawps", "3 - 5 = -2", "-2"),
        ("SVAMP", "many", None),
        ("AQuA", "Bill's speed is 12. The answer is (D).", "D"),
        ("AQuA", "A man ... so the answer is B", "B"),
        ("AQuA", "The answer is 3", None),
    ],
)
def test_answers_by_hand(task, text, read):
    assert TASKS[task].read(text) == read


@pytest.mark.parametrize(
    ("read", "answer", "right"),
    [
        ("42.", "42.0", True),
        ("0.333", "0.3335", True),
        ("0.333", "0.335", False),
        ("1000", "1,000", True),
        ("-2", "2", False),
        (None, "2", False),
    ],
)
def test_numbers_are_equal_within_a_thousandth(read, answer, right):
    assert NUMBER.is_right(read, answer) is right


def test_a_settled_text_is_read_alike_whatever_follows():
    texts = ["the correct answer is ", "the correct answer is answer3", "answer", "So it is 4", "So A"]
    for task, rule in TASKS.items():
        for text in texts:
            if rule.settled(text):
                assert {rule.read(text + more) for more in ("", "5", " answer1 B 7", "true")} == {rule.read(text)}, task
    assert TASKS["ARC-Easy"].settled(texts[1])
    assert not TASKS["gsm8k"].settled(texts[3])
    assert not TASKS["AQuA"].settled(texts[4])
    sentence = AnswerRule("cat|dog", counts="last", ends=".")
    assert not sentence.settled("a cat and a dog")
    assert sentence.settled("a cat and a dog.")
    assert sentence.read("a cat and a dog. A cat.") == "dog"


def asked(answer, task="", pattern=None):
    return Question(task, "prompt", answer, "file, record 3", pattern)


def test_the_rule_of_a_mixed_set_follows_from_the_answer():
    for answer, task in {
        "true": "boolq",
        "solution1": "piqa",
        "answer4": "openbookqa",
        "ending2": "hellaswag",
        "option2": "winogrande",
        "E": "AQuA",
        "1,250.5": "gsm8k",
    }.items():
        assert rule_of(asked(answer)) == TASKS[task]
        assert sum(rule.gives(answer) for rule in FORMS) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (asked("maybe"), "file, record 3: answer='maybe' is of no form that can be read"),
        (asked("True", "boolq"), "answer='True' can never be read from a text: answers of boolq match true|false"),
        (asked("answer6", "ARC-Easy"), "answer='answer6' can never be read"),
        (asked("F", "AQuA"), "answer='F' can never be read"),
        (asked("1/2", "gsm8k"), "answer='1/2' can never be read"),
        (asked("1e-05", "gsm8k"), "answer='1e-05' can never be read"),
        (asked("true", "boolqa"), "the task 'boolqa' is not known: did you mean boolq? Known are boolq, piqa"),
        (asked("5.0", "GSM8k"), "did you mean gsm8k?"),
        (
            asked("lion", "animals", "cat|dog"),
            "answer='lion' can never be read from a text: answers of animals match cat",
        ),
    ],
)
def test_answers_that_no_text_could_give_are_refused(given, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        rule_of(given)


def test_records_become_the_prompts_of_training():
    record = {"instruction": "Add.", "input": "1 and 2", "output": "3 it is", "answer": 3}
    made = question(record, "here", "gsm8k")
    assert (made.prompt, made.answer) == (alpaca_prompt("Add.", "1 and 2"), "3")
    assert question({**record, "input": ""}, "here").prompt == alpaca_prompt("Add.")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"instruction": "Add."}, "no field 'answer'"),
        ({"instruction": "Add.", "answer": None}, "'answer' must be a string, found null"),
        ({"instruction": "Add.", "answer": " "}, "'answer' is empty"),
        ({"instruction": "Add.", "answer": True}, "'answer' must be a string, found bool"),
        ({"answer": "3"}, "no field 'instruction'"),
    ],
)
def test_records_that_ask_nothing_are_named(record, says):
    with pytest.raises(ValueError, match=says):
        question(record, "file, record 2")


def write(folder, name, answers, question="Is it {}?"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"instruction": question.format(i), "answer": a} for i, a in enumerate(answers)]))
    return path


def test_files_are_named_by_their_tasks(tmp_path):
    write(tmp_path, "boolq/test.json", ["true", "false"])
    write(tmp_path, "boolq/train.json", ["true"] * 3)
    write(tmp_path, "piqa/train.json", ["solution1"])
    lines = write(tmp_path, "gsm8k.jsonl", [])
    lines.write_text('{"instruction": "How many?", "answer": "5.0"}\n')
    found = read_tasks(str(tmp_path), "test", KEY)
    assert {task: [q.answer for q in members] for task, members in found.items()} == {
        "boolq": ["true", "false"],
        "gsm8k": ["5.0"],
    }
    chosen = read_tasks(str(tmp_path), "validation", KEY, tasks=["piqa", "boolq"], limit=2)
    assert {task: len(members) for task, members in chosen.items()} == {"piqa": 1, "boolq": 2}
    listed = read_tasks([str(lines), str(tmp_path / "boolq" / "test.json")], "test", KEY)
    assert list(listed) == ["gsm8k", "boolq"]
    assert read_tasks(str(tmp_path / "boolq"), "test", KEY).keys() == {"boolq"}
    assert set(content_of(str(tmp_path), "test", KEY).values()) == {tmp_path / "boolq" / "test.json", lines}


@pytest.mark.parametrize(
    ("files", "path", "tasks", "says"),
    [
        ({}, "nowhere", None, f"{KEY}=.*nowhere: no such file or folder"),
        ({"notes/readme.json": ["true"]}, "", None, "the folder holds no TASK/test.json, nor TASK.json, of boolq"),
        ({"bolq/test.json": ["true"]}, "", None, "the task 'bolq' is not known: did you mean boolq"),
        ({"boolq/test.json": []}, "", None, "is empty: no records in it"),
        ({"boolq/test.json": ["true", "yes"]}, "", None, "record 2: answer='yes' can never be read"),
        ({"boolq/test.json": ["true"], "boolq.json": ["false"]}, "", None, "are both of the task boolq"),
        ({"boolq/test.json": ["true"]}, "", ["piqa"], "tasks=piqa: .* has no file of it \\(of boolq\\)"),
        ({"boolq/test.json": ["true"]}, "", ["pica"], "the task 'pica' is not known: did you mean piqa"),
        ({"boolq/test.json": ["true"]}, "", [], "leaves nothing to ask"),
    ],
)
def test_files_that_ask_nothing_are_refused(tmp_path, files, path, tasks, says):
    for name, answers in files.items():
        write(tmp_path, name, answers)
    with pytest.raises(ValueError, match=says) as caught:
        read_tasks(str(tmp_path / path), "test", KEY, tasks=tasks)
    assert "\n" not in str(caught.value)


SIZES = {"boolq": 3270, "piqa": 1838, "social_i_qa": 1954, "winogrande": 1267, "ARC-Easy": 2376, "ARC-Challenge": 1172}
SIZES |= {"openbookqa": 500, "AQuA": 254, "mawps": 238, "gsm8k": 1319, "SVAMP": 1000}
# How many of a math file's own outputs, written by a model, state the right answer: their rationales are often wrong.
RIGHT = {"AQuA": 123, "gsm8k": 771, "SVAMP": 803, "MultiArith": 560, "AddSub": 370, "SingleEq": 484, "mawps": 0}


@pytest.mark.real
def test_every_real_test_file_is_read_whole(shared_data):
    found = read_tasks(str(shared_data / "eval" / "llm_adapters"), "test", KEY)
    assert {task: len(found[task]) for task in SIZES} == SIZES
    assert {task_of(shared_data / "eval" / "llm_adapters" / task / "test.json", KEY) for task in found} == set(found)


@pytest.mark.real
@pytest.mark.parametrize("name", ["test", "train"])
@pytest.mark.parametrize("task", COMMONSENSE)
def test_every_commonsense_output_gives_its_answer(shared_data, task, name):
    path = shared_data / "eval" / "llm_adapters" / task / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} of {task} is not among the data")
    records = json.loads(path.read_text())
    wrong = [r for r in records if not TASKS[task].is_right(TASKS[task].read(r["output"]), r["answer"])]
    assert wrong == []
    assert {rule_of(question(record, task)) for record in records} == {TASKS[task]}


@pytest.mark.real
@pytest.mark.parametrize("task", RIGHT)
def test_math_outputs_give_the_answers_that_they_state(shared_data, task):
    """What is read is what each rationale states (but for those that go on with other numbers); how many are right was
    counted beside the data."""
    records = json.loads((shared_data / "eval" / "llm_adapters" / task / "test.json").read_text())
    rule = TASKS[task]
    read = [rule.read(record["output"]) for record in records]
    said = [re.search(r"answer is \(?\$?(-?[\d,.]*\d|[A-E]\b)", record["output"]) for record in records]
    stated = [(r, s[1].replace(",", "")) for r, s in zip(read, said, strict=True) if s is not None]
    differing = [(r, s) for r, s in stated if not rule.is_right(r, s)]
    assert len(differing) <= 0.02 * len(stated), Counter(differing).most_common(5)
    right = [rule.is_right(r, record["answer"]) for r, record in zip(read, records, strict=True)]
    assert sum(right) == RIGHT[task]
    assert all(rule.gives(record["answer"]) for record in records)
