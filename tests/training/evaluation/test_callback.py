"""The gap while a model trains: real trainings of tiny models, their logs, and the file of an offline wandb run."""

import dataclasses
import json
import logging
import math
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import GenerationConfig, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from ugap.data import TextRow
from ugap.data.facts import load_facts
from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.scoring import Scorer
from ugap.statistics import repetition, wilson
from ugap.study.excerpts import Excerpt, cut_excerpts
from ugap.study.probes.facts import contrastive
from ugap.training.evaluation import callback as module
from ugap.training.evaluation.callback import EVALUATIONS_FILE, UncertaintyGapCallback
from ugap.training.evaluation.wandb_log import COLUMNS

CLOCK = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "step_time")
GREEDY = {"do_sample": False}
LOGGER = "ugap.training.evaluation.callback"


def reward(completions, **_):
    return [float(len(text) % 7) for text in completions]


@pytest.fixture
def make_trainer(make_model, tokenizer, text_rows, tmp_path):
    """`make_trainer(kind=SFTTrainer, lora=True, model=None, **config)`: a trainer of a tiny model, far from its end."""

    def make(kind=SFTTrainer, *, lora=True, model=None, eval_dataset=None, **config):
        model = make_model("llama", eos_token_id=0) if model is None else model
        if not lora:
            model.requires_grad_(True)
        settings = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "logging_steps": 2,
            "save_strategy": "no",
            "seed": 1,
            "learning_rate": 0.03,
            "lr_scheduler_type": "constant",
            "disable_tqdm": True,
        }
        if kind is GRPOTrainer:
            settings |= {"num_generations": 2, "max_completion_length": 6, "top_k": 0}
            arguments = {"reward_funcs": reward, "args": GRPOConfig(**settings | config)}
            data = Dataset.from_dict({"prompt": [row["text"][:20] for row in text_rows]})
        else:
            arguments = {"args": SFTConfig(max_length=48, **settings | config), "eval_dataset": eval_dataset}
            data = Dataset.from_dict({"text": [row["text"] for row in text_rows]})
        peft = LoraConfig(target_modules="all-linear", lora_dropout=0.1) if lora else None
        return kind(model, train_dataset=data, processing_class=tokenizer, peft_config=peft, **arguments)

    return make


@pytest.fixture
def excerpts(text_rows, tokenizer):
    """Two domains of three excerpts each."""
    rows = [TextRow(**row) for row in text_rows]
    return cut_excerpts(rows, tokenizer, prefix_tokens=8, max_new_tokens=16, limit=3)


@pytest.fixture
def track(excerpts):
    """`track(trainer, **settings)`: a callback that is added to the trainer."""

    def make(trainer, texts=None, **settings):
        shape = {"max_new_tokens": 16, "batch_size": 3, "eval_every": 2}
        callback = UncertaintyGapCallback(trainer, excerpts if texts is None else texts, **shape | settings)
        trainer.add_callback(callback)
        return callback

    return make


def gaps_by_hand(policy, reader, tokenizer, excerpts):
    """Mean human surprisal less that of what `policy` writes greedily, both cut to one length, by domain."""
    gaps: dict[str, list[float]] = {}
    for excerpt in excerpts:
        ids = [tokenizer.bos_token_id, *tokenizer(excerpt.prefix)["input_ids"]]
        config = GenerationConfig(max_new_tokens=16, do_sample=False, eos_token_id=0, pad_token_id=0)
        out = policy.generate(input_ids=torch.tensor([ids]), generation_config=config)[0].tolist()
        text = tokenizer.decode(out, skip_special_tokens=True)[len(excerpt.prefix) :].rstrip("\ufffd")
        human, written = reader.score([excerpt.human, text], [excerpt.prefix] * 2, skip_bad=True)
        n = min(len(human), len(written) if written else 0)
        if n >= 8:
            gap = human.surprisal[:n].mean(dtype=float) - written.surprisal[:n].mean(dtype=float)
            gaps.setdefault(excerpt.domain, []).append(gap)
    return {domain: float(np.mean(found)) for domain, found in gaps.items()}


