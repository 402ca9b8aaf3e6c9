"""The study of many models: what runs, what is skipped, what is gone on with, and the contrasts."""

import gc
import json
import logging
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import yaml
from scipy import stats

import ugap.models.hub
import ugap.study.multi.run
from ugap.cli.programs import configs_folder
from ugap.data import TextRow
from ugap.errors import InputError
from ugap.files import locked
from ugap.models import load_model
from ugap.models.hub import resolve_commit
from ugap.scoring import Scorer
from ugap.statistics import paired_gap
from ugap.study.contrasts import ALL, CONTRAST_MEASURES
from ugap.study.multi.contrasts import ModelCell, contrast_multi, read_cells
from ugap.study.multi.run import ModelEntry, MultiSettings, model_folder, parse_models, read_lock, run_multi

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def rows(text_rows):
    return [TextRow(**row) for row in text_rows]


@pytest.fixture
def settings(tiny_folder, chat_folder):
    """A base model, a model that is nowhere, and an instruct model asked both ways."""
    return MultiSettings(
        models=[
            ModelEntry(name=str(tiny_folder), label="tiny base", family="tiny", stage="base"),
            ModelEntry(name="./nowhere", family="other", stage="base"),
            ModelEntry(name=str(chat_folder), label="tiny chat", family="tiny", stage="instruct", chat="both"),
        ],
        prefix_tokens=8,
        max_new_tokens=16,
        limit=6,
        per_text=1,
    )


@pytest.fixture
def loaded(monkeypatch, caplog):
    """Names of the models that were loaded, and weak references to them; how many of those live at each load."""
    caplog.set_level(logging.ERROR, "ugap.scoring")  # pytest keeps records, and one of a bad text holds its frames
    names: list[str] = []
    models: list[weakref.ref] = []
    alive: list[int] = []
    original = vars(Scorer)["from_pretrained"].__func__

    def load(cls, /, name, **options):
        gc.collect()
        alive.append(sum(model() is not None for model in models))
        names.append(name)
        scorer = original(cls, name, **options)
        models.append(weakref.ref(scorer.model))
        return scorer

    monkeypatch.setattr(Scorer, "from_pretrained", classmethod(load))
    return names, models, alive


