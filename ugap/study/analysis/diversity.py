"""Samples of several writers to the same prompts: how varied each is, compared with people.

Variety depends on how many texts there are and how long they are. So all texts are cut to one number of words (shorter
ones are left out and counted), and what a system wrote to one prompt is taken in sets of one number of texts. A prompt
with many texts gives several sets, which are not independent of each other: intervals and tests are over prompts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ugap.data.readers import BadRow, read_records
from ugap.errors import InputError
from ugap.statistics import contrast_paired, holm
from ugap.statistics.bootstrap import Clusters, Group, column, interval
from ugap.unicode import text_fault


@dataclass(frozen=True)
class SampleSet:
    """Texts of one system to one prompt, all of one number of words.

    Args:
        system (`str`): Who wrote.
        group (`str`): The prompt.
        texts (`tuple[str, ...]`): The texts.
    """

    system: str
    group: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Samples:
    """The sets of texts that were read.

    Args:
        sets (`list[SampleSet]`): The sets.
        n_texts (`dict[str, int]`): Texts of every system that are in a set.
        n_short (`dict[str, int]`): Texts of every system that were too short.
    """

    sets: list[SampleSet]
    n_texts: dict[str, int]
    n_short: dict[str, int]


def load_samples(
    source: str,
    *,
    group_column: str,
    text_column: str = "text",
    system_column: str | None = None,
    size: int = 8,
    words: int = 50,
) -> Samples:
    """Read texts, cut them to one number of words, and gather them in sets, in the order of the file.

    Args:
        source (`str`): See [`load_texts`][ugap.data.load_texts].
        group_column (`str`): Column of the prompt, or of another name for what the texts answer.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the text.
        system_column (`str`, *optional*): Column of who wrote; without it all are by one system, `"all"`.
        size (`int`, *optional*, defaults to `8`): Texts of a set.
        words (`int`, *optional*, defaults to `50`): Words of a text.

    Raises:
        InputError: If the source cannot be read, lacks a column or has a bad row; or no prompt has enough texts.
    """
    for name, value, least in (("size", size, 2), ("words", words, 4)):
        if value < least:
            raise InputError(f"{name} is {value}, and at least {least} is needed")
    columns = [text_column, group_column, *([system_column] if system_column is not None else [])]
    pools: dict[tuple[str, str], list[str]] = {}
    short: Counter[str] = Counter()
    for number, record in read_records(source, columns, [], "train"):
        where = f"{source}, row {number}"
        if isinstance(record, BadRow):
            raise InputError(f"{where}: {record.cause}")
        group, *written = (_label(record, name, where) for name in columns[1:])
        system = written[0] if written else "all"
        # Cut to one number of words: a longer text repeats more.
        words_of_text = _text(record[text_column], text_column, where).split()
        pool = pools.setdefault((system, group), [])
        if len(words_of_text) < words:
            short[system] += 1
        else:
            pool.append(" ".join(words_of_text[:words]))
    sets = [
        SampleSet(system, group, tuple(texts[begin : begin + size]))
        for (system, group), texts in pools.items()
        # An incomplete set at the end is left out: variety depends on the number of texts.
        for begin in range(0, len(texts) - size + 1, size)
    ]
    if not sets:
        raise InputError(f"{source}: no {group_column!r} has {size} texts of {words} words by one system")
    systems = list(dict.fromkeys(system for system, _ in pools))
    counts = {system: size * sum(one.system == system for one in sets) for system in systems}
    return Samples(sets, counts, {system: short[system] for system in systems})


def _label(record: Mapping[str, Any], name: str, where: str) -> str:
    if record[name] is None or record[name] == "" or isinstance(record[name], (list, dict)):
        raise InputError(f"{where}: column {name!r} names nothing")
    return str(record[name])


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: column {name!r} holds no text")
    if (fault := text_fault(value)) is not None:
        raise InputError(f"{where}: column {name!r} {fault}")
    return value


def compare_samples(
    sets: Sequence[SampleSet],
    measures: Sequence[dict[str, float]],
    reference: str | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Mean measures of every system over its sets, and their differences from a reference on the same prompts.

    Args:
        sets (`Sequence[SampleSet]`): The sets.
        measures (`Sequence[dict[str, float]]`): Their measures, see `ugap.study.analysis.variety.sample_variety`.
        reference (`str`, *optional*): The system that the others are compared with: people.
        resamples (`int`, *optional*, defaults to `2000`): Bootstrap resamples, of prompts.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Returns:
        `tuple[list[dict], list[dict]]`: Rows of `system`, `measure`, `n_sets`, `n_groups`, `mean` and `ci95`; and, with
        a reference, rows of `system`, `measure`, `n_sources` (prompts that both answered), `difference` (system less
        reference), `ci95`, `p_value` and `p_holm` (over all of them).
    """
    systems = list(dict.fromkeys(one.system for one in sets))
    means, differences = [], []
    for system in systems:
        of_system = [i for i, one in enumerate(sets) if one.system == system]
        of_reference = [i for i, one in enumerate(sets) if one.system == reference]
        # Prompts differ in how varied their answers are, so only those that both answered are compared.
        shared = {sets[i].group for i in of_system} & {sets[i].group for i in of_reference}
        for measure in measures[0]:
            values = column([measures[i][measure] for i in of_system], measure)
            clusters = Clusters.gather(values, [sets[i].group for i in of_system], "groups")
            ci95 = interval([Group([clusters], [1])], resamples=resamples, seed=seed)
            labels = {"system": system, "measure": measure}
            n_groups = len(clusters.sources)
            means.append(
                {**labels, "n_sets": len(of_system), "n_groups": n_groups, "mean": clusters.mean, "ci95": ci95}
            )
            if system != reference and shared:
                sides = [
                    ([measures[i][measure] for i in side], [sets[i].group for i in side])
                    for side in (of_system, of_reference)
                ]
                contrast = contrast_paired(*sides[0], *sides[1], resamples=resamples, seed=seed)
                differences.append({**labels, **asdict(contrast), "n_sources": contrast.n_sources[0]})
    # Over all systems and measures: they are read as one table.
    for row, p in zip(differences, holm([row["p_value"] for row in differences]), strict=True):
        row["p_holm"] = float(p)
    return means, differences
