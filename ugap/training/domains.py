"""The two domains of a training set: creative rows are moved to the human level, functional rows are held."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from ugap.errors import InputError

CREATIVE, FUNCTIONAL = "creative", "functional"
# Rows of a stream, which may be endless, among which functional ones are looked for.
STREAM_ROWS = 10_000


def check_domains(dataset: Dataset | IterableDataset, *, constrained: bool) -> None:
    """Refuse a training set whose rows do not say their domain, or have none to hold a constraint on.

    Args:
        dataset (`Dataset` or `IterableDataset`): The rows; of a stream only the columns are checked, and for a
            constraint its first rows.
        constrained (`bool`): Whether functional rows are needed.

    Raises:
        InputError: If there is no column `domain`, a row of it is of neither domain, there is no creative row, or no
            functional row while a constraint is asked for.

    Example:
        >>> check_domains(Dataset.from_dict({"text": ["So it goes."]}), constrained=False)
        Traceback (most recent call last):
        ...
        ugap.errors.InputError: the training set has no column 'domain'; it has 'text'
    """
    domains = _domains(dataset, "the training set")
    if domains is not None and CREATIVE not in domains:
        raise InputError("the training set has no creative rows")
    if constrained:
        functional_rows(dataset, 1)


def functional_rows(dataset: Dataset | IterableDataset, most: int) -> list[Mapping[str, Any]]:
    """The first functional rows of a training set, at most so many; of a stream, those among its first 10,000 rows.

    Raises:
        InputError: If there is none, or a row before them is of neither domain.
    """
    rows = dataset.take(STREAM_ROWS) if isinstance(dataset, IterableDataset) else dataset
    found, n = [], 0
    for n, row in enumerate(rows, 1):  # noqa: B007
        if not is_creative(row.get("domain")):
            found.append(row)
        if len(found) == most:
            break
    if not found:
        where = f"no functional rows among its first {n}" if n == STREAM_ROWS else "no functional rows"
        raise InputError(f"the training set has {where}, and the constraint is held on them")
    return found


def check_evaluation_domains(datasets: Any) -> None:
    """Refuse evaluation sets whose rows do not say their domain.

    Args:
        datasets (`Dataset`, `IterableDataset`, `Mapping` or `None`): As TRL takes them: one, or several by name.

    Raises:
        InputError: If a set has no column `domain`, or a row of it is of neither domain.
    """
    for name, dataset in evaluation_sets(datasets).items():
        _domains(dataset, name)


def evaluation_sets(datasets: Any) -> dict[str, Any]:
    """Evaluation sets as TRL takes them, by how an error names them."""
    named = datasets if isinstance(datasets, Mapping) else {"": datasets}
    return {f"the evaluation set {name}".rstrip(): one for name, one in named.items() if one is not None}


def is_creative(domain: object, place: str = "a row of the training or evaluation set") -> bool:
    """Whether a row is creative, by its `domain`.

    Raises:
        InputError: If it is of neither domain.
    """
    if domain not in (CREATIVE, FUNCTIONAL):
        raise InputError(f"{place} is of domain {domain!r}, not {CREATIVE!r} or {FUNCTIONAL!r}")
    return domain == CREATIVE


def _domains(dataset: Dataset | IterableDataset, name: str) -> set[str] | None:
    """The domains of a set; `None` for a stream, whose rows are seen later."""
    columns = dataset.column_names
    if columns is not None and "domain" not in columns:
        raise InputError(f"{name} has no column 'domain'; it has {', '.join(map(repr, columns))}")
    if isinstance(dataset, IterableDataset):
        return None
    domains = dataset["domain"]
    for number, domain in enumerate(domains):
        is_creative(domain, f"{name}'s row {number}")
    return set(domains)
