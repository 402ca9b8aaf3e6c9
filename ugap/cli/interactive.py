"""`ugap generate --interactive`: write a text passage by passage, and take back what does not please."""

import math
from typing import NamedTuple

from rich.text import Text

from ugap.cli.writer import Screen, Writer, decoding_name, people_level, people_sentence
from ugap.errors import InputError
from ugap.report.written import Block, Written
from ugap.sampling import Generation, weight_of
from ugap.terminal import visible

MENU = """\
Enter goes on   again writes the passage anew   undo takes it back   + TEXT adds your own words
mode M          creative, balanced, precise or a weight in [0, 1]   quit ends"""
_TAIL = 60  # characters shown again before the next passage


class Passage(NamedTuple):
    """A part of the text.

    Args:
        text (`str`): Its text.
        decoding (`str`): Name of its decoding.
        one (`Generation`, *optional*): What the model wrote; `None` for the user's own words.
    """

    text: str
    decoding: str = ""
    one: Generation | None = None


class Session:
    """A text that grows by passages.

    Args:
        writer (`Writer`): Who writes.
        screen (`Screen`): Where it is shown.
        prompt (`str`): The beginning of the text.
        seed (`int`): Seed of the first passage; each later one has the next number.
        mode (`str`, *optional*): Mode of the sampler.
        weight (`float`, *optional*): Weight of the sampler, instead of a mode.
    """

    def __init__(self, writer: Writer, screen: Screen, prompt: str, seed: int, mode: str | None, weight: float | None):
        self._writer, self._screen, self.prompt = writer, screen, prompt
        self._seed, self._mode, self._weight = seed, mode, weight
        self.passages: list[Passage] = []

    def run(self) -> None:
        """Write the first passage, and then do what the lines of stdin say, to their end."""
        self._say(MENU + "\n")
        self._go_on()
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._say("")
                return
            word, _, rest = line.partition(" ")
            if word in ("quit", "q"):
                return
            self._obey(word, rest.strip())

    def text(self) -> str:
        """The whole text."""
        return self.prompt + "".join(passage.text for passage in self.passages)

    def texts(self) -> list[tuple[str, Generation]]:
        """What the model wrote, each passage with the name of its decoding."""
        return [(passage.decoding, passage.one) for passage in self.passages if passage.one is not None]

    def block(self) -> Block:
        """The whole text, for the page."""
        surprisal = [nats for _, one in self.texts() for nats in one.surprisal]
        pieces: list[tuple[str, float]] = []
        for text, _, one in self.passages:
            pieces += [(text, math.nan)] if one is None else self._writer.pieces(one)
        names = " and ".join(dict.fromkeys(name for name, _ in self.texts()))
        nll = sum(surprisal) / len(surprisal) if surprisal else math.nan
        last = self.texts()[-1][1] if surprisal else None
        level, people = (math.nan, "") if last is None else (people_level(last), people_sentence(last))
        return Block(self.prompt, level, people, [Written(names, nll, pieces)])

    def _obey(self, word: str, rest: str) -> None:
        """Do what one line says."""
        if word in ("", "go"):
            self._go_on()
        elif word in ("again", "a"):
            if self.passages and self.passages[-1].one is not None:
                self.passages.pop()
            self._go_on()
        elif word in ("undo", "u"):
            if self.passages:
                self.passages.pop()
            self._say("… " + visible(self.text()[-_TAIL:]))
        elif word in ("mode", "m"):
            self._change(rest)
        elif word == "+" and rest:
            space = "" if self.text()[-1].isspace() else " "
            self.passages.append(Passage(space + rest))
        else:
            self._say(MENU)

    def _change(self, name: str) -> None:
        """Take another mode, or a weight."""
        try:
            mode, weight = None, float(name)
        except ValueError:
            mode, weight = name, None
        try:
            weight_of(mode, weight)
        except InputError as error:
            self._say(visible(str(error)))
        else:
            self._mode, self._weight = mode, weight

    def _go_on(self) -> None:
        """Write the next passage. Ctrl-C leaves it out."""
        before, seed = self.text(), self._seed
        self._seed += 1
        shown = before if not self.passages else "… " + before[-_TAIL:]
        self._screen.prompt(before, shown)
        try:
            ((one,),) = self._writer.batches(
                [before], seed, mode=self._mode, weight=self._weight, on_token=self._screen.token
            )
        except KeyboardInterrupt:
            self._say("\nstopped: the passage is left out")
            return
        except InputError as error:  # such as a text longer than the model reads: what was written stays
            if not self.passages:
                raise
            self._say(f"\n{visible(str(error))}")
            return
        self._screen.text(one)
        self.passages.append(Passage(one.text, decoding_name(self._mode, self._weight), one))

    def _say(self, line: str) -> None:
        self._screen.console.print(Text(line, style="dim"))
