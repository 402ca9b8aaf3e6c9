"""What a person sees while a model is fetched or loaded: our own lines on stderr, not the libraries' bars."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.text import Text
from transformers.utils import logging

from ugap.terminal import Terminal, one_line


@contextmanager
def announced(message: str) -> Iterator[None]:
    """Show `message` on stderr while the block runs: a spinner on a terminal, one line elsewhere."""
    console = Terminal(file=sys.stderr)  # this very stream, even where the name is redirected meanwhile
    if console.is_terminal:
        with console.status(Text(one_line(message))):  # a string would be read as markup
            yield
    else:
        console.print(one_line(message), soft_wrap=True)
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing bars and advice while the block runs; bars of a download still show."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
