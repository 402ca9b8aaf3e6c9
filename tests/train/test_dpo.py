"""`ugap train dpo` on a tiny model: its pairs, what a run leaves, and how it goes on."""

import json
import os

import pytest
import torch


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """A run of four steps."""
    return train("dpo", tmp_path_factory.mktemp("dpo") / "run")


def pairs(folder):
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]


def test_creative_pairs_are_ranked_by_the_reward(finished):
    creative = [pair for pair in pairs(finished) if pair["domain"] == "creative"]
    assert creative
    assert all(1 >= pair["chosen_reward"] >= pair["rejected_reward"] + 0.01 for pair in creative)
    assert all(len(pair["chosen_ids"]) <= 12 and len(pair["prompt_ids"]) == 9 for pair in creative)


def test_functional_pairs_have_their_share(finished):
    found = pairs(finished)
    functional = [pair for pair in found if pair["domain"] == "functional"]
    assert len(functional) == round(0.3 / 0.7 * (len(found) - len(functional)))
    assert all(pair["chosen"] != pair["rejected"] for pair in functional)


def test_the_card_holds_the_first_and_the_last_look(finished, evaluations):
    first, *_, last = evaluations(finished)
    name = "ugap/creative/nll_gap"
    card = (finished / "README.md").read_text()
    assert f"| creative: gap in surprisal | {first[name]:+.2f} | {last[name]:+.2f} |" in card
    assert "- ugap\n" in card


def test_a_run_that_goes_on_takes_its_pairs_again(finished, interrupted, train, weights, evaluations, tmp_path):
    folder = interrupted(finished, tmp_path / "run")
    before = os.stat(folder / "pairs.jsonl").st_mtime_ns
    train("dpo", folder, "--resume_from_checkpoint", "yes")
    assert os.stat(folder / "pairs.jsonl").st_mtime_ns == before
    assert evaluations(folder) == evaluations(finished)
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, weights(finished)[name], msg=name)


def test_a_run_without_a_checkpoint_starts_again_with_its_pairs(finished, train, weights, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("ugap_run.json", "pairs.jsonl"):
        (folder / name).write_bytes((finished / name).read_bytes())
    train("dpo", folder, "--resume_from_checkpoint", "yes", "--max_steps", "1", "--eval_every", "0")
    assert pairs(folder) == pairs(finished)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["adapter", "full"])
def test_other_starts(start, finished, train, evaluations, weights, tmp_path):
    more = ("--adapter", str(finished)) if start == "adapter" else ("--full",)
    short = ("--max_steps", "2", "--eval_every", "0", "--save_steps", "1")
    folder = train("dpo", tmp_path / "run", *more, *short)
    assert [evaluation["step"] for evaluation in evaluations(folder)] == [0, 2]
    if start == "adapter":
        # TRL compares with a frozen copy of the adapter; what is saved is the trained one.
        assert (folder / "ref" / "adapter_model.safetensors").is_file()
        name = min(weights(folder))
        assert not torch.equal(weights(folder)[name], weights(finished)[name])
        torch.testing.assert_close(weights(folder / "ref")[name], weights(finished)[name])
    again = tmp_path / "again"
    again.mkdir()
    for name in ("ugap_run.json", "pairs.jsonl", "checkpoint-1"):
        (again / name).symlink_to(folder / name)
    train("dpo", again, *more, *short, "--resume_from_checkpoint", "yes")
    first, second = ((path / "README.md").read_text().partition("## Human")[2] for path in (folder, again))
    assert first == second
