"""`ugap train grpo` on a tiny model: what a run leaves, how it goes on, and where completions come from."""

import json
import shutil
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """A run of four steps with a constraint."""
    return train("grpo", tmp_path_factory.mktemp("grpo") / "run")


def history(folder, step):
    """The log of a checkpoint."""
    return json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]


def test_both_rewards_and_the_constraint_are_logged(finished):
    logs = [log for log in history(finished, 4) if "reward" in log]
    assert [log["step"] for log in logs] == [1, 2, 3, 4]
    assert all(-1 <= log["rewards/uncertainty_reward/mean"] <= 2 for log in logs)
    assert any(log.get("rewards/factuality_reward/mean") is not None for log in logs)
    assert all(log["constraint/factuality/limit"] == pytest.approx(1.02) for log in logs)
    assert all(log["completions/max_length"] <= 12 for log in logs)


def test_looks_are_drawn_as_in_training(train, finished, evaluations, tmp_path):
    folder = train("grpo", tmp_path / "run", "--temperature", "0.3", "--max_steps", "1", "--eval_every", "0")
    assert "temperature 0.3" in (folder / "README.md").read_text()
    assert "temperature 1.0" in (finished / "README.md").read_text()
    name = "ugap/creative/nll_gap"
    assert evaluations(folder)[0][name] != evaluations(finished)[0][name]


def test_the_card_holds_the_first_and_the_last_look(finished, evaluations):
    first, *_, last = evaluations(finished)
    name = "ugap/creative/entropy_gap"
    row = f"| creative: gap in entropy | {first[name]:+.2f} | {last[name]:+.2f} |"
    assert row in (finished / "README.md").read_text()


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(finished, interrupted, train, weights, tmp_path):
    folder = train("grpo", interrupted(finished, tmp_path / "run"), "--resume_from_checkpoint", "yes")
    names = ("reward", "num_tokens", "constraint/factuality/cost", "constraint/factuality/lambda")
    for found, expected in zip(history(folder, 4), history(finished, 4), strict=True):
        assert [found.get(name) for name in names] == [expected.get(name) for name in names]
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, weights(finished)[name], msg=name)


def test_rollouts_at_human_uncertainty(train, tmp_path):
    more = ("--rollouts", "human", "--max_steps", "2", "--eval_every", "0", "--max_completion_length", "8")
    folder = train("grpo", tmp_path / "run", *more)
    assert "(human_weight 1.0, human_kind creative" in (folder / "README.md").read_text()
    assert len([log for log in history(folder, 2) if "reward" in log]) == 2


def test_texts_to_write_like(train, words, like_file, refused, tmp_path, capsys, caplog):
    mine = tmp_path / "mine.txt"
    mine.write_text(Path(like_file).read_text())
    more = ("--rollouts", "human", "--max_steps", "1", "--eval_every", "0", "--save_steps", "1", "--like", str(mine))
    folder = train("grpo", tmp_path / "run", *more)
    assert "compares with 20 texts: human level" in capsys.readouterr().out
    assert "(human_weight 1.0, human_kind like" in (folder / "README.md").read_text()
    (log,) = [log for log in history(folder, 1) if "reward" in log]
    assert log["rewards/uncertainty_reward/mean"] is not None
    # Resumed with other texts it would be another run.
    caplog.clear()
    mine.write_text(mine.read_text() + "!")
    assert "the run there has like_hash" in refused(*words("grpo", folder, *more), "--resume_from_checkpoint", "yes")


def test_the_adaptive_entropy_of_trl(train, tmp_path):
    more = ("--target_entropy_coef", "0", "--use_adaptive_entropy", "--entropy_target", "2.5", "--max_steps", "2")
    folder = train("grpo", tmp_path / "run", *more, "--eval_every", "0", "--constraint_margin", "none")
    assert (folder / "checkpoint-2" / "entropy_ctrl_state.json").is_file()


@pytest.mark.slow
def test_a_second_scorer_with_its_own_profile(train, tiny_folder, profile_file, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(tiny_folder, second)
    shutil.copy(profile_file, second / "ugap_profile.json")
    more = ("--second_scorer", str(second), "--pointwise", "yes", "--max_steps", "1", "--eval_every", "0")
    (log,) = [log for log in history(train("grpo", tmp_path / "run", *more, "--save_steps", "1"), 1) if "reward" in log]
    by_scorer = [log[name] for name in log if name.startswith("uncertainty_reward/") and name.endswith("/closeness")]
    # Both have the same weights.
    assert len(by_scorer) == 2
    assert by_scorer[0] == pytest.approx(by_scorer[1], rel=1e-3)
