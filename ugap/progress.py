"""The progress bar of long work."""

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ugap.terminal import Terminal, one_line


def progress_bar(*, disable: bool = False) -> Progress:
    """A bar with what is done, how much of it, the time it took and the time that is left, for every task."""
    return Progress(
        _Description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Terminal(),
        disable=disable,
    )


class _Description(ProgressColumn):
    """The task in words, in which a name may hold anything."""

    def render(self, task: Task) -> Text:
        return Text(one_line(task.description))
