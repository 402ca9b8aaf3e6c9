"""Runs end when the policy's entropy, as TRL logs it, leaves a band."""

import logging
import math

import pytest
from datasets import Dataset
from transformers import TrainerControl, TrainerState
from trl import GRPOConfig, GRPOTrainer

from ugap.training.entropy_band import EntropyBandCallback

NAME = "ugap.training.entropy_band"


def reward(completions, **_):
    return [float(len(text) % 7) for text in completions]


class WithoutEntropy(GRPOTrainer):
    """One whose entropies are NaN."""

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self._metrics["train"]["entropy"] = [math.nan]
        return loss


@pytest.fixture
def run(make_model, tokenizer, tmp_path, caplog):
    """`run(callback, kind=GRPOTrainer)`: the trainer after at most three steps of a tiny model."""

    def train(callback, kind=GRPOTrainer, **config) -> GRPOTrainer:
        settings = GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_steps=3,
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=4,
            logging_steps=1,
            save_strategy="no",
            seed=1,
            top_k=0,
            **config,
        )
        model = make_model("llama", initializer_range=0.15, eos_token_id=0).requires_grad_(True)
        data = Dataset.from_dict({"prompt": ["Once upon a time", "A function"]})
        trainer = kind(
            model, reward, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[callback]
        )
        with caplog.at_level(logging.WARNING, NAME):
            trainer.train()
        return trainer

    return train


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name == NAME]


def entropies(trainer):
    return [log["entropy"] for log in trainer.state.log_history if "entropy" in log]


def test_a_run_within_the_band_goes_on(run, tmp_path, caplog):
    band = EntropyBandCallback(0.5, math.log(400))
    trainer = run(band)
    assert trainer.state.global_step == 3
    assert all(0.5 < entropy <= math.log(400) for entropy in entropies(trainer))
    assert (band.stopped, band.reason, warnings(caplog)) == (False, None, [])
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(("low", "high"), [(6.5, 9.0), (0.0, 0.5)], ids=["collapse", "noise"])
def test_a_run_that_leaves_the_band_is_saved_and_ends(run, tmp_path, caplog, low, high):
    band = EntropyBandCallback(low, high)
    trainer = run(band)
    assert trainer.state.global_step == 1
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()
    assert band.stopped
    (entropy,) = entropies(trainer)
    assert warnings(caplog) == [band.reason]
    assert band.reason == (
        f"step 1: entropy is {entropy:.4g} nats, outside of [{low:g}, {high:g}]: the run is saved and ends"
    )


@pytest.mark.slow
def test_patience_and_a_second_run(run, caplog):
    band = EntropyBandCallback(0.0, 0.5, patience=2)
    trainer = run(band)
    assert trainer.state.global_step == 2
    assert "for 2 logs in a row" in str(band.reason)
    assert len(warnings(caplog)) == 1
    band.high = math.inf
    assert run(band).state.global_step == 3
    assert not band.stopped


def test_an_entropy_that_is_nan_is_outside(run, caplog):
    """TRL logs None for a NaN."""
    band = EntropyBandCallback(0.0, math.inf)
    trainer = run(band, WithoutEntropy)
    assert entropies(trainer) == [None]
    assert trainer.state.global_step == 1
    assert str(band.reason).startswith("step 1: entropy is nan nats")


def test_a_metric_that_is_never_logged_is_said(run, caplog):
    band = EntropyBandCallback(1.0, 2.0, metric="no/such/metric")
    assert run(band).state.global_step == 3
    assert warnings(caplog) == ["no log of this run held 'no/such/metric': its band was not watched"]


def test_only_logs_in_a_row_count():
    band = EntropyBandCallback(1.0, 2.0, patience=2)
    state, control = TrainerState(), TrainerControl()
    for logs in ({"entropy": 0.5}, {"entropy": 1.0}, {"entropy": 2.1}, {"entropy": 2.0}, {"entropy": math.nan}):
        band.on_log(None, state, control, logs=logs)
    band.on_log(None, state, control, logs={"eval_entropy": 1.5})  # an evaluation between two logs
    band.on_log(None, state, control, logs=None)
    assert not band.stopped
    assert not control.should_training_stop
    state.global_step = 7
    band.on_log(None, state, control, logs={"entropy": 3.0})
    assert control.should_training_stop
    assert control.should_save
    assert str(band.reason).startswith("step 7: entropy is 3 nats, outside of [1, 2]")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("low", -0.1),
        ("low", math.inf),
        ("low", math.nan),
        ("low", "1"),
        ("high", 1.0),
        ("high", math.nan),
        ("high", True),
        ("metric", ""),
        ("metric", 3),
        ("patience", 0),
        ("patience", 1.5),
        ("patience", True),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        EntropyBandCallback(**{"low": 1.0, "high": 4.0, name: value})