def test_it_runs_skips_frees_and_does_not_run_again(settings, rows, loaded, tmp_path, tiny_folder, chat_folder):
    names, models, alive = loaded
    said: list[str] = []
    outcomes = run_multi(rows, settings, tmp_path / "out", say=said.append)
    assert [(one.model.title, one.status) for one in outcomes] == [
        ("tiny base", "finished"),
        ("./nowhere", "skipped"),
        ("tiny chat", "finished"),
    ]
    assert outcomes[1].reason == (
        "./nowhere: neither a folder, nor an asset (gemma-3-270m, smollm2-135m-instruct), nor a Hub id"
    )
    assert said == ["tiny base: done", f"./nowhere: skipped: {outcomes[1].reason}", "tiny chat: done"]
    assert names == [str(tiny_folder), str(chat_folder)]
    assert alive == [0, 0]
    gc.collect()
    assert [model() for model in models] == [None, None]

    record = json.loads((tmp_path / "out" / "models" / "tiny-chat" / "gap.json").read_text())
    assert {row["prompting"] for row in record["gaps"]} == {"raw", "chat"}
    assert not (tmp_path / "out" / "lock.yaml").exists()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "models").glob("tiny-*/*")}
    with pytest.raises(InputError, match="there are results already"):
        run_multi(rows, settings, tmp_path / "out")
    said.clear()
    run_multi(rows, settings, tmp_path / "out", resume=True, say=said.append)
    assert [line.partition(": ")[2][:15] for line in said] == ["finished before", "skipped: ./nowh", "finished before"]
    assert len(names) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_was_skipped_is_tried_again(settings, rows, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run_multi(rows, replace(settings, models=settings.models[:2]), "out")
    assert [one.status for one in first] == ["finished", "skipped"]
    shutil.copytree(tiny_folder, "nowhere")
    again = run_multi(rows, replace(settings, models=settings.models[:2]), "out", resume=True)
    assert [(one.status, one.reason) for one in again] == [("finished", ""), ("finished", "")]


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(settings, rows, tmp_path, loaded, monkeypatch):
    names, _, _ = loaded
    whole = run_multi(rows, settings, tmp_path / "whole")
    names.clear()
    output, original = tmp_path / "killed", vars(ugap.study.multi.run)["run_locked"]

    def killed(rows, one, folder, **options):
        if folder.name == "tiny-chat":
            monkeypatch.setattr(Scorer, "score", interrupted)
        return original(rows, one, folder, **options)

    scored, score = [], Scorer.score

    def interrupted(self, *args, **options):
        scored.append(1)
        if len(scored) == 4:
            raise KeyboardInterrupt
        return score(self, *args, **options)

    monkeypatch.setattr(ugap.study.multi.run, "run_locked", killed)
    with pytest.raises(KeyboardInterrupt):
        run_multi(rows, settings, output)
    monkeypatch.setattr(ugap.study.multi.run, "run_locked", original)
    monkeypatch.setattr(Scorer, "score", score)
    chat = output / "models" / "tiny-chat"
    assert not (chat / "gap.json").exists()
    parts = {path: path.read_bytes() for path in chat.glob("parts/*/*.part.parquet")}
    assert 4 < len(parts) < 8  # all four of generation (two domains, two promptings), some of the four of scoring
    (output / "models" / "tiny-base" / "gap.json").write_text('{"version": 1, "ga')  # half-written by someone else

    names.clear()
    outcomes = run_multi(rows, settings, output, resume=True)
    assert [one.status for one in outcomes] == [one.status for one in whole]
    assert len(names) == 2  # that of the broken record as well
    assert {path: path.read_bytes() for path in parts} == parts
    for name in ("tiny-base", "tiny-chat"):
        ends = [json.loads((tmp_path / run / "models" / name / "gap.json").read_text()) for run in ("whole", "killed")]
        assert ends[0] == ends[1]


@pytest.mark.slow
def test_shards_share_the_models(settings, rows, tmp_path):
    output = tmp_path / "out"
    first = run_multi(rows, settings, output, shard=(0, 2))
    assert [one.status for one in first] == ["finished", "open", "finished"]
    second = run_multi(rows, settings, output, shard=(1, 2))
    assert [one.status for one in second] == ["finished", "skipped", "finished"]


def test_no_model_at_all(settings, rows, tmp_path):
    with pytest.raises(InputError, match=r"^no model could be run; the first: \./nowhere: neither a folder"):
        run_multi(rows, replace(settings, models=settings.models[1:2]), tmp_path / "out")
    corrected = replace(settings, models=settings.models[:1], seed=1)  # there is nothing to go on with: no --resume
    assert [one.status for one in run_multi(rows, corrected, tmp_path / "out")] == ["finished"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 1}, "has seed 0, not 1"), ({"max_new_tokens": 24}, "has max_new_tokens 16, not 24")],
)
def test_other_settings_are_refused_before_a_model_is_loaded(
    settings, rows, tmp_path, loaded, tiny_folder, change, message
):
    settings = replace(settings, models=settings.models[:1])
    run_multi(rows, settings, tmp_path / "out")
    loaded[0].clear()
    with pytest.raises(InputError, match=message):
        run_multi(rows, replace(settings, **change), tmp_path / "out", resume=True)
    with pytest.raises(InputError, match="has data_hash"):
        run_multi(rows[1:], settings, tmp_path / "out", resume=True)
    changed = replace(settings.models[0], stage="instruct")
    with pytest.raises(InputError, match="has tiny base with other settings"):
        run_multi(rows, replace(settings, models=[changed]), tmp_path / "out", resume=True)
    assert loaded[0] == []


@pytest.mark.slow
def test_a_model_may_be_added(settings, rows, tmp_path, loaded):
    run_multi(rows, replace(settings, models=settings.models[:1]), tmp_path / "out")
    loaded[0].clear()
    outcomes = run_multi(rows, settings, tmp_path / "out", resume=True)
    assert [one.status for one in outcomes] == ["finished", "skipped", "finished"]
    assert len(loaded[0]) == 1


