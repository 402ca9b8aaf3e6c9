"""`ugap train sft` on a tiny model: what a run leaves, how it goes on, and what it is trained on."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from ugap.cli.main import main
from ugap.models import load_model, with_adapter
from ugap.profile import HumanProfile
from ugap.training import UncertaintySFTTrainer


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """A run of four steps with a constraint, its adapter merged in the end."""
    return train("sft", tmp_path_factory.mktemp("sft") / "run", "--merge")


def test_it_looks_at_the_start_on_the_way_and_at_the_end(finished, evaluations):
    assert [evaluation["step"] for evaluation in evaluations(finished)] == [0, 2, 4]


def test_the_card_holds_the_first_and_the_last_look(finished, evaluations):
    first, *_, last = evaluations(finished)
    card = (finished / "README.md").read_text()
    name = "ugap/creative/nll_gap"
    assert first[name] != last[name]
    assert f"| creative: gap in surprisal | {first[name]:+.2f} | {last[name]:+.2f} |" in card
    name = "ugap/functional/nll_wasserstein"
    assert f"| functional: distance in surprisal | {first[name]:.3f} | {last[name]:.3f} |" in card
    assert f"| facts right | {first['ugap/facts/accuracy']:.1%} [" in card
    assert "model_name: run\n" in card
    assert "- ugap\n" in card
    assert "None" not in card.partition("## Quick start")[0]


def test_the_merged_model_is_the_base_with_the_adapter(finished, tiny_folder):
    base, tokenizer = load_model(str(tiny_folder), device="cpu")
    merged, _ = load_model(str(finished / "merged"), device="cpu")
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    with torch.no_grad():
        without = base(ids).logits
        adapted = with_adapter(base, finished, "tiny")(ids).logits
        torch.testing.assert_close(merged(ids).logits, adapted, atol=1e-4, rtol=1e-4)
    assert (adapted - without).abs().max() > 0.1


def test_checkpoints_hold_the_multiplier(finished):
    states = [json.loads((finished / f"checkpoint-{n}" / "constraint_state.json").read_text()) for n in (2, 4)]
    assert states[1]["updates"] > states[0]["updates"] > 0
    assert states[1]["log_lambda"] != states[0]["log_lambda"]


def test_a_run_that_goes_on_ends_where_it_would_have(finished, interrupted, train, weights, evaluations, tmp_path):
    folder = train("sft", interrupted(finished, tmp_path / "run"), "--resume_from_checkpoint", "yes", "--merge")
    found, expected = weights(folder), weights(finished)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert evaluations(folder) == evaluations(finished)
    assert (folder / "README.md").read_text() == (finished / "README.md").read_text()


@pytest.mark.slow
def test_a_run_that_is_told_to_end_saves_and_goes_on(
    finished, words, train, weights, evaluations, monkeypatch, tmp_path, capsys
):
    own = UncertaintySFTTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return own(self, *args, **kwargs)

    before, folder = signal.getsignal(signal.SIGTERM), tmp_path / "run"
    monkeypatch.setattr(UncertaintySFTTrainer, "compute_loss", compute_loss)
    assert main(words("sft", folder, "--save_steps", "100")) == 143
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"ugap: ended by SIGTERM; what was trained is in {folder / 'checkpoint-3'}; --resume")
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    (folder / "merged").mkdir()
    (folder / "merged" / "older").touch()
    train("sft", folder, "--resume_from_checkpoint", "yes", "--save_steps", "100")
    found, expected = weights(folder), weights(finished)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert evaluations(folder) == evaluations(finished)
    # A merged model that was there is of the new adapter, though nobody said --merge.
    names = [{path.name for path in (one / "merged").iterdir()} for one in (folder, finished)]
    assert names[0] == names[1]


def test_an_adapter_is_gone_on_from(finished, train, weights, evaluations, tmp_path):
    folder = train("sft", tmp_path / "run", "--adapter", str(finished), "--max_steps", "1", "--eval_every", "0")
    before, after = evaluations(finished)[-1], evaluations(folder)
    assert after[0] == {**before, "step": 0, **{name: 0.0 for name in before if name.endswith("gap_closed")}}
    name = min(weights(folder))
    assert not torch.equal(weights(folder)[name], weights(finished)[name])


def test_all_weights(train, evaluations, tiny_folder, tmp_path, make_profile, monkeypatch):
    people = make_profile(load_model(str(tiny_folder))[0])
    find = classmethod(lambda cls, scorer: people if scorer.weight_hash == people.weight_hash else None)
    monkeypatch.setattr(HumanProfile, "find_shipped", find)
    folder = train("sft", tmp_path / "run", "--full", "--max_steps", "1", "--eval_every", "0")
    base, trained = (load_file(path / "model.safetensors") for path in (tiny_folder, folder))
    assert all(not torch.equal(value, trained[name]) for name, value in base.items() if "proj" in name)
    assert [evaluation["step"] for evaluation in evaluations(folder)] == [0, 1]
    # It aims at what its base reads as human.
    found = HumanProfile.for_model(*load_model(str(folder)))
    assert found.weight_hash != people.weight_hash
    assert found.to_dict()["kinds"] == people.to_dict()["kinds"]


@torch.no_grad()
def loss_of(model, rows):
    losses = [model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss for row in rows]
    return float(torch.stack(losses).mean())


@pytest.mark.slow
def test_own_samples_are_learned_and_kept(train, tiny_folder, tmp_path):
    own = ("--self_samples", "8", "--self_decoding", "temperature:0.5", "--self_tokens", "12")
    plain = ("--constraint_limit", "none", "--objective", "cross-entropy", "--max_steps", "8", "--eval_every", "0")
    folder = train("sft", tmp_path / "run", *own, *plain)
    rows = [json.loads(line) for line in (folder / "self_samples.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    for row in rows:
        n = row["labels"].count(-100)
        assert row["input_ids"][0] == 2
        assert row["input_ids"].count(2) == 1
        assert n == 1 + 8
        assert row["labels"][n:] == row["input_ids"][n:]
    model, _ = load_model(str(tiny_folder), device="cpu")
    before = loss_of(model, rows)
    assert loss_of(with_adapter(model, folder, "tiny"), rows) < before - 0.5
    written = (folder / "self_samples.jsonl").stat().st_mtime_ns
    train("sft", folder, *own, *plain, "--resume_from_checkpoint", "yes")
    assert (folder / "self_samples.jsonl").stat().st_mtime_ns == written


def test_named_texts_are_held_out(train, evaluations, write_rows, tmp_path, capsys):
    held = write_rows(
        [{"id": "x", "domain": "creative", "text": "The old man said to the youngest: give me cake. " * 9}]
    )
    folder = train("sft", tmp_path / "run", "--eval_data", held, "--max_steps", "1", "--eval_facts", "0")
    assert "texts to train on: 6 creative, 6 functional" in capsys.readouterr().out
    assert not [name for name in evaluations(folder)[0] if "functional" in name or "facts" in name]
