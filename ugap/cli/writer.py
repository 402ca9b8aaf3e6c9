"""The model of `ugap generate`, and the screen on which its texts appear."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from ugap.profile import HumanProfile
from ugap.profile.profile import Selection
from ugap.report.heatmap import Spelling, heat_map, legend, pieces, token_strings
from ugap.report.written import Block, Written, side_by_side
from ugap.sampling.generation import Generation, generate_batches
from ugap.study.generation import Engine, seed_of
from ugap.terminal import Terminal, visible

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Color = Literal["always", "never", "auto"]


@dataclass(frozen=True)
class Writer:
    """A model that continues prompts, with everything that all of its texts share.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        engine (`Engine`): What generates where `by_engine` says so, and for other decodings than ours.
        by_engine (`bool`): Whether the engine draws our texts, too.
        profile (`HumanProfile`): Human profile of the model.
        kind (`str` or `Mapping[str, float]`): The human text to follow.
        tail (`float`, *optional*): Where the human tail is cut.
        chat (`bool`): Whether prompts go through the chat template.
        sizes (`Mapping[str, int]`): `max_new_tokens`, `num_return_sequences` and `batch_size`.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    engine: Engine
    by_engine: bool
    profile: HumanProfile
    kind: Selection
    tail: float | None
    chat: bool
    sizes: Mapping[str, Any]

    def batches(
        self,
        prompts: Sequence[str],
        seed: int,
        *,
        mode: str | None = None,
        weight: float | None = None,
        other: Mapping[str, Any] | None = None,
        on_token: Callable[[int, float], None] | None = None,
    ) -> Iterator[list[Generation]]:
        """The texts, batch by batch.

        Args:
            prompts (`Sequence[str]`): Texts to continue, or messages of a user.
            seed (`int`): Seed of the draws.
            mode (`str`, *optional*): Mode of our sampler.
            weight (`float`, *optional*): Weight of our sampler, instead of a mode.
            other (`Mapping[str, Any]`, *optional*): Settings of another decoding, in the place of our sampler.
            on_token (`Callable`, *optional*): See `generate_batches`.
        """
        ours = {
            "human_mode": mode,
            "human_weight": weight,
            "human_tail": self.tail,
            "human_kind": self.kind,
            "human_profile": self.profile,
        }

        def write(contexts: list[list[int]], number: int) -> list[list[int]]:
            return self.engine.continue_contexts(
                contexts,
                ours if other is None else other,
                max_new_tokens=self.sizes["max_new_tokens"],
                seed=seed_of(seed, number),
            )

        return generate_batches(
            self.model,
            self.tokenizer,
            [[{"role": "user", "content": prompt}] for prompt in prompts] if self.chat else list(prompts),
            kind=self.kind,
            mode=mode,
            weight=weight,
            profile=self.profile,
            tail=self.tail,
            seed=seed,
            write=write if self.by_engine or other is not None else None,
            on_token=on_token,
            **self.sizes,
        )

    def spelling(self, prompt: str) -> Spelling:
        """What spells the tokens of a text behind its prompt."""
        return Spelling(self.tokenizer, self._context(prompt))

    def pieces(self, one: Generation) -> list[tuple[str, float]]:
        """The pieces of a text, each with its surprisal in nats."""
        return pieces(token_strings(self.tokenizer, one.token_ids, self._context(prompt_of(one))), one.surprisal)

    def block(self, versions: Sequence[tuple[str, Generation]]) -> Block:
        """Texts of several decodings to one prompt; the last is ours, and names the human text."""
        _, ours = versions[-1]
        return Block(
            prompt_of(ours),
            people_level(ours),
            people_sentence(ours),
            [Written(name, one.nll, self.pieces(one)) for name, one in versions],
        )

    def _context(self, prompt: str) -> list[int]:
        # Tokens are decoded behind the prompt, as a character may start in it. A chat ends with a special token.
        if self.chat:
            return []
        return list(self.tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def prompt_of(one: Generation) -> str:
    """The prompt of a text as a user typed it."""
    return one.prompt if isinstance(one.prompt, str) else one.prompt[0]["content"]


def decoding_name(mode: str | None, weight: float | None) -> str:
    """The name of our sampler with a mode or a weight.

    Example:
        >>> decoding_name(None, None), decoding_name("precise", None), decoding_name(None, 0.7)
        ('ugap-creative', 'ugap-precise', 'ugap-0.7')
    """
    return f"ugap-{mode or 'creative'}" if weight is None else f"ugap-{weight:g}"


def people_level(one: Generation) -> float:
    """The surprisal of human text, in nats per token: to the reader of the profile, or else to the model."""
    return one.target.share * one.human_level


def people_sentence(one: Generation) -> str:
    """The surprisal of human text to the model, and to the reader of its profile."""
    people = f"people: {one.human_level:.2f} (kind: {visible(one.target.named)})"
    if (reading := one.target.reading) is not None:
        people += f", {people_level(one):.2f} to the reader {visible(reading.reader)}"
    return people


class Screen:
    """Shows texts on stdout, token by token where they come so.

    Args:
        writer (`Writer`): Who writes.
        color (`str`): `"always"`, `"never"`, or `"auto"`: where stdout is a terminal that shows colours.
        heatmap (`bool`): Whether tokens have the colour of their surprisal.
    """

    def __init__(self, writer: Writer, color: Color, heatmap: bool):
        self._writer = writer
        how: dict[str, Any] = {}
        if color == "always":
            how = {"force_terminal": True, "color_system": "truecolor", "no_color": False}
        elif color == "never":
            how = {"no_color": True, "color_system": None}
        self.console = Terminal(file=sys.stdout, soft_wrap=True, **how)
        self.coloured = heatmap and self.console.color_system is not None and not self.console.no_color
        self._wanted = heatmap
        self._began = False

    def prompt(self, prompt: str, shown: str | None = None) -> None:
        """Show a prompt, or what is `shown` in its place; the tokens of its text come next."""
        self._spelling, self._shown, self._began = self._writer.spelling(prompt), "", True
        self._strings: list[str] = []
        self._nats: list[float] = []
        beginning = visible(prompt if shown is None else shown)
        self.console.print(Text.assemble((beginning, "dim"), "\n" if self._writer.chat else ""), end="")

    def token(self, token: int, nats: float) -> None:
        """Show a token as soon as it is drawn."""
        self._strings.append(self._spelling.add(token))
        self._nats.append(nats)
        if self._strings[-1]:
            self._shown += self._strings[-1]
            self.console.print(self._text(pieces(self._strings, self._nats)), end="")
            self._strings, self._nats = [], []

    def text(self, one: Generation) -> None:
        """Show the rest of a text, or all of it with its prompt, and its mean surprisal."""
        if not self._began:
            self.prompt(prompt_of(one))
        if not self._shown:
            self.console.print(self._text(self._writer.pieces(one)) if self.coloured else visible(one.text), end="")
        elif one.text.startswith(self._shown):  # such as the bytes of a character that was never finished
            self.console.print(visible(one.text[len(self._shown) :]), end="")
        self._began = False
        wrote = f"{one.nll:.2f} nats per token" if one.token_ids else "the model ended the text at once"
        self.console.print(f"\n{wrote}; {people_sentence(one)}\n")

    def compare(self, block: Block) -> None:
        """Show the texts of several decodings."""
        texts = [self._text(one.pieces) for one in block.texts]
        self.console.print(Text(visible(block.prompt), style="dim"), soft_wrap=False)
        self.console.print("")
        self.console.print(side_by_side(block, texts, self.console.width), soft_wrap=False)
        self.console.print(f"{visible(block.people)}\n")

    def end(self) -> None:
        """Explain the colours, or say why there are none."""
        if self.coloured:
            self.console.print(legend())
        elif self._wanted:
            print(
                "no heat map: colours need a terminal that shows them, and NO_COLOR unset; --color always sends them",
                file=sys.stderr,
            )

    def _text(self, shown: Sequence[tuple[str, float]]) -> Text:
        """Pieces with or without colours."""
        strings, nats = [string for string, _ in shown], [value for _, value in shown]
        return heat_map(strings, nats) if self.coloured else Text(visible("".join(strings)))
