"""The options of a command that reads human texts from several sources, and their reader."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ugap.cli.arguments import option

if TYPE_CHECKING:
    from ugap.data import TextRow


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The sources of human texts, and their columns."""

    data: list[str] = option(
        "human texts: .jsonl(.gz), .csv(.gz), .parquet, a Hub data set, or demo; several are joined",
        default=["demo"],
        group="texts",
        metavar="FILE",
    )
    text_column: str = option("column of the human text", default="text", group="texts", metavar="COLUMN")
    id_column: str = option("column of the id", default="id", group="texts", metavar="COLUMN")
    domain_column: str = option("column of the domain", default="domain", group="texts", metavar="COLUMN")
    prompt_column: str = option("column of the prompt, if any", default="prompt", group="texts", metavar="COLUMN")
    split: str = option("split of a Hub data set", default="train", group="texts")


def read_texts(
    texts: Texts, *, skip_bad: bool, domain: str | None = None, candidates: Mapping[str, str] | None = None
) -> "list[TextRow]":
    """The human texts of all sources.

    Args:
        texts (`Texts`): The sources and columns.
        skip_bad (`bool`): Log and skip bad rows instead of stopping.
        domain (`str`, *optional*): One domain for all texts, instead of their own.
        candidates (`Mapping[str, str]`, *optional*): Columns of given continuations by name.

    Raises:
        InputError: A source cannot be read, or a row is bad.
    """
    from ugap.data import load_texts

    return [
        row
        for source in texts.data
        for row in load_texts(
            source,
            text_column=texts.text_column,
            id_column=texts.id_column,
            domain_column=texts.domain_column,
            prompt_column=texts.prompt_column,
            split=texts.split,
            skip_bad=skip_bad,
            domain=domain,
            candidates=candidates,
        )
    ]