def test_what_does_not_fit_into_memory_is_skipped_and_a_bug_is_not(settings, rows, tmp_path, monkeypatch):
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    def load(cls, /, name, **options):
        raise error

    monkeypatch.setattr(Scorer, "from_pretrained", classmethod(load))
    with pytest.raises(InputError, match="it does not fit into memory"):
        run_multi(rows, replace(settings, models=settings.models[:1]), tmp_path / "out")
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        run_multi(rows, replace(settings, models=settings.models[:1]), tmp_path / "out", resume=True)


# commits


@pytest.mark.slow
def test_a_branch_is_resolved_once_and_held_to(settings, rows, tmp_path, monkeypatch):
    asked, used = [], []

    def resolve(*words):
        asked.append(words)
        return COMMIT

    monkeypatch.setattr(ugap.study.multi.run, "resolve_commit", resolve)

    def load(rows, one, folder, **options):
        raise InputError("no network")

    def of(self, model, commit):
        used.append(commit)

    monkeypatch.setattr(ugap.study.multi.run, "run_locked", load)
    monkeypatch.setattr(MultiSettings, "of", of)
    hub = ModelEntry(name="some/model", family="some", stage="base", revision="main")
    settings = replace(settings, models=[hub])
    for resume in (False, True):
        with pytest.raises(InputError, match="no network"):
            run_multi(rows, settings, tmp_path / "out", resume=resume)
    assert asked == [("some/model", "main")]
    assert used == [COMMIT, COMMIT]
    assert read_lock(tmp_path / "out" / "lock.yaml") == {"some/model": COMMIT}
    with pytest.raises(InputError, match=r"some/model: its folder says a{12}, the lock says b{12}"):
        run_multi(rows, settings, tmp_path / "out", resume=True, lock={"some/model": OTHER})
    used.clear()
    with pytest.raises(InputError, match="no network"):
        run_multi(rows, settings, tmp_path / "locked", lock={"some/model": OTHER})
    assert used == [OTHER]
    assert len(asked) == 1


def test_a_commit_is_what_it_is(monkeypatch):
    monkeypatch.setattr(ugap.models.hub, "model_info", lambda *args, **options: pytest.fail("asked the Hub"))
    assert resolve_commit("some/model", COMMIT) == COMMIT


def test_without_a_network_the_cache_says_the_commit(monkeypatch, tmp_path):
    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(ugap.models.hub, "model_info", refuse)
    cached = tmp_path / "snapshots" / COMMIT / "config.json"
    monkeypatch.setattr(ugap.models.hub, "try_to_load_from_cache", lambda *args, **options: str(cached))
    assert resolve_commit("some/model", "main") == COMMIT
    monkeypatch.setattr(ugap.models.hub, "try_to_load_from_cache", lambda *args, **options: None)
    with pytest.raises(InputError, match=r"^some/model: .*the Hub cannot be reached and its cache"):
        resolve_commit("some/model")


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a", "not a lock"), ("some/model: main", "'main' is not a commit"), ("a: [", "cannot be read as a lock")],
)
def test_a_bad_lock(tmp_path, content, message):
    path = tmp_path / "lock.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_lock(path)
    with pytest.raises(InputError, match="cannot be read as a lock"):
        read_lock(tmp_path / "none.yaml")


# models of the YAML file

GOOD = {"name": "m", "family": "f", "stage": "base"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "a list of models is needed"),
        ([], "a list of models is needed"),
        (["gemma"], "entry 1 is 'gemma', not a model"),
        ([{**GOOD, "famly": "f"}], r"entry 1 \(m\): unknown key 'famly'; there are name, family, stage, label"),
        ([{"name": "m", "family": "f"}], r"entry 1 \(m\): stage is missing"),
        ([{"family": "f", "stage": "base"}], r"entry 1 \(without a name\): name is missing"),
        (
            [GOOD, {**GOOD, "name": "n", "stage": "chat"}],
            r"entry 2 \(n\): stage 'chat' is none of base, instruct, reason",
        ),
        ([{**GOOD, "chat": "yes"}], "chat 'yes' is none of raw, template, both"),
        ([{**GOOD, "dtype": "int8"}], "dtype 'int8' is none of float32"),
        ([{**GOOD, "revision": 12}], "revision is 12, not text"),
        ([{**GOOD, "trust_remote_code": "please"}], "trust_remote_code is 'please', not yes or no"),
        ([GOOD, GOOD], "m and m share the title 'm': give one of them a label"),
        ([GOOD, {**GOOD, "name": "M"}], "M and m share the folder 'm'"),
        ([{**GOOD, "label": "***"}], "has no letter for a folder's name"),
    ],
)
def test_a_bad_list_of_models(entries, message):
    with pytest.raises(InputError, match=message):
        parse_models(entries)


