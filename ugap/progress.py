"""The progress of long work: a bar on a terminal, and lines elsewhere, as in a log file."""

import math
from datetime import timedelta
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ugap.terminal import Terminal, one_line

# Seconds between two lines of one task. A log of a night should stay readable.
EVERY = 60.0


def progress_bar(*, disable: bool = False, stderr: bool = False) -> Progress:
    """Shows what is done of every task, how much of it, the time it took and the time that is left.

    Args:
        disable (`bool`, *optional*, defaults to `False`): Show nothing.
        stderr (`bool`, *optional*, defaults to `False`): Show it on stderr, where stdout is for results, and remove the
            bar at the end.
    """
    console = Terminal(stderr=stderr, soft_wrap=True)
    if not console.is_terminal:
        return _Lines(console, silent=disable)
    return Progress(
        _Description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=stderr,
        redirect_stdout=not stderr,
        redirect_stderr=not stderr,
        disable=disable,
    )


class _Lines(Progress):
    """A line for a task that ends, and one a minute before.

    Args:
        console (`Terminal`): Where the lines go.
        silent (`bool`): Write none.
    """

    def __init__(self, console: Terminal, *, silent: bool):
        super().__init__(disable=True)
        self._stream, self._silent = console, silent
        self._due: dict[TaskID, float] = {}  # when the next line of a task is due

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count, and write the line that is due."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task, and write the line that is due."""
        super().update(task_id, **changes)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        task = next(task for task in self.tasks if task.id == task_id)
        now = self.get_time()
        began = now if task.start_time is None else task.start_time
        due = self._due.setdefault(task_id, began + EVERY)
        if self._silent or not task.total or math.isinf(due) or (now < due and not task.finished):
            return
        self._due[task_id] = math.inf if task.finished else now + EVERY
        line = f"{one_line(task.description)}: {task.completed:,.0f} of {task.total:,.0f} in {span(now - began)}"
        if not task.finished and task.completed:
            line += f", about {span((now - began) * (task.total / task.completed - 1))} left"
        self._stream.print(line)


def span(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Example:
        >>> span(3725.4), span(59.6)
        ('1:02:05', '0:01:00')
    """
    return str(timedelta(seconds=round(seconds)))


class _Description(ProgressColumn):
    """The task in words, in which a name may hold anything."""

    def render(self, task: Task) -> Text:
        return Text(one_line(task.description))
