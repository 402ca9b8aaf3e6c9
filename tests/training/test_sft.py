"""The SFT trainer: its loss against autograd on logits, the constraint at work, and what it refuses before training."""

import copy
import math

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model

from ugap.errors import InputError
from ugap.training import UncertaintySFTConfig, UncertaintySFTTrainer


@pytest.fixture
def make_trainer(base_model, own_tokenizer, sentences, tmp_path):
    """`make_trainer(full=False, data=sentences, **config)`: a trainer of a tiny model with LoRA."""

    def make(full=False, data=sentences, model=None, **config):
        settings = {
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            **config,
        }
        lora = None if full else LoraConfig(target_modules="all-linear", r=4)
        args = UncertaintySFTConfig(str(tmp_path / "run"), **settings)
        model = base_model() if model is None else model
        return UncertaintySFTTrainer(model, args, train_dataset=data, processing_class=own_tokenizer, peft_config=lora)

    return make


def moved(trainer):
    """The policy's adapter away from nothing, so that it differs from its base."""
    torch.manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return trainer


def batch_of(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    return {name: value.to("cpu") for name, value in batch.items()}


def logged(trainer, name):
    total, count = trainer._sums["train"][name]
    return float(total / count)


def expected_loss(trainer, batch, base):
    """The loss from whole logits in float64."""
    args = trainer.args
    policy = copy.deepcopy(trainer.model).merge_and_unload().double().eval()
    labels = batch["labels"][:, 1:]
    keep = labels != -100
    creative = batch["creative"].unsqueeze(1).expand_as(labels)[keep]
    logp = policy(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][keep]
    logp = logp.double().log_softmax(-1)
    surprisal = -logp.gather(1, labels[keep].unsqueeze(1)).squeeze(1)
    entropy = -(logp.exp() * logp).sum(-1)
    with torch.no_grad():
        logb = base.double()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][keep]
    logb = logb.double().log_softmax(-1)
    kl = (logb.exp() * (logb - logp)).sum(-1)[~creative].mean()
    order = entropy[creative].argsort()
    h, s = entropy[creative][order], surprisal[creative][order]
    bins = max(1, min(args.calibration_bins, len(h) // 16))
    parts = zip(h.tensor_split(bins), s.tensor_split(bins), strict=True)
    calibration = sum(len(a) * (a.mean() - args.entropy_share * b.mean()) ** 2 for a, b in parts) / len(h)
    total = args.weight * calibration + (1 - args.weight) * (surprisal.mean() + args.kl_weight * kl)
    return total + trainer.constraint.value * kl


def test_the_loss_is_that_of_whole_logits(make_trainer, base_model, human_texts):
    rows = [{"text": text, "domain": "creative" if i % 2 else "functional"} for i, text in enumerate(human_texts)]
    config = {
        "weight": 0.3,
        "entropy_share": 0.8,
        "kl_weight": 2.0,
        "constraint_limit": 0.01,
        "constraint_initial": 5.0,
    }
    trainer = moved(make_trainer(data=Dataset.from_list(rows), calibration_bins=3, **config))
    batch = batch_of(trainer)
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(expected_loss(trainer, batch, base_model().eval()).item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("tied", "adapter"),
    [
        (False, {"modules_to_save": ["lm_head"]}),
        (True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        (True, {"modules_to_save": ["embed_tokens"]}),
        (True, {"trainable_token_indices": [5, 6, 7, 40]}),
        (False, {"trainable_token_indices": {"lm_head": [5, 6, 7, 40]}}),
    ],
)
def test_the_base_has_its_own_head(tied, adapter, make_trainer, make_model):
    base = make_model("llama", initializer_range=0.15, tie_word_embeddings=tied).eval()
    policy = get_peft_model(copy.deepcopy(base), LoraConfig(**{"target_modules": ["q_proj"], "r": 4, **adapter}))
    trainer = make_trainer(full=True, model=policy, constraint_limit=0.1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    batch = batch_of(trainer)
    ids, keep = {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"][:, 1:] != -100
    with torch.no_grad():
        own, its = (model(**ids).logits[:, :-1].log_softmax(-1) for model in (trainer.model.eval(), base))
    expected = (its.exp() * (its - own)).sum(-1)[keep & ~batch["creative"].unsqueeze(1)].mean().item()
    trainer.compute_loss(trainer.model.train(), batch).backward()
    assert logged(trainer, "functional/kl") == pytest.approx(expected, rel=1e-3)
    assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("kind", "dropout"),
    [
        ("gpt2", {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}),
        ("llama", {"attention_dropout": 0.5}),
    ],
)
def test_dropout_is_no_divergence(kind, dropout, full, make_trainer, make_model, caplog):
    model = make_model(kind, initializer_range=0.15, **dropout).requires_grad_(True)
    lora = LoraConfig(target_modules="all-linear", r=4, lora_dropout=0.5)
    trainer = make_trainer(full=True, model=model if full else get_peft_model(model, lora), constraint_limit=0.1)
    assert "its dropout is switched off" in caplog.text
    batch = batch_of(trainer)
    trainer.compute_loss(trainer.model.train(), batch)
    assert logged(trainer, "functional/kl") == pytest.approx(0, abs=1e-6)
    if not full:
        moved(trainer)
        one, two = (trainer.compute_loss(trainer.model, batch).item() for _ in range(2))
        assert one == two


@pytest.mark.parametrize("objective", ["cross-entropy", "gem"])
def test_baselines(objective, make_trainer):
    trainer = moved(make_trainer(objective=objective))
    batch = batch_of(trainer)
    trainer.model.eval()
    labels, keep = batch["labels"][:, 1:], batch["labels"][:, 1:] != -100
    logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][keep]
    own = logits.gather(1, labels[keep].unsqueeze(1)).squeeze(1)
    if objective == "gem":
        q = (logits / 0.7).softmax(-1)
        expected = ((q * logits).sum(-1) - own).mean()
    else:
        expected = (logits.logsumexp(-1) - own).mean()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("full", [False, True])
def test_a_few_steps_move_the_policy_and_log_what_they_should(full, make_trainer):
    trainer = make_trainer(full=full, constraint_limit=0.001, constraint_warmup=0, max_steps=4)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    after = trainer.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert full or all("lora" in name for name in changed)
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    for name in (
        "creative/nll",
        "creative/entropy",
        "creative/calibration",
        "functional/nll",
        "functional/kl",
        "entropy",
    ):
        assert name in first
    assert first["functional/kl"] == pytest.approx(0, abs=1e-6)
    assert last["functional/kl"] > 0
    assert last["creative/nll"] < first["creative/nll"]
    assert last["constraint/factuality/limit"] == 0.001
    if last["constraint/factuality/cost"] > 0.001:
        assert last["constraint/factuality/lambda"] > first["constraint/factuality/lambda"]


def test_the_constraint_holds_the_policy_near_its_base(make_trainer):
    config = {"max_steps": 12, "weight": 0.0, "constraint_warmup": 0, "constraint_window": 1}
    held = make_trainer(constraint_limit=0.002, constraint_learning_rate=20, constraint_initial=10.0, **config)
    free = make_trainer(**config, constraint_limit=10.0, constraint_minimum=1e-6, constraint_initial=2e-6)
    for trainer in (held, free):
        trainer.train()
    kl_held, kl_free = (t.state.log_history[-2]["functional/kl"] for t in (held, free))
    assert kl_held < kl_free / 3


def test_twice_the_multiplier_is_twice_the_functional_part(make_trainer):
    """Beside a gradient that does not change, that of the constraint is in proportion to lambda."""

    def gradient(initial):
        trainer = moved(make_trainer(constraint_limit=0.1, constraint_initial=initial))
        trainer.model.eval()
        trainer.compute_loss(trainer.model, batch_of(trainer)).backward()
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])

    one, two, four = gradient(1.0), gradient(2.0), gradient(4.0)
    torch.testing.assert_close(four - two, 2 * (two - one), rtol=1e-3, atol=1e-5)
    assert (two - one).norm() > 1e-3


def test_a_run_that_is_resumed_ends_as_one_that_was_not_broken(make_trainer, tmp_path):
    config = {
        "max_steps": 6,
        "constraint_limit": 0.001,
        "constraint_warmup": 1,
        "constraint_window": 2,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = make_trainer(**config)
    whole.train()
    resumed = make_trainer(**config)
    assert resumed.constraint.value == 1.0
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert resumed.constraint.state_dict() == whole.constraint.state_dict()
    assert resumed.constraint.value != 1.0
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_a_checkpoint_has_the_multiplier_before_it_is_whole(make_trainer, tmp_path, monkeypatch):
    """The state of the trainer makes it whole: a run that is killed before has a checkpoint that does not count."""
    monkeypatch.setattr("transformers.TrainerState.save_to_json", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    trainer = make_trainer(constraint_limit=0.1, save_strategy="steps", save_steps=1)
    with pytest.raises(OSError, match="killed"):
        trainer.train()
    assert (tmp_path / "run" / "checkpoint-1" / "constraint_state.json").exists()


def test_a_batch_of_one_domain(make_trainer, sentences):
    creative = sentences.filter(lambda row: row["domain"] == "creative")
    trainer = make_trainer(data=creative, kl_weight=1.0)
    trainer.train()
    assert "functional/kl" not in trainer.state.log_history[0]


def test_evaluation(make_trainer, sentences):
    trainer = make_trainer()
    trainer.eval_dataset = trainer.train_dataset
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0


def test_a_stream_with_a_row_of_an_unknown_domain_is_refused(make_trainer, sentences):
    odd = sentences.map(lambda row: {"domain": row["domain"].capitalize()}).to_iterable_dataset()
    with pytest.raises(InputError, match="is of domain 'Creative'"):
        make_trainer(data=odd, max_length=32).train()


def test_a_stream_without_functional_rows_is_refused_under_a_constraint(make_trainer):
    def rows():
        while True:
            yield {"text": "Once upon a time", "domain": "creative"}

    stream = IterableDataset.from_generator(rows)
    with pytest.raises(InputError, match="no functional rows among its first 10000, and the constraint"):
        make_trainer(data=stream, constraint_limit=0.1)
    make_trainer(data=stream, max_length=32).train()


@pytest.mark.parametrize(
    ("data", "config", "says"),
    [
        ({"text": ["a b c"]}, {}, "no column 'domain'; it has 'text'"),
        ({"text": ["a b c"], "domain": ["poetry"]}, {}, "row 0 is of domain 'poetry'"),
        ({"text": ["a b c"], "domain": ["functional"]}, {}, "no creative rows"),
        (
            {"text": ["a b c"], "domain": ["creative"]},
            {"constraint_limit": 0.1},
            "no functional rows, and the constraint",
        ),
    ],
)
def test_data_that_cannot_do_are_refused_before_training(data, config, says, make_trainer):
    with pytest.raises(InputError, match=says):
        make_trainer(data=Dataset.from_dict(data), **config)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"mode": "wild"}, "unknown mode 'wild'"),
        ({"weight": 1.5}, "weight"),
        ({"objective": "entropy"}, "objective 'entropy'"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0"),
        ({"calibration_bins": 0}, "calibration_bins is 0"),
        ({"entropy_share": 0.0}, "entropy_share is 0.0"),
        ({"entropy_share": math.inf}, "entropy_share is inf"),
        ({"packing": True}, "packing"),
        ({"loss_type": "dft"}, "loss_type='dft' has no effect"),
        ({"constraint_limit": 0.1, "constraint_maximum": -1.0}, "constraint_maximum"),
    ],
)
def test_settings_that_cannot_do_are_refused(config, says, make_trainer):
    with pytest.raises(InputError, match=says):
        make_trainer(**config)


