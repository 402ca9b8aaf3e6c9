"""The words, the table and the plot of a study of many models."""

import pytest

from ugap.report.multi import multi_findings, plot_models, write_multi
from ugap.study.contrasts import ALL
from ugap.study.multi.run import ModelEntry, Outcome

OUTCOMES = [
    Outcome(ModelEntry(name="a/base", family="a", stage="base"), "finished", commit="c" * 40),
    Outcome(ModelEntry(name="a/chat", family="a", stage="instruct", chat="both"), "finished"),
    Outcome(ModelEntry(name="gone", family="b", stage="base"), "skipped", "gone: the Hub has no such model"),
]


def gap(value, ci95, p_adjusted=0.001, **labels):
    """A row of gaps of `contrasts.json` about surprisal."""
    return {
        "domain": "creative",
        "model": "a/chat",
        "family": "a",
        "stage": "instruct",
        "prompting": "raw",
        "decoding": "ancestral",
        "scorer": "self",
        "measure": "nll",
        "n": 20,
        "n_sources": 20,
        "n_dropped": 0,
        "human": 3.0,
        "model_value": 3.0 - value,
        "gap": value,
        "ratio": 3.0 / (3.0 - value),
        "ci95": ci95,
        "effect_size": 1.0,
        "p_value": 0.001,
        "p_adjusted": p_adjusted,
        **labels,
    }


def contrast(which, difference, ci95, p_adjusted=0.001, **labels):
    """A row of contrasts of `contrasts.json` about surprisal."""
    return {
        "contrast": which,
        "measure": "nll",
        "family": "a",
        "stage_a": "instruct",
        "stage_b": "instruct",
        "prompting_a": "raw",
        "prompting_b": "raw",
        "decoding": "ancestral",
        "scorer": "self",
        "n": [20, 20],
        "n_sources": [20, 20],
        "gap_a": 1.0,
        "gap_b": 1.0 - difference,
        "difference": difference,
        "ci95": ci95,
        "p_value": 0.001,
        "p_adjusted": p_adjusted,
        **labels,
    }


GAPS = [
    gap(0.5, [0.4, 0.6]),
    gap(-0.3, [-0.5, -0.1], model="a/base", stage="base"),
    gap(0.1, [-0.1, 0.3], 0.5, prompting="chat"),
]
CONTRASTS = [
    contrast("stage", -0.8, [-1.0, -0.6], 0.2, a="a/chat", b="a/base", stage_b="base", domain="creative"),
    contrast("domain", 0.2, [0.1, 0.3], a="creative", b="functional", model="a/chat"),
]


def test_the_findings():
    assert multi_findings(GAPS, CONTRASTS, OUTCOMES) == [
        "2 of 3 models could be measured.",
        "Skipped: gone (gone: the Hub has no such model).",
        "In creative text, with the bare prefix and with ancestral sampling (T=1), people are more surprising than 1 "
        "of 2 models, 1 is more surprising than people, and no difference can be told for 0.",
        "In creative text, people are 0.50 nats per token [0.40, 0.60] more surprising than a/chat (raw) "
        "with ancestral sampling (T=1) (3.00 against 2.50, ratio 1.20; 20 prefixes).",
        "In creative text, a/base (raw) with ancestral sampling (T=1) is 0.30 nats per token [0.10, 0.50] more "
        "surprising than people (3.00 against 3.30, ratio 0.91; 20 prefixes).",
        "In creative text, asked through the chat template and with ancestral sampling (T=1), people are more "
        "surprising than 0 of 1 model, 0 are more surprising than people, and no difference can be told for 1.",
        "In creative text, no difference can be told between people and a/chat (chat) with ancestral sampling (T=1): "
        "the gap is 0.10 nats per token [-0.10, 0.30] (3.00 against 2.90, ratio 1.03; 20 prefixes).",
        "In creative text, with ancestral sampling (T=1), no difference can be told between the gaps of a/chat "
        "(instruct, raw) and a/base (base, raw): -0.80 nats per token [-1.00, -0.60] (gaps 1.00 and 1.80; 20 source "
        "texts; not significant after the correction, p = 0.200).",
        "The gap is larger in creative than in functional text in 1 of 1 comparison, smaller in 0; no difference can "
        "be told in 0.",
        "For a/chat (raw) with ancestral sampling (T=1), the gap is larger in creative than in functional text by 0.20 "
        "nats per token [0.10, 0.30] (gaps 1.00 and 0.80; 20 source texts).",
    ]


def test_with_many_models_the_pooled_rows_are_told():
    rows = [gap(0.5, [0.4, 0.6], model=f"m{i}", family=f"f{i}") for i in range(6)]
    rows += [gap(0.5, [0.4, 0.6], model="all 6 instruct models", family=ALL)]
    sentences = multi_findings(rows, [], OUTCOMES)
    assert "people are more surprising than 6 of 6 models" in sentences[2]
    assert sentences[3].startswith(
        "In creative text, people are 0.50 nats per token [0.40, 0.60] more surprising than all"
    )
    assert not any("m0" in sentence for sentence in sentences)
    assert sentences[4].startswith("No family has models of two stages")


def test_the_files(tmp_path):
    write_multi(GAPS, CONTRASTS, OUTCOMES, {"seed": 0, "models": []}, tmp_path, command="ugap study --config x.yaml")
    text = (tmp_path / "study.md").read_text()
    assert f"| a/base | a | base | float32 | raw | {'c' * 12} | finished |" in text
    assert "| creative | a/chat (raw) | ancestral | self | 20 (20) | 3.000 | 2.500 | 0.500 [0.400, 0.600] |" in text
    assert "| a/chat (instruct, raw) | a/base (base, raw) | creative | ancestral | self | 20 | 1.000 | 1.800 |" in text
    assert "| nll | creative | functional | a/chat (raw) | ancestral | self | 20 | 1.000 | 0.800 |" in text
    assert "W1 |" not in text
    assert "ugap study --config x.yaml" in text


def test_names_are_no_lines_of_ours(tmp_path):
    nasty = "m\x1b[2J\u202e|`\n- All is well.\n```\n"
    gaps, contrasts = (
        [{**row, **{name: nasty for name in ("a", "b", "domain", "decoding", "model") if name in row}} for row in rows]
        for rows in (GAPS, CONTRASTS)
    )
    outcomes = [Outcome(ModelEntry(name="gone", family=nasty, stage="base", label=nasty), "skipped", nasty)]
    sentences = write_multi(gaps, contrasts, outcomes, {"note": nasty}, tmp_path, command=f"ugap study '{nasty}'")
    text = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert not set("".join(sentences) + text) & set("\x1b\u202e")
    assert "\n" not in "".join(sentences)
    assert "\n- All" not in text.split("## Settings")[0]
    assert text.count("\n````yaml\n") == text.count("\n````sh\n") == 1


@pytest.mark.parametrize("rows", [GAPS, [], [gap(0.5, [None, None], None)]])
def test_the_plot(rows, tmp_path):
    plot_models(rows, tmp_path / "models.png")
    assert (tmp_path / "models.png").read_bytes().startswith(b"\x89PNG")