@pytest.mark.parametrize(("name", "n"), [("study_28.yaml", 28), ("study_local.yaml", 3)])
def test_every_entry_of_a_shipped_list_is_complete(name, n):
    entries = yaml.safe_load((configs_folder() / name).read_text())["models"]
    models = parse_models(entries)
    assert len(models) == n
    for entry, model in zip(entries, models, strict=True):
        assert {"name", "family", "stage", "dtype", "chat"} <= set(entry)
        assert not model.trust_remote_code
        assert (model.chat == "both") == (model.stage == "instruct")
        if name == "study_28.yaml":
            assert "/" in model.name
            assert entry["revision"] == "main"
    families: dict[str, list[ModelEntry]] = {}
    for model in models:
        families.setdefault(model.family, []).append(model)
    for family in families.values():
        assert len({model.dtype for model in family}) == 1
        if name == "study_28.yaml":
            assert len({model.stage for model in family}) == len(family) > 1
            assert "base" in {model.stage for model in family}


# contrasts


def made_cell(model, domain, gap, *, prompting="raw", n=24, scorer="self", seed=0):
    """Two prefixes of each source, human text `gap` above the model's, the same noise for all cells of a seed."""
    rng = np.random.default_rng(seed)
    prefixes = [f"{domain[0]}{i // 2}#{i % 2}" for i in range(n)]
    human = {name: 3 + rng.normal(0, 0.3, n) for name in CONTRAST_MEASURES}
    noise = np.random.default_rng([seed, ord(model.stage[0])]).normal(0, 0.1, n)
    written = {name: values - gap + noise for name, values in human.items()}
    sources = [prefix.partition("#")[0] for prefix in prefixes]
    return ModelCell(model, domain, prompting, "ancestral", scorer, 0, prefixes, sources, human, written)


def entry(stage, family="f"):
    return ModelEntry(name=f"{family}-{stage}", family=family, stage=stage)


def planted():
    """An instruct model whose gap is 0.5 above its base's in creative text and the base's own in functional text."""
    base, instruct = entry("base"), entry("instruct")
    return [
        made_cell(base, "creative", 0.2),
        made_cell(base, "functional", 0.2),
        made_cell(instruct, "creative", 0.7),
        made_cell(instruct, "functional", 0.2),
        made_cell(instruct, "creative", 1.0, prompting="chat"),
    ]


def found(rows, **labels):
    return [row for row in rows if row["measure"] == "nll" and all(row[name] == labels[name] for name in labels)]


def test_a_planted_difference_has_the_right_sign():
    gaps, rows = contrast_multi(planted(), seed=0, resamples=500)
    (creative,) = found(rows, contrast="stage", domain="creative", prompting_a="raw")
    (functional,) = found(rows, contrast="stage", domain="functional")
    (chat,) = found(rows, contrast="stage", domain="creative", prompting_a="chat")
    assert (creative["a"], creative["b"], creative["n_sources"]) == ("f-instruct", "f-base", (12, 12))
    assert creative["difference"] == pytest.approx(0.5, abs=0.1)
    assert creative["ci95"][0] > 0.3
    assert creative["p_adjusted"] < 0.05
    assert functional["difference"] == pytest.approx(0, abs=0.1)
    assert functional["p_adjusted"] > 0.05
    assert chat["prompting_b"] == "raw"  # a base model has no other
    assert chat["difference"] == pytest.approx(0.8, abs=0.1)

    (domain,) = found(rows, contrast="domain", model="f-instruct")
    assert domain["difference"] == pytest.approx(0.5, abs=0.1)
    assert domain["p_adjusted"] < 0.05
    (gap,) = found(gaps, model="f-instruct", domain="creative", prompting="raw")
    assert gap["gap"] == pytest.approx(0.7, abs=0.1)
    assert gap["human"] > gap["model_value"]


