"""The folder of a run: which one it is, where it is gone on from, and what is made once."""

import json

import pytest

from ugap.errors import InputError
from ugap.training.run_folder import made_once, note_run, open_run

SETTINGS = {"program": "sft", "data": ["a"]}


@pytest.fixture
def checkpoint(tmp_path):
    def make(step, whole=True):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}" if whole else '{"log_history": [{"step"')
        return folder

    return make


def test_a_new_run(tmp_path):
    assert open_run(tmp_path, None, SETTINGS) is None
    assert open_run(tmp_path / "none", "no", SETTINGS) is None


@pytest.mark.parametrize("word", ["yes", "True"])
def test_the_last_checkpoint_that_was_finished(word, checkpoint, tmp_path):
    for step in (5, 10, 100):
        checkpoint(step, whole=step != 100)
    (tmp_path / "checkpoint-200").mkdir()
    note_run(tmp_path, SETTINGS)
    assert open_run(tmp_path, word, SETTINGS) == tmp_path / "checkpoint-10"


def test_a_run_without_a_checkpoint_starts_again(tmp_path):
    note_run(tmp_path, SETTINGS, config={"seed": 1})
    assert open_run(tmp_path, "yes", SETTINGS) is None


def test_a_checkpoint_by_its_path(checkpoint, tmp_path):
    path = checkpoint(5)
    assert open_run(tmp_path / "new", str(path), SETTINGS) == path
    note_run(tmp_path, {**SETTINGS, "data": ["b"]})
    with pytest.raises(InputError, match=r"the run there has data \['b'\], not \['a'\]"):
        open_run(tmp_path / "new", str(path), SETTINGS)


def test_a_setting_that_the_record_does_not_have_is_no_difference(tmp_path):
    note_run(tmp_path, {"program": "sft"})
    assert open_run(tmp_path, "yes", SETTINGS) is None


@pytest.mark.parametrize("text", ["", "[]", '{"settings": 1}', "{}"])
def test_a_damaged_record(text, tmp_path):
    (tmp_path / "ugap_run.json").write_text(text)
    with pytest.raises(InputError, match="not the record of a run"):
        open_run(tmp_path, "yes", SETTINGS)


def test_rows_are_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return [{"n": 1, "text": "naß\u2028"}, {"n": 2, "text": ""}]

    path = tmp_path / "new" / "rows.jsonl"
    first = made_once(path, make)
    assert made_once(path, make) == first == make()
    assert len(made) == 2
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == first


@pytest.mark.parametrize("text", ["", "{", "[1]\n", "1\n"])
def test_rows_that_cannot_be_read(text, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"rows\.jsonl: not JSON lines"):
        made_once(path, list)


def test_what_cannot_be_made_leaves_nothing(tmp_path):
    def fail():
        raise InputError("no")

    with pytest.raises(InputError):
        made_once(tmp_path / "rows.jsonl", fail)
    assert list(tmp_path.iterdir()) == []