def test_modes_are_weights(tmp_path):
    def weight(**config):
        return UncertaintySFTConfig(str(tmp_path), use_cpu=True, bf16=False, **config).weight

    assert [weight(mode=mode) for mode in ("creative", "balanced", "precise")] == [1, 0.5, 0]
    assert weight() == 0.5


def test_texts_start_with_the_bos_that_they_are_measured_with(make_trainer, own_tokenizer):
    assert own_tokenizer("Once")["input_ids"][0] != own_tokenizer.bos_token_id
    for row in make_trainer().train_dataset:
        assert row["input_ids"][:2].count(own_tokenizer.bos_token_id) == 1


@torch.no_grad()
def test_a_copy_of_the_policy_runs_its_own_weights(make_trainer):
    trainer = moved(make_trainer())
    ids = batch_of(trainer)["input_ids"]
    expected, other = trainer.model(input_ids=ids).logits, copy.deepcopy(trainer.model)
    torch.testing.assert_close(other(input_ids=ids).logits, expected)
    for parameter in other.parameters():
        parameter.mul_(0.5)
    assert not torch.allclose(other(input_ids=ids).logits, expected, atol=0.1)


def test_an_adapter_that_is_trained_on_stays(make_trainer, base_model):
    """A policy that has an adapter already is trained in it."""
    policy = get_peft_model(base_model(), LoraConfig(target_modules="all-linear", r=4))
    trainer = make_trainer(full=True, model=policy, constraint_limit=0.01)
    trainer.train()
    assert trainer.state.log_history[0]["functional/kl"] == pytest.approx(0, abs=1e-6)
