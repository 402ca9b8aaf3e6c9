"""Chats to token ids, through the template that a tokenizer brings: a program that others wrote.

jinja's sandbox keeps a template from files and from Python, but lets it take all memory and all time. So it runs
within bounds, which hold for every way to exceed them: a limit of the kernel for memory and an alarm for time. Both
are of POSIX; the alarm needs the main thread. Elsewhere a template runs without.
"""

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase

from ugap.errors import InputError, reading

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SECONDS = 10
MEGABYTES = 512
_MAX_CHARACTERS = 10_000_000  # more than any model's context


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], name: str) -> list[int]:
    """Token ids of a chat in the tokenizer's template, ready for the answer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A tokenizer with a chat template.
        messages (`Sequence[Mapping[str, Any]]`): The messages, each with its `role` and `content`.
        name (`str`): How an error names the model, or the chat.

    Raises:
        InputError: The template cannot be parsed, refuses the messages, or takes more than `SECONDS` or `MEGABYTES`.

    Example:
        >>> messages = [{"role": "user", "content": "Tell me a story."}]
        >>> chat_ids(tokenizer, messages, "smollm2")  # doctest: +SKIP
        [1, 9690, 198, ...]
    """
    what = f"{name}: the chat template fails"
    with reading(what):
        with _bounded(what):
            rendered = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        if len(rendered) > _MAX_CHARACTERS:
            raise InputError(f"{what}: it makes {len(rendered):,} characters of the chat")
        return tokenizer(rendered, add_special_tokens=False)["input_ids"]


@contextmanager
def _bounded(what: str) -> Iterator[None]:
    """Bound the memory and the time of a block."""
    try:
        with _memory_limit(), _time_limit():
            yield
    except MemoryError as error:
        raise InputError(f"{what}: it takes more than {MEGABYTES} MB of memory") from error
    except _TimeUp as error:
        raise InputError(f"{what}: it takes more than {SECONDS} seconds") from error


@contextmanager
def _memory_limit() -> Iterator[None]:
    if resource is None or not os.path.exists("/proc/self/statm"):
        yield
        return
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()  # bytes of address space, which RLIMIT_AS bounds
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [limit for limit in (soft, hard, taken + MEGABYTES * 2**20) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _TimeUp(BaseException):
    """The block took too long; no `Exception`, since jinja takes those of constants for something to try again."""


@contextmanager
def _time_limit() -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def time_up(number: int, frame: FrameType | None) -> None:
        raise _TimeUp

    handler = signal.signal(signal.SIGALRM, time_up)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)  # an alarm that others had set keeps running
        signal.signal(signal.SIGALRM, handler)