def scalars(log):
    return {name: value for name, value in log.items() if name.startswith("ugap/")}


def test_looks_at_the_start_every_so_many_steps_and_at_the_end(make_trainer, track, tmp_path):
    trainer = make_trainer()
    callback = track(trainer)
    trainer.train()
    evaluations = callback.evaluations
    assert [evaluation["step"] for evaluation in evaluations] == [0, 2, 3]
    logged = [log for log in trainer.state.log_history if scalars(log)]
    assert [{"step": log["step"], **scalars(log)} for log in logged] == evaluations
    lines = (tmp_path / "out" / EVALUATIONS_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == evaluations
    per_domain = {
        *(f"{m}_{end}" for m in ("nll", "entropy", "pmi", "deviation") for end in ("gap", "gap_low", "gap_high")),
        *(f"{m}_wasserstein" for m in ("nll", "entropy", "pmi", "deviation")),
        *(f"{m}{of}" for m in ("distinct_2", "repetition") for of in ("", "_human")),
        "gap_closed",
        "n_dropped",
    }
    for evaluation in evaluations:
        for domain in ("creative", "functional"):
            assert per_domain <= {name.removeprefix(f"ugap/{domain}/") for name in evaluation}
            for measure in ("nll", "entropy", "pmi", "deviation"):
                gap, low, high, distance = (
                    evaluation[f"ugap/{domain}/{measure}_{end}"]
                    for end in ("gap", "gap_low", "gap_high", "wasserstein")
                )
                assert low < gap < high
                assert distance > 0
            first, now = evaluations[0][f"ugap/{domain}/nll_gap"], evaluation[f"ugap/{domain}/nll_gap"]
            assert evaluation[f"ugap/{domain}/gap_closed"] == 1 - abs(now) / abs(first)
    assert evaluations[1]["ugap/creative/gap_closed"] != evaluations[2]["ugap/creative/gap_closed"] != 0


def shifted(kind):
    """The kind of people whose texts have other features."""
    reference = kind.texts
    return dataclasses.replace(kind, texts=dataclasses.replace(reference, mean=reference.mean + 1))


@pytest.mark.slow
def test_nearness_to_people_by_a_profile(make_trainer, make_model, track, tokenizer, excerpts):
    """The policy's greedy text is one that no person writes; a domain that the profile lacks has no figure."""
    scorer = Scorer(make_model("llama", eos_token_id=0), tokenizer)
    rng = random.Random(0)
    words = " ".join(excerpt.human for excerpt in excerpts).split()
    texts = [" ".join(rng.choices(words, k=16)) for _ in range(24)]
    profile = HumanProfile.fit({"creative": scorer.score(texts, ["Once"] * 24, pmi=True)}, resamples=2)
    trainer = make_trainer()
    callback = track(trainer, decoding=GREEDY, profile=profile, eval_every=0)
    trainer.train()
    first = callback.evaluations[0]
    assert 0 <= first["ugap/creative/closeness"] < first["ugap/creative/closeness_human"] <= 1
    assert first["ugap/creative/energy_distance"] > 0.5
    assert "ugap/functional/closeness" not in first
    # Each excerpt is compared with its kind, and all creative ones with the kind that is named.
    two = dataclasses.replace(profile, kinds={**profile.kinds, "tale": shifted(profile.kinds["creative"])})
    tales = [dataclasses.replace(one, kind="tale") for one in excerpts if one.domain == "creative"]
    found = []
    for texts, kind in ((tales, None), (tales, "creative"), (excerpts, "tale")):
        trainer = make_trainer()
        callback = track(trainer, texts, decoding=GREEDY, profile=two, kind=kind, eval_every=0)
        trainer.train()
        found.append(callback.evaluations[0]["ugap/creative/closeness"])
    assert found[0] == found[2] != found[1] == first["ugap/creative/closeness"]
    other = dataclasses.replace(profile, weight_hash="0" * 16)
    trainer = make_trainer()
    track(trainer, profile=other)
    with pytest.raises(InputError, match="the human profile was fitted with"):
        trainer.train()


def test_only_the_start_and_the_end(make_trainer, track):
    trainer = make_trainer()
    callback = track(trainer, eval_every=0)
    trainer.train()
    assert [evaluation["step"] for evaluation in callback.evaluations] == [0, 3]


def test_the_policy_writes_and_its_base_reads(make_trainer, make_model, track, tokenizer, excerpts):
    trainer = make_trainer(learning_rate=0.3)
    callback = track(trainer, decoding=GREEDY, facts=load_facts(limit=20))
    trainer.train()
    base = make_model("llama", eos_token_id=0)
    reader = Scorer(base, tokenizer)
    trained = trainer.model.eval().get_base_model()
    before, after = (gaps_by_hand(policy, reader, tokenizer, excerpts) for policy in (base, trained))
    for domain in ("creative", "functional"):
        name = f"ugap/{domain}/nll_gap"
        assert callback.evaluations[0][name] == pytest.approx(before[domain], abs=1e-5)
        assert callback.evaluations[-1][name] == pytest.approx(after[domain], abs=1e-5)
        assert abs(after[domain] - before[domain]) > 0.01
    shares = [contrastive(Scorer(model, tokenizer), load_facts(limit=20)).accuracy for model in (base, trained)]
    assert [callback.evaluations[i]["ugap/facts/accuracy"] for i in (0, -1)] == shares
    assert shares[0] != shares[1]
    ends = tuple(callback.evaluations[-1][f"ugap/facts/accuracy_{end}"] for end in ("low", "high"))
    assert ends == wilson(round(20 * shares[1]), 20)


@pytest.mark.parametrize("kind", [SFTTrainer, GRPOTrainer])
@pytest.mark.slow
def test_the_training_is_the_same_with_and_without(make_trainer, make_model, track, kind):
    class Watch(TrainerCallback):
        states = []  # noqa: RUF012

        def on_step_end(self, args, state, control, model, **_):
            trainable = [name for name, p in model.named_parameters() if p.requires_grad]
            self.states.append((model.training, model.is_gradient_checkpointing, model.active_adapters, trainable))

    runs = []
    for tracked in (True, False):
        # Dropout draws at every step: a generator that is off by one draw changes the weights.
        trainer = make_trainer(kind, model=make_model("llama", eos_token_id=0, attention_dropout=0.1), max_steps=4)
        callback = track(trainer, eval_every=1, facts=load_facts(limit=4)) if tracked else None
        watch = Watch()
        watch.states = []
        trainer.add_callback(watch)
        trainer.train()
        if callback is not None:
            assert [evaluation["step"] for evaluation in callback.evaluations] == [0, 1, 2, 3, 4]
        logs = [{k: v for k, v in log.items() if k not in CLOCK} for log in trainer.state.log_history]
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        # TRL's windows of two steps come out whole: nothing of them is in the log of an evaluation, or lost to it.
        drawn = (torch.rand(3).tolist(), random.random(), np.random.random())  # noqa: NPY002
        runs.append((weights, [log for log in logs if not scalars(log)], watch.states, drawn))
    (weights, logs, states, drawn), (plain_weights, plain_logs, plain_states, plain_drawn) = runs
    assert all(torch.equal(weights[name], plain_weights[name]) for name in plain_weights)
    assert logs == plain_logs
    assert any("loss" in log for log in logs)
    assert states == plain_states
    assert states[0][0]
    assert drawn == plain_drawn


@pytest.mark.slow
def test_a_run_that_is_resumed_keeps_its_first_gap(make_trainer, track, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    whole = make_trainer(**saving)
    evaluations = track(whole).evaluations  # replaced by a new list at every evaluation
    assert evaluations == []
    callback = whole.callback_handler.callbacks[-1]
    whole.train()
    assert [evaluation["step"] for evaluation in callback.evaluations] == [0, 2, 4, 6]
    resumed = make_trainer(**saving)
    again = track(resumed)
    seen = []

    class Begin(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            lines = (tmp_path / "out" / EVALUATIONS_FILE).read_text().splitlines()
            seen.append([json.loads(line)["step"] for line in lines])

    resumed.add_callback(Begin())
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert seen[0] == [0, 2]  # the later evaluations of the run that was cut off are gone
    assert again.evaluations == callback.evaluations
    assert [log["step"] for log in resumed.state.log_history if scalars(log)] == [0, 2, 4, 6]


def test_a_run_without_looks_that_is_resumed_says_so(make_trainer, track, tmp_path, caplog):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    make_trainer(**saving).train()
    resumed = make_trainer(**saving | {"max_steps": 2})
    callback = track(resumed)
    with caplog.at_level(logging.WARNING, LOGGER):
        resumed.train(resume_from_checkpoint=True)
    assert "the gap at step 1 is the first" in caplog.text
    assert [evaluation["step"] for evaluation in callback.evaluations] == [1, 2]
    assert callback.evaluations[0]["ugap/creative/gap_closed"] == 0


def test_a_run_that_another_callback_stops_is_looked_at_where_it_ended(make_trainer, track):
    class Stop(TrainerCallback):
        def on_log(self, args, state, control, logs, **_):
            control.should_training_stop |= "loss" in logs

    trainer = make_trainer(max_steps=9, logging_steps=3)
    callback = track(trainer, eval_every=0)
    trainer.add_callback(Stop())
    trainer.train()
    assert [evaluation["step"] for evaluation in callback.evaluations] == [0, 3]
    # While the trackers were still open: before the trainer closed its account of the run.
    kinds = [
        "evaluation" if scalars(log) else "end" if "train_runtime" in log else "log"
        for log in trainer.state.log_history
    ]
    assert kinds == ["evaluation", "log", "evaluation", "end"]


def test_where_the_best_weights_are_loaded_the_last_look_is_at_them(make_trainer, track, text_rows):
    data = Dataset.from_dict({"text": [row["text"] for row in text_rows[:2]]})
    trainer = make_trainer(
        learning_rate=3.0,  # every step makes it worse
        max_steps=2,
        eval_dataset=data,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    callback = track(trainer, eval_every=1)
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert [evaluation["step"] for evaluation in callback.evaluations] == [0, 1, 2]
    first, last = ({**evaluation, "step": None} for evaluation in callback.evaluations[1:])
    assert last == first
    logged = [log["ugap/creative/nll_gap"] for log in trainer.state.log_history if scalars(log)]
    assert len(logged) == 4
    assert logged[2] != logged[1] == logged[3]


def test_full_fine_tuning_with_a_scorer_of_its_own(make_trainer, make_model, track, tokenizer, excerpts):
    base = make_model("llama", eos_token_id=0)
    reader = Scorer(base, tokenizer, name="reader")
    trainer = make_trainer(lora=False, learning_rate=1e-2)
    callback = track(trainer, scorer=reader, decoding=GREEDY)
    trainer.train()
    after = gaps_by_hand(trainer.model.eval(), reader, tokenizer, excerpts)
    assert callback.evaluations[-1]["ugap/creative/nll_gap"] == pytest.approx(after["creative"], abs=1e-5)
    assert callback.evaluations[-1]["ugap/creative/gap_closed"] != 0


def test_diversity_is_of_texts_cut_to_one_length(make_trainer, track, tokenizer, make_model, excerpts):
    # People who repeat one word, beside a policy of random words.
    texts = [Excerpt(f"t{i}", f"t{i}", "d", e.prefix, " the man" * 40) for i, e in enumerate(excerpts)]
    callback = track(trainer := make_trainer(max_steps=1), texts, eval_every=0)
    trainer.train()
    evaluation = callback.evaluations[0]
    held_out = callback._held_out
    human = Scorer(make_model("llama", eos_token_id=0), tokenizer).score([" the man" * 40], [texts[0].prefix])[0]
    lengths = [len(text.scores) for text in held_out.evaluation(trainer.model.eval().get_base_model()).texts]
    assert max(lengths) < len(human)
    assert evaluation["ugap/d/repetition_human"] > evaluation["ugap/d/repetition"]
    assert evaluation["ugap/d/distinct_2_human"] < evaluation["ugap/d/distinct_2"]
    assert evaluation["ugap/d/repetition_human"] < repetition([human.token_ids.tolist()])


class TestDropped:
    def test_what_is_too_short_is_counted(self, make_trainer, track, excerpts):
        short = Excerpt("short", "short", "creative", excerpts[0].prefix, " the")
        callback = track(trainer := make_trainer(max_steps=1), [short, *excerpts], eval_every=0)
        trainer.train()
        complete = track(again := make_trainer(max_steps=1), eval_every=0)
        again.train()
        n = [one.evaluations[0]["ugap/creative/n_dropped"] for one in (callback, complete)]
        assert n[0] == n[1] + 1

    def test_a_policy_that_writes_nothing(self, make_trainer, track, tokenizer):
        trainer = make_trainer(max_steps=1)
        trainer.model.get_base_model().generation_config.eos_token_id = list(range(len(tokenizer)))
        callback = track(trainer)
        trainer.train()
        assert callback.evaluations == [
            {"step": step, "ugap/creative/n_dropped": 3, "ugap/functional/n_dropped": 3} for step in (0, 1)
        ]

    def test_a_domain_of_short_human_texts_is_refused(self, make_trainer, track, excerpts):
        short = [Excerpt(f"s{i}", f"s{i}", "notes", e.prefix, " the") for i, e in enumerate(excerpts)]
        track(trainer := make_trainer(), [*excerpts, *short])
        with pytest.raises(InputError, match="domain 'notes': no human continuation has 8 tokens"):
            trainer.train()

    def test_logits_that_are_not_finite_end_the_run(self, make_trainer, track):
        class Break(TrainerCallback):
            def on_step_begin(self, args, state, control, model, **_):
                if state.global_step == 1:
                    weight = next(p for name, p in model.named_parameters() if "lora_B" in name)
                    weight.data.fill_(torch.nan)

        trainer = make_trainer()
        trainer.add_callback(Break())
        callback = track(trainer)
        with pytest.raises(InputError, match=r"text 'c0' \(policy\): the logits of .* are not finite"):
            trainer.train()
        assert [evaluation["step"] for evaluation in callback.evaluations] == [0]


class TestBadInput:
    def test_full_fine_tuning_leaves_no_base(self, make_trainer, excerpts):
        with pytest.raises(InputError, match=r"full fine-tuning changes the weights .* name a scorer"):
            UncertaintyGapCallback(make_trainer(lora=False), excerpts)

    @pytest.mark.parametrize("lora", [True, False])
    def test_the_policy_is_no_frozen_scorer(self, make_trainer, make_model, tokenizer, excerpts, lora):
        model = make_model("llama", eos_token_id=0)
        scorer = Scorer(model, tokenizer, name="tiny")
        with pytest.raises(InputError, match="scorer tiny is the policy itself"):
            UncertaintyGapCallback(make_trainer(lora=lora, model=model), excerpts, scorer=scorer)

    def test_a_profile_does_not_outlive_full_fine_tuning(self, make_trainer, make_model, tokenizer, excerpts):
        scorer = Scorer(make_model("llama"), tokenizer)
        with pytest.raises(InputError, match="needs the human profile of the policy"):
            UncertaintyGapCallback(make_trainer(lora=False), excerpts, scorer=scorer, decoding={"human_weight": 1.0})

    def test_excerpts(self, make_trainer, excerpts):
        with pytest.raises(InputError, match="no held-out excerpts"):
            UncertaintyGapCallback(make_trainer(), [])
        with pytest.raises(InputError, match=f"excerpt {excerpts[1].id!r} is there twice"):
            UncertaintyGapCallback(make_trainer(), [*excerpts, excerpts[1]])
        fact = load_facts(limit=1)[0]
        with pytest.raises(InputError, match=f"fact {fact.id!r} is there twice"):
            UncertaintyGapCallback(make_trainer(), excerpts, facts=[fact, fact])

    @pytest.mark.parametrize(
        ("name", "value", "least"),
        [("max_new_tokens", 7, 8), ("eval_every", -1, 0), ("batch_size", 0, 1), ("table_rows", -1, 0)],
    )
    def test_settings_out_of_range(self, make_trainer, excerpts, name, value, least):
        with pytest.raises(InputError, match=f"{name} is {value}, and at least {least} is needed"):
            UncertaintyGapCallback(make_trainer(), excerpts, **{name: value})

    def test_a_decoding_that_transformers_refuses(self, make_trainer, excerpts):
        with pytest.raises(InputError, match="decoding settings"):
            UncertaintyGapCallback(make_trainer(), excerpts, decoding={"top_p": 1.5})

    def test_an_adapter_whose_base_is_no_scorer(self, make_model, tokenizer, text_rows, excerpts, tmp_path):
        config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1)
        trainer = SFTTrainer(
            make_model("llama"),
            args=config,
            train_dataset=Dataset.from_list([{"text": row["text"]} for row in text_rows]),
            processing_class=tokenizer,
            peft_config=LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        )
        trainer.add_callback(UncertaintyGapCallback(trainer, excerpts))
        with pytest.raises(InputError, match="the adapter replaces the output head"):
            trainer.train()
        assert trainer.state.global_step == 0


def read_wandb(path):
    """The history items of a `.wandb` file: a LevelDB log (blocks of 32 KiB, records in fragments) of protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, place, fragments, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # too little room for another header
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        fragments += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            record = Record.FromString(fragments)
            fragments = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


@pytest.fixture
def wandb_mode(monkeypatch, tmp_path):
    """`wandb_mode(mode)`: wandb in that mode, its files in the test's folder; closed at the end."""
    import wandb

    def set_mode(mode):
        wandb.teardown()  # it reads the environment once
        for name, value in (("MODE", mode), ("DIR", str(tmp_path)), ("SILENT", "true"), ("PROJECT", "test")):
            monkeypatch.setenv(f"WANDB_{name}", value)

    yield set_mode
    wandb.finish()
    wandb.teardown()


class TestWandb:
    @pytest.mark.slow
    def test_the_file_of_an_offline_run(self, make_trainer, track, wandb_mode, tmp_path):
        import wandb

        wandb_mode("offline")
        trainer = make_trainer(report_to=["wandb"], max_steps=1, logging_steps=1)
        callback = track(trainer, eval_every=1, table_rows=2, facts=load_facts(limit=4))
        trainer.train()
        wandb.finish()
        wandb.teardown()  # until its service has ended, the end of the file may not be there
        (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
        rows = read_wandb(path)
        kept = [log for log in trainer.state.log_history if scalars(log)]
        found = [row for row in rows if any(name.startswith("train/ugap/") for name in row)]
        assert len(found) == 2
        for row, log in zip(found, kept, strict=True):
            assert {name: row[f"train/{name}"] for name in scalars(log)} == scalars(log)
            assert row["train/global_step"] == log["step"]
        media = [row for row in rows if "ugap/completions/path" in row]
        assert [row["train/global_step"] for row in media] == [0, 1]
        files = path.parent / "files"
        for row in media:
            for name in ("calibration", "distributions"):
                png = files / row[f"ugap/{name}/path"]
                assert png.read_bytes().startswith(b"\x89PNG")
            table = json.loads((files / row["ugap/completions/path"]).read_text())
            assert table["columns"] == list(COLUMNS)
            assert [cells[0] for cells in table["data"]] == ["creative"] * 2 + ["functional"] * 2
        human = {text.scores.text: text.scores for text in callback._held_out.human.values()}
        for cells in table["data"]:
            named = dict(zip(COLUMNS, cells, strict=True))
            assert named["nll_human"] == human[named["human"]].nll
            nats = [float(part.partition("]")[0]) for part in named["surprisal"].split("[")[1:] if part[0].isdigit()]
            assert np.mean(nats) == pytest.approx(named["nll"], abs=0.1)

    def test_disabled(self, make_trainer, track, wandb_mode, tmp_path):
        wandb_mode("disabled")
        trainer = make_trainer(report_to=["wandb"], max_steps=1)
        callback = track(trainer)
        trainer.train()
        assert [log["step"] for log in trainer.state.log_history if scalars(log)] == [0, 1]
        assert len(callback.evaluations) == 2
        assert not list(tmp_path.rglob("*.wandb"))

    def test_a_picture_that_fails_does_not_end_the_training(self, make_trainer, track, wandb_mode, caplog, monkeypatch):
        def fail(*_):
            raise OSError("no space left")

        wandb_mode("offline")
        monkeypatch.setattr(module, "wandb_media", fail)
        trainer = make_trainer(report_to=["wandb"], max_steps=1)
        callback = track(trainer)
        with caplog.at_level(logging.WARNING, LOGGER):
            trainer.train()
        assert [evaluation["step"] for evaluation in callback.evaluations] == [0, 1]
        assert "wandb has no plots of step 1: no space left" in caplog.text


SCRIPT = """
    import json, sys

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from ugap.data.facts import load_facts
    from ugap.study.excerpts import Excerpt
    from ugap.training.evaluation.callback import UncertaintyGapCallback

    torch.set_num_threads(1)
    folder, output = sys.argv[1:]
    excerpts = [Excerpt(**row) for row in json.load(open(f"{folder}/excerpts.json"))]
    config = SFTConfig(
        output_dir=output, use_cpu=True, bf16=False, report_to="none", max_steps=1, max_length=32, seed=1,
        per_device_train_batch_size=2, save_strategy="no", learning_rate=0.05,
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        args=config,
        train_dataset=Dataset.from_dict({"text": [excerpt.human for excerpt in excerpts]}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(target_modules="all-linear"),
    )
    callback = UncertaintyGapCallback(
        trainer, excerpts, facts=load_facts(limit=5), max_new_tokens=24, batch_size=2, eval_every=0
    )
    trainer.add_callback(callback)
    trainer.train()
    with open(f"{output}/evaluations-{trainer.accelerator.process_index}.json", "w") as file:
        json.dump(callback.evaluations, file)
"""


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one(tiny_folder, excerpts, tmp_path):
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    # Three units of work for two processes, one of them of a single text.
    rows = [
        {"id": e.id, "source": e.source, "domain": e.domain, "prefix": e.prefix, "human": e.human} for e in excerpts
    ]
    (tmp_path / "excerpts.json").write_text(json.dumps(rows[:5]))
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    # Without GPUs, `--multi_gpu` is how accelerate starts several processes without MPI.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    for name, words in (("two", launch), ("one", [])):
        command = [sys.executable, *words, str(script), str(tmp_path), str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    two = [json.loads((tmp_path / "two" / f"evaluations-{rank}.json").read_text()) for rank in range(2)]
    assert two[0] == two[1]
    (one,) = (json.loads((tmp_path / "one" / "evaluations-0.json").read_text()),)
    assert two[0][0] == pytest.approx(one[0], rel=1e-6)
    assert math.isfinite(two[0][1]["ugap/creative/gap_closed"])
    written = (tmp_path / "two" / EVALUATIONS_FILE).read_text().splitlines()
    assert [json.loads(line) for line in written] == two[0]
