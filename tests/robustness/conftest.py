"""What the tests of robustness share: no damaged input may take much memory."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

MEGABYTES = 1500
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak() -> float:
    """The most memory that this process has had since the peak was reset, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) / 1024


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """A test takes at most `MEGABYTES` above what the process had before; where Linux does not tell, any."""
    if not (STATUS.exists() and RESET.exists()):
        yield
        return
    RESET.write_text("5")  # resets the peak
    before = peak()
    yield
    assert peak() - before < MEGABYTES
