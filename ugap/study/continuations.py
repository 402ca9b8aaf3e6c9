"""Continue prefixes and read texts, batch by batch: a finished batch is a part, which a resumed run reads back.

Every study goes through here. A part is named by what made it, never by the name of a model or of a file. A batch that
was written is named by the weights, token ids, settings and seed; one that was read, by the weights and the texts. So
after a model was trained further, or a file was edited, a resumed study redoes the parts that depend on it alone.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor

from ugap.data import PartStore, part_key
from ugap.errors import InputError
from ugap.sampling import profile_of
from ugap.scoring import Scorer, TokenScores
from ugap.study.decodings import Settings, decoder, is_human
from ugap.study.excerpts import Excerpt
from ugap.study.following import plain
from ugap.study.generation import Engine, chat_context, generate_continuations
from ugap.study.pairs import HUMAN, ScoredText
from ugap.study.store import GENERATED, SCORED, from_row, no_scores, to_row

RAW, CHAT = "raw", "chat"


@dataclass(frozen=True)
class Text:
    """A text for a scorer.

    Args:
        excerpt (`Excerpt`): The prefix that it continues.
        writer (`str`): Who wrote it, as tables say it.
        decoding (`str`): How; `"human"` for what a person wrote.
        text (`str`): The text.
        prompting (`str`, *optional*, defaults to `"raw"`): `"raw"`, or `"chat"` where the writer was asked for it.
        in_template (`bool`, *optional*, defaults to `False`): Read it after the request in the reader's own chat
            template, instead of after the bare prefix.
    """

    excerpt: Excerpt
    writer: str
    decoding: str
    text: str
    prompting: str = RAW
    in_template: bool = False

    @property
    def name(self) -> str:
        """How errors name the text."""
        by = self.decoding if self.decoding == HUMAN else f"{self.writer}, {self.decoding}"
        return f"{self.excerpt.where}, text {self.excerpt.id!r} ({by})"


class Continuations:
    """Batches of texts that models write and read, kept in a folder.

    Args:
        folder (`str` or `Path`): Folder of the parts.
        settings (`dict[str, Any]`): Settings that all batches share; a folder holds parts of one such setting.

    Raises:
        InputError: If the folder holds parts of other settings.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]):
        self.folder = Path(folder)
        self.generated = PartStore(self.folder / "generated", GENERATED, settings)
        self.scored = PartStore(self.folder / "scored", SCORED, settings)

    def begun(self) -> bool:
        """Whether there is a finished batch."""
        return any(self.folder.glob("*/*.parquet"))

    def write(
        self,
        writer: Scorer,
        batch: Sequence[Excerpt],
        decoding: str,
        how: Settings,
        *labels: str,
        max_new_tokens: int,
        seed: int,
        domain: str | None = None,
        prompting: str = RAW,
        processors: Sequence[LogitsProcessor] = (),
        skip_bad: bool = False,
        engine: Engine | None = None,
    ) -> list[str]:
        """Let a model continue the prefixes of a batch; one text each, `""` where it wrote nothing.

        Args:
            writer (`Scorer`): The model.
            batch (`Sequence[Excerpt]`): The prefixes.
            decoding (`str`): Name of the decoding.
            how (`Mapping[str, Any]`): Its settings, see `ugap.study.decodings.DECODINGS`.
            *labels (`str`): Further words in the name of the part, for people who read the folder.
            max_new_tokens (`int`): Longest continuation in tokens.
            seed (`int`): Seed of the batch.
            domain (`str`, *optional*): Domain of the prefixes, for the decodings that aim at the human level of one.
            prompting (`str`, *optional*, defaults to `"raw"`): `"raw"` continues the bare prefix, `"chat"` asks for a
                continuation through the chat template.
            processors (`Sequence[LogitsProcessor]`, *optional*): Further processors of the logits. A part is not named
                by them, so `decoding` must be.
            skip_bad (`bool`, *optional*, defaults to `False`): As in
                `ugap.study.generation.generate_continuations`.
            engine (`Engine`, *optional*): What generates; by default transformers.

        Raises:
            InputError: As in `ugap.study.generation.generate_continuations`, or there is no chat template.
        """
        contexts = contexts_of(writer, batch, prompting)
        shown = json.dumps(plain(how), sort_keys=True)
        # A decoding at the human level changes with the profile, which its settings name at most.
        profile = (
            profile_of(writer.model, how.get("human_profile"), writer.tokenizer).to_dict() if is_human(how) else None
        )
        # Everything that the texts depend on: a change of any of it must give the part another name.
        made_of = (contexts, shown, profile, max_new_tokens, seed, domain, skip_bad)
        if engine is not None:
            made_of = (*made_of, *engine.made_of)
        key = part_key(*labels, decoding, weights=writer.id.weight_hash, content=made_of)
        if not self.generated.done(key):
            texts = generate_continuations(
                writer.model,
                writer.tokenizer,
                contexts,
                how,
                max_new_tokens=max_new_tokens,
                seed=seed,
                domain=domain,
                processors=processors,
                names=[Text(one, writer.name, decoding, "").name for one in batch],
                skip_bad=skip_bad,
                engine=engine,
            )
            # Read back from the part even when just written: a resumed study must see the same strings.
            rows = [{"id": one.id, "text": text} for one, text in zip(batch, texts, strict=True)]
            self.generated.write(key, rows)
        return [row["text"] for row in self.generated.read(key)]

    def read(
        self, reader: Scorer, texts: Sequence[Text], *labels: str, pmi: bool = True, skip_bad: bool = False
    ) -> str:
        """Let a model read texts, those of one prefix at once; the key of the part, for `scores`.

        A model may write nothing: such a text has no scores. A human text must have scores.

        Args:
            reader (`Scorer`): The model.
            texts (`Sequence[Text]`): The texts.
            *labels (`str`): Further words in the name of the part, for people who read the folder.
            pmi (`bool`, *optional*, defaults to `True`): Read each text without its prefix too.
            skip_bad (`bool`, *optional*, defaults to `False`): Leave out human texts that cannot be scored.

        Raises:
            InputError: If a human text cannot be scored, unless `skip_bad`.
        """
        pairs = [_as_read(reader, one) for one in texts]
        # The labels are in the key too: two models may write one text, and each needs its row.
        about = [(one.excerpt.id, one.writer, one.prompting, one.decoding) for one in texts]
        key = part_key(*labels, weights=reader.id.weight_hash, content=(about, pairs, pmi, skip_bad))
        if not self.scored.done(key):
            self.scored.write(key, [to_row(one) for one in _scored(reader, texts, pairs, pmi, skip_bad)])
        return key

    def scores(self, key: str) -> list[ScoredText]:
        """The scored texts of a part of `read`."""
        return [from_row(row) for row in self.scored.read(key)]

    def clear_if_unused(self) -> None:
        """Remove the folder where nothing was finished: a corrected command may start there."""
        if not self.begun():
            for store in (self.generated, self.scored):
                store.clear()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


