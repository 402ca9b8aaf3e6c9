"""The two domains of a training set: creative rows are moved to the human level, functional rows are held."""

from datasets import Dataset, IterableDataset

from ugap.errors import InputError

CREATIVE, FUNCTIONAL = "creative", "functional"


def check_domains(dataset: Dataset | IterableDataset, *, constrained: bool) -> None:
    """Refuse a training set whose rows do not say their domain, or have none to hold a constraint on.

    Args:
        dataset (`Dataset` or `IterableDataset`): The rows; of a stream only the columns can be checked.
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
    columns = dataset.column_names
    if columns is not None and "domain" not in columns:
        named = ", ".join(map(repr, columns))
        raise InputError(f"the training set has no column 'domain'; it has {named}")
    if isinstance(dataset, IterableDataset):
        return
    domains = dataset["domain"]
    for number, domain in enumerate(domains):
        if domain not in (CREATIVE, FUNCTIONAL):
            raise InputError(
                f"the training set's row {number} is of domain {domain!r}, not {CREATIVE!r} or {FUNCTIONAL!r}"
            )
    if CREATIVE not in domains:
        raise InputError("the training set has no creative rows")
    if constrained and FUNCTIONAL not in domains:
        raise InputError("the training set has no functional rows, and the constraint is held on them")