def test_the_correction_is_over_the_rows_of_both_tables():
    gaps, contrasts = contrast_multi(planted(), seed=0, resamples=200)
    assert {row["contrast"] for row in contrasts} == {"stage", "domain"}
    rows = [*gaps, *contrasts]
    assert all(row["p_adjusted"] >= row["p_value"] for row in rows)
    secondary = [row for row in rows if row["measure"] != "nll"]
    expected = stats.false_discovery_control([row["p_value"] for row in secondary])
    assert [row["p_adjusted"] for row in secondary] == pytest.approx(list(expected))
    # Fewer rows, fewer that chance could make large: no p of the primary measure rises.
    alone, _ = contrast_multi(planted()[:1], seed=0, resamples=200)
    (one,), (of_many,) = ([row for row in table if row["measure"] == "nll"][:1] for table in (alone, gaps))
    assert one["gap"] == of_many["gap"]
    assert one["p_adjusted"] <= of_many["p_adjusted"]


def test_stages_are_paired_by_prefix_within_a_family():
    base, instruct = entry("base"), entry("instruct")
    a, b = made_cell(instruct, "creative", 0.7), made_cell(base, "creative", 0.2)
    less = replace(
        b,
        prefixes=b.prefixes[::2],
        sources=b.sources[::2],
        human={name: values[::2] for name, values in b.human.items()},
        written={name: values[::2] for name, values in b.written.items()},
    )
    (row,) = found(contrast_multi([a, less], seed=0)[1], contrast="stage")
    gap = (a.human["nll"] - a.written["nll"])[::2] - (less.human["nll"] - less.written["nll"])
    expected = paired_gap(gap, np.zeros_like(gap), less.sources, seed=0)
    assert row["n"] == [len(gap), len(gap)]
    assert row["difference"] == pytest.approx(expected.gap)
    assert row["ci95"] == pytest.approx(expected.ci95, rel=0.02)  # the sources are drawn in another order
    assert row["p_value"] == pytest.approx(expected.p_value, abs=1e-3)
    stranger = made_cell(entry("base", "g"), "creative", 0.2)
    assert not found(contrast_multi([a, stranger], seed=0, resamples=200)[1], contrast="stage")
    read = replace(b, scorer="gemma-3-270m")
    assert not found(contrast_multi([a, read], seed=0, resamples=200)[1], contrast="stage")
    reader = replace(b, scorer=a.model.name)  # what reads the base is the instruct model, which reads itself
    (row,) = found(contrast_multi([a, reader], seed=0, resamples=200)[1], contrast="stage")
    assert row["scorer"] == a.model.name


def test_models_of_a_stage_and_families_are_pooled():
    cells = [
        made_cell(entry(stage, family), "creative", gap, seed=seed)
        for seed, family in enumerate("fg")
        for stage, gap in (("base", 0.2), ("instruct", 0.6 if family == "f" else 0.8))
    ]
    gaps, rows = contrast_multi(cells, seed=0, resamples=200)
    (stage,) = found(rows, contrast="stage", family=ALL)
    assert (stage["a"], stage["b"], stage["n_sources"]) == (
        "all 2 families",
        "all 2 families",
        (12, 12),
    )
    assert (stage["stage_a"], stage["stage_b"], stage["n"]) == ("instruct", "base", [48, 48])
    assert stage["difference"] == pytest.approx(0.5, abs=0.1)
    pooled = {row["model"]: row["gap"] for row in found(gaps, family=ALL)}
    assert pooled == {
        "all 2 base models": pytest.approx(0.2, abs=0.1),
        "all 2 instruct models": pytest.approx(0.7, abs=0.1),
    }


def test_cells_are_what_the_studies_found(settings, rows, tmp_path):
    run_multi(rows, settings, tmp_path / "out")
    for model in (settings.models[0], settings.models[2]):
        cells = read_cells(tmp_path / "out", model)
        record = json.loads((model_folder(tmp_path / "out", model) / "gap.json").read_text())
        estimates = {
            (row["domain"], row["prompting"], row["measure"]): row
            for row in record["gaps"]
            if row["measure"] in CONTRAST_MEASURES
        }
        gaps, _ = contrast_multi(cells, seed=settings.seed)
        by_label = {(row["domain"], row["prompting"], row["measure"]): row for row in gaps}
        assert by_label.keys() == estimates.keys()
        for key, row in by_label.items():
            labels = ("prompting", "decoding", "scorer", "n", "n_sources", "n_dropped")
            assert {name: row[name] for name in labels} == {name: estimates[key][name] for name in labels}
            for name in ("human", "model_value", "gap", "ci95"):
                assert row[name] == pytest.approx(estimates[key][name])


