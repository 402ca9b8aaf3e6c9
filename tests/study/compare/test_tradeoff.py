import pytest

from ugap.study.compare.tradeoff import tradeoff_points


def row(writer, decoding, gap, scorer="self", half=0.2):
    measures = {"nll": {"gap": gap, "ci95": [gap - half, gap + half]}} if gap is not None else {}
    return {"writer": writer, "decoding": decoding, "scorer": scorer, "measures": measures}


def accuracy(writer, test, value):
    return {"writer": writer, "test": test, "kind": None, "accuracy": value, "ci95": (value - 0.1, value + 0.1)}


@pytest.fixture
def record():
    return {
        "scorers": [{"scorer": "self"}, {"scorer": "gemma"}],
        "settings": {"decodings": {"ancestral": {}, "cold": {}}},
        "rows": [
            row("base", "ancestral", 0.8),
            row("base", "cold", 1.2),
            row("base", "temperature-matched", 0.1),
            row("ours", "ancestral", -0.1),
            row("ours", "cold", 0.3),
            row("silent", "ancestral", None),
            row("ours", "ancestral", 0.5, scorer="gemma"),
            {**row("base", "ancestral", 0.4, scorer="gemma"), "measures": {"nll": {"gap": 0.4, "ci95": [None, None]}}},
        ],
        "facts": {
            "accuracies": [
                accuracy("base", "contrastive", 0.7),
                accuracy("ours", "contrastive", 0.6),
                accuracy("base", "ancestral", 0.2),
                accuracy("base", "cold", 0.3),
                accuracy("base", "temperature-matched", 0.1),
                accuracy("ours", "ancestral", 0.4),
                accuracy("ours", "cold", 0.5),
                {**accuracy("ours", "cold", 0.9), "kind": "capitals"},
            ]
        },
    }


def test_contrastive(record):
    points = tradeoff_points(record)
    found = {(p["scorer"], p["decoding"], p["model"], p["own_decoding"]): p for p in points}
    assert list(found) == [
        ("self", "ancestral", "base", "ancestral"),
        ("self", "ancestral", "base", "temperature-matched"),
        ("self", "ancestral", "ours", "ancestral"),
        ("self", "cold", "base", "cold"),
        ("self", "cold", "base", "temperature-matched"),
        ("self", "cold", "ours", "cold"),
        ("gemma", "ancestral", "ours", "ancestral"),
        ("gemma", "ancestral", "base", "ancestral"),
    ]
    overshot = found["self", "ancestral", "ours", "ancestral"]
    assert (overshot["gap"], overshot["size"]) == (-0.1, 0.1)
    assert overshot["size_ci95"] == pytest.approx([0.0, 0.3])
    assert found["self", "cold", "base", "cold"]["size_ci95"] == pytest.approx([1.0, 1.4])
    assert found["gemma", "ancestral", "base", "ancestral"]["size_ci95"] == [None, None]
    # The base at the matched temperature is as near as ours, and knows what the base knows.
    on = [p["pareto"] for p in points]
    assert on == [False, True, False, False, True, False, False, True]


def test_generative(record):
    points = [p for p in tradeoff_points(record, "generative") if p["scorer"] == "self"]
    assert [p["accuracy"] for p in points] == [0.2, 0.1, 0.4, 0.3, 0.1, 0.5]
    assert [p["pareto"] for p in points] == [False, False, True, False, True, True]
