import pytest

from ugap.data import TextRow
from ugap.report.labels import named
from ugap.report.tables import markdown
from ugap.study import StudySettings, parse_decodings, run_study


@pytest.fixture(scope="session")
def evil():
    """A text that tries to be markup, and to end the script that it stands in."""
    return "<script>window.hacked=1</script><!--<script> & 'quoted' \"words\" </script></textarea>"


@pytest.fixture(scope="session")
def evil_folder(tmp_path_factory, text_rows, tiny_folder, evil):
    """The folder of a study: two decodings in two domains, the first text and its prompt try to be markup."""
    settings = StudySettings(
        models=[str(tiny_folder)],
        decodings=parse_decodings(["ancestral", "top-p-0.9"]),
        prefix_tokens=8,
        max_new_tokens=12,
        per_text=1,
        seed=3,
    )
    rows = [dict(row) for row in text_rows]
    rows[0] |= {"prompt": evil, "text": f"{evil} {rows[0]['text']}"}
    folder = tmp_path_factory.mktemp("studies") / "study"
    record = run_study([TextRow(**row) for row in rows], settings, folder, data=["mine"]).record
    report = markdown(record["gaps"], record["contrasts"], record["settings"], 'ugap measure --data "<b>.jsonl" ````')
    (folder / "gap.md").write_text(report, encoding="utf-8")
    return folder


@pytest.fixture
def gap_row():
    """Make a row of `gap.json`; the gap is 0.48 nats per token with an interval above 0 unless said otherwise."""

    def make(gap=0.48, ci95=(0.41, 0.55), human=2.97, **fields):
        model_value = None if gap is None else human - gap
        row = {
            "domain": "creative",
            "model": "gemma-3-270m",
            "decoding": "top-p-0.9",
            "scorer": "self",
            "measure": "nll",
            "n": 16,
            "n_sources": 8,
            "human": human,
            "model_value": model_value,
            "gap": gap,
            "ratio": human / model_value if model_value else None,
            "ci95": None if ci95 is None else list(ci95),
            "effect_size": 1.25,
            "p_value": 0.001,
            "p_adjusted": 0.008,
            "wasserstein": 0.51,
        }
        assert fields.keys() <= row.keys()
        return row | fields

    return make


@pytest.fixture
def contrast_row():
    """Make a contrast of domains, or of models where `contrast="stage"`."""

    def make(difference=0.3, ci95=(0.1, 0.5), contrast="domain", **fields):
        row = {
            "contrast": contrast,
            "stage_a": "instruct",
            "stage_b": "base",
            "prompting_a": "raw",
            "prompting_b": "raw",
            "decoding": "ancestral",
            "scorer": "self",
            "measure": "nll",
            "difference": difference,
            "ci95": list(ci95),
            "p_value": 0.001,
            "p_adjusted": 0.01,
            "n_sources": [16, 40] if contrast == "domain" else [16, 16],
            "gap_a": 0.9,
            "gap_b": None if difference is None else 0.9 - difference,
        }
        if contrast == "domain":
            row |= {"a": "creative", "b": "functional", "model": "gemma-3-270m"}
        else:
            row |= {"a": "smol", "b": "gemma-3-270m", "domain": "creative"}
        return named(row | fields, False)

    return make


@pytest.fixture
def study(gap_row):
    """Rows of a study: every combination of models, decodings and domains, with the gaps in a fixed order of size."""

    def make(
        models=("gemma-3-270m", "smollm2-135m-instruct"), decodings=3, domains=("creative", "functional"), **fields
    ):
        names = ("ancestral", "greedy", "top-p-0.9", *(f"custom-{i}" for i in range(20)))[:decodings]
        size = {"ancestral": -0.2, "greedy": 1.9}
        return [
            gap_row(
                gap=size.get(decoding, 0.5) + 0.1 * i,
                ci95=(size.get(decoding, 0.5) + 0.1 * i - 0.15, size.get(decoding, 0.5) + 0.1 * i + 0.15),
                model=model,
                decoding=decoding,
                domain=domain,
                **fields,
            )
            for i, domain in enumerate(domains)
            for model in models
            for decoding in names
        ]

    return make
