"""The domains of texts: creative text is moved to the human level in training, functional text is held."""

from ugap.data.texts import TextRow, load_texts
from ugap.errors import InputError

CREATIVE, FUNCTIONAL = "creative", "functional"


def load_domain(source: str, domain: str) -> list[TextRow]:
    """Read the texts of one domain, see [`load_texts`][].

    Args:
        source (`str`): A file, a Hub data set or `"demo"`.
        domain (`str`): The domain.

    Raises:
        InputError: If the source cannot be read, or has no text of the domain.

    Example:
        >>> {row.domain for row in load_domain("demo", "functional")}
        {'functional'}
    """
    kept = [row for row in load_texts(source) if row.domain == domain]
    if not kept:
        raise InputError(f"{source}: no text of the domain {domain!r}")
    return kept