def test_a_model_is_loaded_at_its_commit(settings, rows, tmp_path, tiny_folder, monkeypatch):
    revisions, original = [], vars(Scorer)["from_pretrained"].__func__

    def load(cls, /, name, *, revision, **options):
        revisions.append((name, revision))
        scorer = original(cls, str(tiny_folder), **options)
        scorer.name = name
        return scorer

    monkeypatch.setattr(Scorer, "from_pretrained", classmethod(load))
    hub = ModelEntry(name="some/model", family="some", stage="base", revision=COMMIT)
    (outcome,) = run_multi(rows, replace(settings, models=[hub]), tmp_path / "out")
    assert revisions == [("some/model", COMMIT)]
    assert (outcome.status, outcome.commit) == ("finished", COMMIT)
    assert read_lock(tmp_path / "out" / "lock.yaml") == {"some/model": COMMIT}


@pytest.mark.slow
def test_a_local_model_that_was_trained_further_is_run_again(rows, tmp_path, make_model, save_model, loaded):
    names, _, _ = loaded
    model = make_model("llama", eos_token_id=0)
    folder = save_model("further", model)
    entry = ModelEntry(name=str(folder), label="further", family="tiny", stage="base")
    settings = MultiSettings(models=[entry], prefix_tokens=8, max_new_tokens=16, limit=2, per_text=1)
    hashes = []
    for _ in range(2):
        run_multi(rows, settings, tmp_path / "out", resume=True)
        record = json.loads((tmp_path / "out" / "models" / "further" / "gap.json").read_text())
        hashes.append(record["settings"]["weight_hashes"][str(folder)])
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        model.save_pretrained(folder)
    assert hashes[0] != hashes[1]
    assert len(names) == 2


@pytest.mark.slow
def test_texts_to_write_like(rows, tiny_folder, make_profile, tmp_path, loaded):
    names, _, _ = loaded
    make_profile(load_model(str(tiny_folder))[0], level=3.0).save(tmp_path / "profile.json")
    ours = {"human_weight": 1.0, "human_profile": str(tmp_path / "profile.json")}
    like = [" ".join(row.text.split()[::-1] * 2) for row in rows]
    settings = MultiSettings(
        models=[ModelEntry(name=str(tiny_folder), label="tiny", family="tiny", stage="base")],
        decodings={"ours": ours},
        like=like,
        prefix_tokens=8,
        max_new_tokens=16,
        limit=2,
        per_text=1,
    )
    for wrong, message in (
        (replace(settings, like=[row.text for row in rows]), "are texts to continue"),
        (replace(settings, decodings={"ancestral": {}}), "no decoding follows the texts"),
        (replace(settings, decodings={"ours": {**ours, "human_kind": "sermon"}}), "has no kind 'sermon'"),
    ):
        with pytest.raises(InputError, match=message):
            run_multi(rows, wrong, tmp_path / "out")
    assert not names
    run_multi(rows, settings, tmp_path / "out")
    record = json.loads((model_folder(tmp_path / "out", settings.models[0]) / "gap.json").read_text())
    (said,) = record["settings"]["like_levels"].values()
    assert said.startswith("12 texts: human level ")
    with pytest.raises(InputError, match="the study there has like"):
        run_multi(rows, replace(settings, like=like[1:]), tmp_path / "out", resume=True)


def test_a_model_that_another_process_runs_is_not_skipped(settings, rows, tmp_path):
    """The study ends, and says why; the other process's model is not written off."""
    with (
        locked(model_folder(tmp_path / "out", settings.models[0])),
        pytest.raises(InputError, match="tiny-base: another process is writing there"),
    ):
        run_multi(rows, settings, tmp_path / "out")
    assert not (tmp_path / "out" / "models" / "tiny-base" / "skipped.json").exists()
