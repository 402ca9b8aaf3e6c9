"""The scorer: a frozen causal language model that measures the surprisal and uncertainty of a text, token by token.

Texts are tokenised with their prefixes, cut to the model's window, batched by a token budget and run through the
backbone; only the positions that are scored reach the fused head. Right padding and a causal model need no attention
mask: no real token sees a padded one.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.errors import InputError, is_out_of_memory, reading
from ugap.models import load_model
from ugap.models.adapter import adapted_name
from ugap.models.fingerprint import weight_hash
from ugap.progress import progress_bar
from ugap.scoring.batching import Batch, Regimes, Request, plan, windows
from ugap.scoring.context import context_limit, shares_prefixes, states_after
from ugap.scoring.head.bfloat16 import FloatProducts, has_bfloat16_units
from ugap.scoring.head.dispatch import Impl
from ugap.scoring.head.lm_head import LMHead, backbone, input_device
from ugap.scoring.head.tiles import Precision
from ugap.scoring.records import STATISTICS, ScorerId, TokenScores
from ugap.scoring.tokenise import Encoded, bos_ids, encode

if TYPE_CHECKING:
    from peft import PeftModel

    from ugap.scoring.dataset import AnyDataset

logger = logging.getLogger(__name__)


class Scorer:
    """Scores texts with a causal language model.

    Args:
        model (`PreTrainedModel` or `PeftModel`): A causal language model of transformers. Adapters count as they are.
        tokenizer (`PreTrainedTokenizerBase`): Its fast tokenizer.
        name (`str`, *optional*): Name in records and errors; by default the path or id that the model was loaded by.
        bos (`bool`, *optional*): Whether a text starts with the tokenizer's BOS. By default it does where there is one
            (the first token is then scored too, else it is NaN).
        token_budget (`int`, *optional*): Padded tokens in one forward pass; by default 2,048 on CPU, 32,768 on a GPU.
            Running out of memory halves it.
        max_length (`int`, *optional*): Tokens of context; by default the model's limit. Longer sequences are scored
            with overlapping windows, see `ugap.scoring.batching.windows`.
        impl (`str`, *optional*, defaults to `"auto"`): How the head is folded, see
            [`head_statistics`][ugap.scoring.head_statistics].
        precision (`str`, *optional*, defaults to `"exact"`): Arithmetic of the head, see
            [`head_statistics`][ugap.scoring.head_statistics].

    Raises:
        InputError: If the model has no causal head or one that the scorer does not know, needs more than token ids, or
            the tokenizer is slow.
        ValueError: If `bos=True` and the tokenizer has none, or an argument is out of range.

    Example:
        >>> scorer = Scorer.from_pretrained("smollm2-135m-instruct")  # doctest: +SKIP
        >>> scores, = scorer.score(["Once upon a time there was a tailor."])  # doctest: +SKIP
        >>> scores.nll, scores.entropy.mean()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        bos: bool | None = None,
        token_budget: int | None = None,
        max_length: int | None = None,
        impl: Impl = "auto",
        precision: Precision = "exact",
    ):
        self.name = name or model.config.name_or_path or type(model).__name__
        model = self._unwrapped(model)
        if not tokenizer.is_fast:
            raise InputError(f"{self.name}: character offsets need a fast tokenizer")
        if bos and tokenizer.bos_token_id is None:
            raise ValueError(f"{self.name}: bos=True, but the tokenizer has no BOS token")
        if token_budget is not None and token_budget < 1:
            raise ValueError(f"token_budget is {token_budget}, not a positive number")
        config = model.config.get_text_config()
        self.max_length = context_limit(config) if max_length is None else max_length
        if self.max_length < 8:
            raise ValueError(f"max_length is {self.max_length}, fewer than 8 tokens")
        self.model = model
        self.tokenizer = tokenizer
        self.bos: list[int] = [] if bos is False else bos_ids(tokenizer)
        self.token_budget = token_budget or (2048 if input_device(model).type == "cpu" else 32768)
        self.impl, self.precision = impl, precision
        if config.model_type == "xlnet":
            raise InputError(f"{self.name}: XLNet cannot be scored: it predicts tokens that a mask hides, not the next")
        alone = f"{self.name}: cannot run on token ids alone"
        with reading(alone):
            self.head = LMHead.of(model, self.name)
        emulated = model.dtype == torch.bfloat16 and model.device.type == "cpu" and not has_bfloat16_units()
        self._products: Callable[[], AbstractContextManager] = FloatProducts if emulated else nullcontext
        self._regimes = Regimes(config)
        with self._products(), reading(alone):
            self._shares = shares_prefixes(backbone(model), model, input_device(model), self.name)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        adapter: str | Path | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> "Scorer":
        """Load a model with [`load_model`][] and make a scorer of it.

        Args:
            name (`str`): Local path, Hub id or asset name.
            adapter (`str` or `Path`, *optional*): As in [`load_model`][].
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"float32"`): As in [`load_model`][].
            device (`str`, *optional*): As in [`load_model`][].
            revision (`str`, *optional*): As in [`load_model`][].
            trust_remote_code (`bool`, *optional*, defaults to `False`): As in [`load_model`][].
            **kwargs: As in [`Scorer`][].
        """
        model, tokenizer = load_model(
            name,
            adapter=adapter,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        # Records name what was read: the base alone would be another model.
        return cls(model, tokenizer, name=name if adapter is None else adapted_name(name, adapter), **kwargs)

    @cached_property
    def id(self) -> ScorerId:
        """Name and weight hash, which records and profiles carry."""
        return ScorerId(self.name, weight_hash(self.model, adapters=self._adapted))

    def _unwrapped(self, model: Any) -> PreTrainedModel:
        """The model of transformers inside one of PEFT, with its adapters in their places."""
        self._adapted = hasattr(model, "get_base_model")
        if not self._adapted:
            return model
        if model.active_peft_config.is_prompt_learning:
            raise InputError(f"{self.name}: its adapter adds a prompt, which the scorer does not put in front of texts")
        return model.get_base_model()

    @overload
    def score(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str | Sequence[int]] | None = None,
        pmi: bool = False,
        *,
        special_tokens: bool = False,
        names: Sequence[str] | None = None,
        skip_bad: Literal[False] = False,
        progress: bool = False,
    ) -> list[TokenScores]: ...

    @overload
    def score(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str | Sequence[int]] | None = None,
        pmi: bool = False,
        *,
        special_tokens: bool = False,
        names: Sequence[str] | None = None,
        skip_bad: bool,
        progress: bool = False,
    ) -> Sequence[TokenScores | None]: ...

    def score(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str | Sequence[int]] | None = None,
        pmi: bool = False,
        *,
        special_tokens: bool = False,
        names: Sequence[str] | None = None,
        skip_bad: bool = False,
        progress: bool = False,
    ) -> Sequence[TokenScores | None]:
        """Score texts; results come in input order.

        Args:
            texts (`Sequence[str]`): Texts to score.
            prefixes (`Sequence[str | Sequence[int]]`, *optional*): What comes before each text, not scored. A string is
                tokenised together with its text; token ids are taken as they are.
            pmi (`bool`, *optional*, defaults to `False`): Also score each text without its prefix, where it has one.
            special_tokens (`bool`, *optional*, defaults to `False`): Whether strings such as `<bos>` inside a text mean
                the special token; by default they are plain characters.
            names (`Sequence[str]`, *optional*): How errors name the texts; by default `text 0`, `text 1`, ...
            skip_bad (`bool`, *optional*, defaults to `False`): Log a bad text and give `None` for it.
            progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

        Returns:
            `list[TokenScores]`: One record per text.

        Raises:
            InputError: If a text is empty, a single token, no valid Unicode, or its logits are not finite; the message
                names the text.
        """
        prefixes = [""] * len(texts) if prefixes is None else prefixes
        names = [f"text {i}" for i in range(len(texts))] if names is None else names
        if not len(texts) == len(prefixes) == len(names):
            raise ValueError(f"{len(texts)} texts, {len(prefixes)} prefixes and {len(names)} names do not fit together")
        encoded: dict[int, Encoded] = {}
        for i, (text, prefix, name) in enumerate(zip(texts, prefixes, names, strict=True)):
            try:
                encoded[i] = encode(
                    self.tokenizer,
                    text,
                    prefix,
                    bos=self.bos,
                    special_tokens=special_tokens,
                    n_words=len(self.head.weight),
                    name=name,
                )
            except InputError as error:
                self._refuse(error, skip_bad)
        # Without a prefix the marginal would equal the surprisal: such a text has none.
        alone = {i: e for i, e in encoded.items() if pmi and e.context != e.bos}
        requests = [Request(i, 0, e.context, e.token_ids) for i, e in encoded.items()]
        requests += [Request(len(texts) + i, 0, e.bos, e.token_ids) for i, e in alone.items()]
        statistics = self._run_all(requests, progress)
        out: list[TokenScores | None] = [None] * len(texts)
        for i, e in encoded.items():
            rows = statistics[i]
            marginal = statistics[len(texts) + i][0] if i in alone else None
            wrong = ~np.isfinite(rows).all(axis=0)
            # With nothing before it the first token has no score.
            wrong[: 0 if e.context else 1] = False
            if marginal is not None:
                start = 0 if e.bos else 1
                wrong[start:] |= ~np.isfinite(marginal[start:])
            if wrong.any():
                where = int(np.argmax(wrong))
                message = f"{names[i]}: the logits of {self.name} are not finite at token {where}"
                self._refuse(InputError(message), skip_bad)
                continue
            out[i] = TokenScores(
                text=e.text,
                token_ids=np.asarray(e.token_ids, np.int32),
                offsets=e.offsets,
                **dict(zip(STATISTICS, rows, strict=True)),
                marginal_surprisal=marginal,
                scorer=self.id,
                straddles=e.straddles,
            )
        return out

    def score_dataset(
        self,
        dataset: "AnyDataset",
        *,
        text_column: str = "text",
        prefix_column: str | None = None,
        pmi: bool = False,
        special_tokens: bool = False,
        batch_size: int = 256,
        skip_bad: bool = False,
        progress: bool = True,
    ) -> "AnyDataset":
        """Score a column of texts of a data set.

        A `Dataset` gives a `Dataset`, written to the cache folder of `datasets` as it is scored (scoring the same rows
        with the same weights and settings again reads that file). An `IterableDataset` gives an `IterableDataset` that
        scores its rows when they are read.

        Among processes started by `accelerate launch` each process scores, and gets, its own part: of a `Dataset` a
        contiguous block, so that the parts in process order are the whole; of an `IterableDataset` every n-th shard
        where their number divides by the number of processes, every n-th row where not. Do not split it beforehand.

        Args:
            dataset (`Dataset` or `IterableDataset`): Rows with a text each.
            text_column (`str`, *optional*, defaults to `"text"`): Column of the texts.
            prefix_column (`str`, *optional*): Column of what comes before each text: strings or lists of token ids.
            pmi (`bool`, *optional*, defaults to `False`): Also score each text without its prefix.
            special_tokens (`bool`, *optional*, defaults to `False`): As in [`Scorer.score`][].
            batch_size (`int`, *optional*, defaults to `256`): Rows that are read, sorted by length and scored at once.
            skip_bad (`bool`, *optional*, defaults to `False`): Log a bad text and leave its new columns null.
            progress (`bool`, *optional*, defaults to `True`): Show a progress bar in the main process of each machine
                (for a `Dataset`; the reader of a stream sees how far it is).

        Returns:
            `Dataset` or `IterableDataset`: The rows with the columns `token_ids` and `offsets` (int32; start and end of
            each token, flattened), `surprisal`, `entropy`, `varentropy`, `rank` and, with `pmi`, `marginal_surprisal`
            (float32, as in [`TokenScores`][]; null for a text without a prefix), and `straddles`.

        Raises:
            InputError: If a column is missing or would be overwritten, or a text is bad as in [`Scorer.score`][]; the
                message names the row.

        Example:
            >>> rows = Dataset.from_dict({"text": ["It rained all day."]})  # doctest: +SKIP
            >>> scorer.score_dataset(rows)["surprisal"]  # doctest: +SKIP
        """
        from ugap.scoring.dataset import score_dataset  # `datasets` takes a second to import

        return score_dataset(
            self,
            dataset,
            text_column=text_column,
            prefix_column=prefix_column,
            pmi=pmi,
            special_tokens=special_tokens,
            batch_size=batch_size,
            skip_bad=skip_bad,
            progress=progress,
        )

    def _refuse(self, error: InputError, skip_bad: bool) -> None:
        if not skip_bad:
            raise error
        logger.warning("skipped: %s", error)

    def _run_all(self, requests: list[Request], progress: bool) -> dict[int, np.ndarray]:
        """Statistics `(4, T)` of every request's owner."""
        out: dict[int, np.ndarray] = {}
        pending: list[Request] = []
        for request in requests:
            out[request.owner] = np.full((len(STATISTICS), len(request.token_ids)), np.nan, np.float32)
            pending += windows(request, self.bos, self.max_length)
        with progress_bar(disable=not progress) as bar:
            task = bar.add_task(f"scoring with {self.name}", total=sum(rows.shape[1] for rows in out.values()))
            while pending:  # a second turn only after running out of memory
                batches = plan(pending, self.token_budget, share=self._shares, regime=self._regimes)
                pending = []
                for i, batch in enumerate(batches):
                    try:
                        results = self._run(batch)
                    except (RuntimeError, MemoryError) as error:
                        if not is_out_of_memory(error) or len(batch.requests) == 1:
                            raise
                        self.token_budget = max(1, min(self.token_budget, sum(map(len, batch.requests))) // 2)
                        logger.warning("out of memory: continuing with batches of %d tokens", self.token_budget)
                        pending = [request for rest in batches[i:] for request in rest.requests]
                        break
                    for request, result in zip(batch.requests, results, strict=True):
                        out[request.owner][:, request.start : request.start + len(request.token_ids)] = result
                        bar.advance(task, len(request.token_ids))
        return out

    @torch.no_grad()
    def _run(self, batch: Batch) -> list[np.ndarray]:
        """Statistics `(4, T_i)` of each request of one batch."""
        device, shared = input_device(self.model), batch.n_shared
        # The last token of a row predicts nothing that is scored.
        rows = [(request.context + request.token_ids)[shared:-1] for request in batch.requests]
        # A single token without context has nothing to predict it and gives an empty row.
        width = max(1, *map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)  # (B, L)
        hidden = self._hidden(ids, batch.requests[0].context[:shared])  # (B, L, H)
        select, targets, lengths = [], [], []
        for i, request in enumerate(batch.requests):
            # The state at position t - 1 predicts token t; no state predicts the very first token.
            skip = 0 if request.context else 1
            first = len(request.context) - 1 - shared + skip
            select.append(torch.arange(first, len(rows[i]), device=device) + i * width)
            targets += request.token_ids[skip:]
            lengths.append(len(request.token_ids) - skip)
        scored = hidden.flatten(0, 1)[torch.cat(select)]  # (N, H)
        del hidden
        wanted = torch.tensor(targets, dtype=torch.int64, device=device)
        with self.head.live(self.model) as head:
            statistics = head.statistics(scored, wanted, impl=self.impl, precision=self.precision)
        table = torch.stack(statistics).float().cpu().numpy()  # (4, N)
        parts = np.split(table, np.cumsum(lengths)[:-1], axis=1)
        return [
            part if request.context else np.pad(part, ((0, 0), (1, 0)), constant_values=np.nan)
            for request, part in zip(batch.requests, parts, strict=True)
        ]

    def _hidden(self, ids: torch.Tensor, shared: list[int]) -> torch.Tensor:
        """Last hidden states `(B, L, H)` of `ids` after the shared context, whose keys and values are made once."""
        run = backbone(self.model)
        self._regimes.reset(run)
        with self._products():
            if not shared:
                return run(input_ids=ids, use_cache=False).last_hidden_state
            return states_after(run, torch.tensor([shared], device=ids.device), ids)
