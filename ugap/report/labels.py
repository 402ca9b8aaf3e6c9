"""Who wrote a text, as the page calls it: models by name, given texts as one writer whose candidates are its series."""

from collections.abc import Mapping
from typing import Any, Protocol

from ugap.study.contrasts import DOMAIN, STAGE
from ugap.study.pairs import GIVEN, SELF

GIVEN_TEXTS = "given texts"


class Labelled(Protocol):
    """What has the labels of a cell."""

    @property
    def model(self) -> str: ...
    @property
    def prompting(self) -> str: ...
    @property
    def decoding(self) -> str: ...
    @property
    def scorer(self) -> str: ...


def writer(of: Labelled, both: bool) -> tuple[str, str]:
    """Writer and scorer; the prompting is in the name where the study has both kinds."""
    # Each candidate as a writer would be a panel each: they are compared in one.
    if of.decoding == GIVEN:
        return GIVEN_TEXTS, of.scorer
    return with_prompting(of.model, of.prompting, both), SELF if of.scorer == of.model else of.scorer


def label(of: Labelled) -> str:
    """The series of a writer: a decoding, or the name of a given candidate."""
    return of.model if of.decoding == GIVEN else of.decoding


def with_prompting(model: str, prompting: str, both: bool) -> str:
    """The model's name, with the prompting where a study has both kinds."""
    return f"{model} ({prompting})" if both else model


def named(row: Mapping[str, Any], both: bool) -> dict[str, Any]:
    """Add the prompting, and in a contrast of stages the stage, to the model names in a row of gaps or contrasts."""
    contrast = row.get("contrast")
    if contrast == STAGE:
        marks = {side: [row[f"stage_{side}"], *([row[f"prompting_{side}"]] if both else [])] for side in ("a", "b")}
        return {**row, **{side: f"{row[side]} ({', '.join(mark)})" for side, mark in marks.items()}}
    prompting = row["prompting_a"] if contrast == DOMAIN else row["prompting"]
    return {**row, "model": with_prompting(row["model"], prompting, both)}
