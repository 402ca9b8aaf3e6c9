import json
from decimal import Decimal

import pytest

from ugap.errors import InputError
from ugap.study.probes.facts import compare
from ugap.study.probes.questions import PROMPT, ask_questions, last_number, load_questions

ROWS = [
    {"question": "What is two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
    {"question": " How many? ", "answer": "It is 1,200 or so: 1,250."},
    {"question": "How cold?", "answer": "#### -7.5"},
]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 4 eggs at $2 make $8.", "8"),
        ("1,234,567", "1234567"),
        ("1, 2", "2"),
        ("The sum is 1200.50 dollars", "1200.5"),
        ("It fell to -3", "-3"),
        ("8-3", "3"),
        ("(8)-3", "3"),
        ("about .5", "0.5"),
        ("18.0", "18"),
        ("12,5", "5"),
        ("x2", "2"),
    ],
)
def test_the_last_number(text, number):
    assert last_number(text) == Decimal(number)


def test_no_number():
    assert last_number("none at all, and no - or .") is None


def test_questions_from_a_file(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    questions = load_questions(str(path))
    assert [(one.id, one.question) for one in questions] == [
        ("1", "What is two and two?"),
        ("2", "How many?"),
        ("3", "How cold?"),
    ]
    assert [one.answer for one in questions] == [4, 1250, Decimal("-7.5")]
    assert load_questions(str(path), limit=2) == questions[:2]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ({"question": "How many?", "answer": "who knows"}, "row 1: the answer holds no number"),
        ({"question": " ", "answer": "1"}, "row 1: the question is empty"),
        ({"question": None, "answer": "1"}, "row 1: the question is empty"),
        ({"question": "How many?"}, "row 1: no column 'answer'"),
    ],
)
def test_bad_files(line, cause, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(InputError, match=cause):
        load_questions(str(path))
    path.write_text("")
    with pytest.raises(InputError, match="there are no questions"):
        load_questions(str(path))
    with pytest.raises(InputError, match="limit is 0"):
        load_questions(str(path), limit=0)


def test_asked_greedily_and_compared(tmp_path, tiny_model, tokenizer):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    questions = load_questions(str(path))
    done: list[int] = []
    bos = [tokenizer.bos_token_id]
    result = ask_questions(
        tiny_model, tokenizer, questions, bos=bos, max_new_tokens=6, batch_size=2, advance=done.append
    )
    assert done == [2, 1]
    assert result.ids == ("1", "2", "3")
    # What a batch says is what each says alone.
    for one, said, right in zip(questions, result.said, result.right, strict=True):
        alone = ask_questions(tiny_model, tokenizer, [one], bos=bos, max_new_tokens=6)
        assert alone.said == (said,)
        assert right == (last_number(said) == one.answer)
    assert compare([result], [result]).test == "mcnemar"


def test_another_question_of_the_model_does_not_count(monkeypatch, tiny_model, tokenizer, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    said = f" It is 4.\n{PROMPT.format(question='And 3 and 3?')} 6"
    monkeypatch.setattr("ugap.study.probes.questions.generate_continuations", lambda *_, **__: [said])
    result = ask_questions(tiny_model, tokenizer, load_questions(str(path)), bos=[])
    assert (result.said, result.right.tolist()) == ((" It is 4.",), [True])