def check_writer(
    writer: Scorer, decodings: Iterable[Settings], domains: Iterable[str], promptings: Iterable[str] = (RAW,)
) -> None:
    """See that a model can write under every decoding and prompting, before a text is written.

    Raises:
        InputError: If a human profile is of another model, there is no chat template, or transformers
            refuses a setting.
    """
    # Building the processors is enough: they refuse a wrong profile, domain or setting when they are made.
    for how, domain in itertools.product(decodings, domains):
        decoder(how, writer.model, domain, generator=torch.Generator(writer.model.device), tokenizer=writer.tokenizer)
    for prompting in promptings:
        if prompting == CHAT:
            # Any word does: a template that fails does so for every text.
            chat_context(writer.tokenizer, "Once", writer.name)


def contexts_of(writer: Scorer, batch: Sequence[Excerpt], prompting: str = RAW) -> list[list[int]]:
    """Token ids that a model continues: BOS where it has one, and the prefix; or the request in its chat template.

    Raises:
        InputError: If the request cannot be put into the model's chat template.
    """
    if prompting == CHAT:
        return [chat_context(writer.tokenizer, one.prefix, writer.name) for one in batch]
    prefixes = [one.prefix for one in batch]
    # Special tokens in a prefix are letters that a person wrote, and BOS is added once, by hand.
    plain = writer.tokenizer(prefixes, add_special_tokens=False, split_special_tokens=True)
    return [writer.bos + ids for ids in plain["input_ids"]]


def batches(items: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """Number and members of every batch.

    Example:
        >>> list(batches("abc", 2))
        [(0, 'ab'), (1, 'c')]
    """
    for number, begin in enumerate(range(0, len(items), size)):
        yield number, items[begin : begin + size]


def _as_read(reader: Scorer, one: Text) -> tuple[str | list[int], str]:
    """Prefix and text as a model reads them."""
    prefix, text = one.excerpt.prefix, one.text
    if one.in_template:
        # A chat answer starts without white space, so the human text must not start with it either.
        return chat_context(reader.tokenizer, prefix, reader.name), text.lstrip()
    if one.prompting == CHAT and one.decoding != HUMAN:
        # A chat model starts without the space that a continuation needs.
        spaced = not prefix or prefix[-1].isspace() or text[:1].isspace()
        return prefix, text if spaced else " " + text
    return prefix, text


def _scored(
    reader: Scorer, texts: Sequence[Text], pairs: Sequence[tuple[str | list[int], str]], pmi: bool, skip_bad: bool
) -> Iterator[ScoredText]:
    def score(some: Sequence[int], skip: bool) -> Sequence[TokenScores | None]:
        names = [texts[i].name for i in some]
        return reader.score([pairs[i][1] for i in some], [pairs[i][0] for i in some], pmi, names=names, skip_bad=skip)

    every = range(len(texts))
    try:
        scores = score(every, skip_bad)
    except InputError:
        score([i for i in every if texts[i].decoding == HUMAN], False)  # an error about a human text comes first
        # The human texts are fine, so what failed is a model's text: it gets no scores, and the study continues.
        scores = score(every, True)
    for one, (_, body), text_scores in zip(texts, pairs, scores, strict=True):
        yield ScoredText(
            id=one.excerpt.id,
            source=one.excerpt.source,
            domain=one.excerpt.domain,
            model=one.writer,
            prompting=one.prompting,
            decoding=one.decoding,
            scorer=reader.name,
            prefix=one.excerpt.prefix,
            scores=text_scores or no_scores(body, reader.id),
        )
