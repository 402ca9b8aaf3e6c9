"""Supervised fine-tuning toward human uncertainty: creativity against reality, and factuality held by a constraint.

A row is human text of a domain. On creative rows, the model's entropy moves to the surprisal that the text really has.
On all rows, the model learns the text. On functional rows, the model stays near its frozen base. The losses are those
of `ugap.training.losses`, on per-token quantities from `ugap.training.token_forward`.

The constraint holds the mean `KL(base || policy)` over the tokens of functional rows at or below a limit. The
multiplier of `ugap.training.constraint` weighs that KL in the loss, and moves once an optimiser step.
"""

import copy
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, is_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from trl import SFTConfig, SFTTrainer

from ugap.data.domain import CREATIVE, FUNCTIONAL
from ugap.errors import InputError
from ugap.sampling import weight_of
from ugap.scoring.shared import as_base, evaluating
from ugap.training.constrained import ConstrainedConfig, ConstrainedTrainer
from ugap.training.data import check_domains, check_evaluation_domains, is_creative, start_with_bos
from ugap.training.losses import bin_differences, creativity_loss, creativity_reality_loss, gem_loss, reality_loss
from ugap.training.policy import switch_off_dropout
from ugap.training.token_forward import TokenRequest, add_token_forward, with_live_head

Objective = Literal["creativity-reality", "cross-entropy", "gem"]


@dataclass
class UncertaintySFTConfig(ConstrainedConfig, SFTConfig):
    """Arguments of [`UncertaintySFTTrainer`][], in addition to those of TRL's `SFTConfig`."""

    objective: Objective = field(
        default="creativity-reality",
        metadata={
            "help": "What is minimised: `creativity-reality`, or one of the baselines `cross-entropy` (plain SFT) and "
            "`gem` (arXiv 2408.16673). The constraint can be added to each."
        },
    )
    mode: str | None = field(
        default=None,
        metadata={"help": "A name for a weight: `creative` (1), `balanced` (0.5) or `precise` (0)."},
    )
    weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the creativity loss in [0, 1]; the reality loss has the rest. Default: 0.5."},
    )
    calibration_bins: int = field(
        default=8, metadata={"help": "Entropy bins in which the entropy of creative rows is calibrated."}
    )
    entropy_share: float = field(
        default=1.0,
        metadata={
            "help": "Target entropy on creative rows, per nat of the text's surprisal. A model's own text is more "
            "surprising to the scorer than its entropy, by their divergence and by its own mistakes: a share below 1 "
            "leaves room for both."
        },
    )
    kl_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of KL(base || policy) on functional rows in the reality loss. It is fixed, and does not "
            "depend on the constraint's multiplier."
        },
    )
    gem_beta: float = field(default=0.7, metadata={"help": "Temperature of GEM's target distribution."})

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            InputError: If a value is out of its range, or settings exclude each other.
        """
        super().__post_init__()
        if self.mode is None and self.weight is None:
            self.weight = 0.5
        self.weight, self.mode = weight_of(self.mode, None if self.mode is not None else self.weight), None
        if self.objective not in ("creativity-reality", "cross-entropy", "gem"):
            raise InputError(f"objective {self.objective!r}: not creativity-reality, cross-entropy or gem")
        if self.calibration_bins < 1:
            raise InputError(f"calibration_bins is {self.calibration_bins}, and at least 1 is needed")
        if not 0 < self.entropy_share < math.inf:
            raise InputError(f"entropy_share is {self.entropy_share}, not a positive number")
        if self.kl_weight < 0:
            raise InputError(f"kl_weight is {self.kl_weight}, a negative number")
        if not self.gem_beta > 0:
            raise InputError(f"gem_beta is {self.gem_beta}, not a positive number")
        for name in ("packing", "padding_free"):
            if getattr(self, name):
                raise InputError(f"{name} puts rows of both domains into one, and losses are by row: switch it off")
        if self.loss_type != "nll":
            raise InputError(f"loss_type={self.loss_type!r} has no effect here: choose an objective")


@dataclass(frozen=True, eq=False)
class StepTokens:
    """Per-token quantities of a micro-batch, a step or an evaluation, flat.

    Args:
        surprisal (`Tensor` of shape `(N,)`): Of all tokens that are learned, nats.
        entropy (`Tensor` of shape `(N,)`): Of the policy there, nats.
        creative (`Tensor` of shape `(N,)`, bool): Which of them belong to creative rows.
        kl (`Tensor` of shape `(M,)`): `KL(base || policy)` at functional tokens, nats; empty without a base.
        gem (`Tensor` of shape `(N,)` or `(0,)`): GEM's loss, nats; empty for other objectives.
        differences (`Tensor` of shape `(K,)`): Of the creative tokens, see `bin_differences`.
    """

    surprisal: torch.Tensor
    entropy: torch.Tensor
    creative: torch.Tensor
    kl: torch.Tensor
    gem: torch.Tensor
    differences: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence["StepTokens"]) -> "StepTokens":
        """All tokens of several micro-batches, one after another, without gradient."""
        named = {field.name: [getattr(part, field.name).detach() for part in parts] for field in fields(cls)}
        return cls(**{name: torch.cat(values) for name, values in named.items()})

    def figures(self) -> dict[str, tuple[torch.Tensor, int]]:
        """The numbers to log, by name: sums and counts in this process."""
        figures = {
            "entropy": (self.entropy.sum(), len(self.entropy)),
            "functional/kl": (self.kl.sum(), len(self.kl)),
        }
        for domain, rows in ((CREATIVE, self.creative), (FUNCTIONAL, ~self.creative)):
            surprisal, entropy = self.surprisal[rows], self.entropy[rows]
            figures[f"{domain}/nll"] = (surprisal.sum(), len(surprisal))
            figures[f"{domain}/entropy"] = (entropy.sum(), len(entropy))
        # The sum over a bin of n_b tokens with difference D is n_b D^2, as in the loss.
        figures["creative/calibration"] = (self.differences.square().sum(), len(self.differences))
        return figures


class UncertaintySFTTrainer(ConstrainedTrainer, SFTTrainer):
    """TRL's `SFTTrainer` with the losses and the constraint of this package.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): As in TRL.
        args (`UncertaintySFTConfig`): Settings.
        train_dataset (`Dataset` or `IterableDataset`): Rows as TRL takes them (`text`, or `prompt` and `completion`,
            strings or messages), each with its `domain`: `"creative"` or `"functional"`.
        **kwargs: As in TRL's `SFTTrainer`.

    A tokenizer that has a BOS puts it before a text, as the scorer does. Where the policy is compared with its base,
    its dropout is switched off: dropout would count as divergence.

    The loss of a step is a mean over its tokens, however they are spread over micro-batches and processes. The entropy
    bins of the creativity loss hold the tokens of the whole step too. Where a step has several micro-batches, creative
    rows run once more, without gradient. That takes a tenth to a third of the step's time; a larger micro-batch saves
    it.

    The log gets, in addition to TRL's metrics, `creative/{nll,entropy,calibration}`, `functional/{nll,entropy,kl}` and
    `constraint/{metric}/{cost,limit,lambda}`.

    Raises:
        InputError: Before training, if the rows have no domain, a constraint has no functional rows, or the kind of the
            model's output head is unknown.

    Example:
        ```python
        args = UncertaintySFTConfig("runs/sft", mode="balanced", constraint_limit=0.02)
        trainer = UncertaintySFTTrainer(model, args, train_dataset=rows, peft_config=LoraConfig())
        trainer.train()
        ```
    """

    _tag_names = ["trl", "sft", "ugap"]  # noqa: RUF012  (as TRL declares it)
    loss_is_scaled_for_ga = True
    data_collator: Any
    _signature_columns: Any

    def __init__(
        self, model: Any, args: UncertaintySFTConfig, *, train_dataset: Any, eval_dataset: Any = None, **kwargs: Any
    ):
        check_domains(train_dataset, constrained=args.constrained)
        check_evaluation_domains(eval_dataset)
        super().__init__(model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.data_collator = DomainCollator(self.data_collator)
        self._watch_constraint(args.constraint())
        # By mode: the micro-batches of the step, or of the evaluation, so far.
        self._seen: defaultdict[str, list[StepTokens]] = defaultdict(list)
        policy = self.accelerator.unwrap_model(self.model)
        adapted = is_peft_model(policy)
        if self._needs_base:
            switch_off_dropout(policy)
        base = policy.get_base_model() if adapted else policy
        name = base.config.name_or_path or type(base).__name__
        self.reference: torch.nn.Module | None = None
        self._within_reference: Callable[..., Any] | None = None
        self._head_is_adapted = isinstance(base.get_output_embeddings(), BaseTunerLayer | AuxiliaryTrainingWrapper)
        with evaluating(base):
            if self._needs_base and not adapted:
                # A full fine-tuning has no adapter to switch off, so the base is a copy.
                frozen = copy.deepcopy(base).requires_grad_(False)
                self._within_reference = functools.partial(with_live_head, add_token_forward(frozen, name), frozen)
                self.reference = self.accelerator.prepare_model(frozen, evaluation_mode=True)
            add_token_forward(base, name)

    @property
    def _needs_base(self) -> bool:
        losing = self.args.objective == "creativity-reality" and self.args.kl_weight > 0
        return self.constraint is not None or losing

    def _prepare_dataset(self, dataset: Any, processing_class: Any, *args: Any, **kwargs: Any) -> Any:
        start_with_bos(processing_class)
        return super()._prepare_dataset(dataset, processing_class, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "domain" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "domain"]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """A micro-batch's part of the step's loss, or its own loss where the step's counts are not given.

        Raises:
            ValueError: If `return_outputs` is set: there are no logits.
        """
        if return_outputs:
            raise ValueError("return_outputs: the logits are never built")
        train, whole = self.model.training, num_items_in_batch is not None
        rows = dict(inputs)
        creative, differences = rows.pop("creative"), rows.pop("differences", None)
        if not train:
            rows["labels"] = self._labels_once(rows["labels"])
        tokens = self._tokens(model, rows, creative, differences)
        counts = num_items_in_batch if whole else self._count([inputs])
        loss = self._objective(tokens, *counts.tolist())
        if self.constraint is not None and train:
            self.constraint.observe(tokens.kl.sum(), len(tokens.kl))
        self._seen["train" if train else "eval"].append(StepTokens.joined([tokens]))
        if train:
            self._total_train_tokens += int(self._reduced(rows["attention_mask"].sum()))
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            if self.accelerator.sync_gradients:  # at the last micro-batch of a step
                self._add_to_log("train", self._closed("train").figures())
        # Gradients are averaged over processes, and the counts are of all of them.
        return loss * self.accelerator.num_processes if whole else loss

    def _labels_once(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels of an evaluation's batch. Rows that accelerate repeats to fill up the last batch get none."""
        state = self.accelerator.gradient_state
        if not (state.end_of_dataloader and state.remainder > 0):
            return labels
        position = torch.arange(len(labels), device=labels.device) + self.accelerator.process_index * len(labels)
        return labels.masked_fill((position >= state.remainder).unsqueeze(1), -100)

    def _tokens(
        self,
        model: torch.nn.Module,
        rows: dict[str, Any],
        creative: torch.Tensor,
        differences: torch.Tensor | None = None,
    ) -> StepTokens:
        """Run a forward pass: the per-token quantities of a micro-batch."""
        gem_beta = self.args.gem_beta if self.args.objective == "gem" else None
        # The arguments of the forward pass that compare it with the base.
        extra: dict[str, Any] = {}
        if self._needs_base:
            # Sharded models wait for each other: a process without functional rows runs the base on its first row.
            compared = ~creative if not creative.all() else _first(creative)
            extra = {**self._base_states(model, rows, compared), "compared": compared}
        out = model(**rows, **extra, tokens=TokenRequest(gem_beta=gem_beta))
        surprisal, entropy = out["surprisal"], out["entropy"]
        labels = rows["labels"][:, 1:]  # (B, L - 1): position t predicts token t + 1
        of_creative = creative.unsqueeze(1).expand_as(labels)[labels != -100]  # (N,)
        if differences is None:
            differences = surprisal[:0].detach()
            if self._calibrates and self.model.training:
                (differences,) = self._differences([surprisal[of_creative]], [entropy[of_creative]])
        kl = out["kl"] if "kl" in out and not creative.all() else surprisal[:0]
        return StepTokens(surprisal, entropy, of_creative, kl, out.get("gem", surprisal[:0]), differences)

    def _objective(self, tokens: StepTokens, n_creative: int, n_functional: int) -> torch.Tensor:
        """The tokens' part of the loss of a step (or an evaluation) with these counts of tokens."""
        args, n = self.args, n_creative + n_functional
        if args.objective == "gem":
            loss = gem_loss(tokens.gem, n_tokens=n).total
        elif args.objective == "cross-entropy":
            loss = reality_loss(tokens.surprisal, n_tokens=n).total
        else:
            calibration = creativity_loss(
                tokens.surprisal[tokens.creative],
                tokens.entropy[tokens.creative],
                share=args.entropy_share,
                bins=args.calibration_bins,
                differences=tokens.differences if len(tokens.differences) else None,
                n_tokens=n_creative,
            )
            reality = reality_loss(tokens.surprisal, tokens.kl, args.kl_weight, n_tokens=n, n_kl_tokens=n_functional)
            loss = creativity_reality_loss(args.weight, calibration, reality).total
        if self.constraint is not None:
            loss = loss + self.constraint.value * tokens.kl.sum() / max(1, n_functional)
        return loss

    @property
    def _calibrates(self) -> bool:
        """Whether the creativity loss is part of the objective."""
        return self.args.objective == "creativity-reality" and self.args.weight > 0

    def _differences(self, surprisal: list[torch.Tensor], entropy: list[torch.Tensor]) -> list[torch.Tensor]:
        """`bin_differences` of each micro-batch, in bins of the whole step.

        Every process has to call it, also those without creative tokens.

        Args:
            surprisal (`list[Tensor]`): Surprisal of the creative tokens of each micro-batch `(K,)`, nats.
            entropy (`list[Tensor]`): Their entropy.
        """
        local = torch.stack([torch.cat([part.detach() for part in parts]) for parts in (surprisal, entropy)])  # (2, K)
        everywhere: list[torch.Tensor] = gather_object([local.cpu()])
        s, h = torch.cat(everywhere, 1)
        begin = sum(part.shape[1] for part in everywhere[: PartialState().process_index])
        differences = bin_differences(s, h, share=self.args.entropy_share, bins=self.args.calibration_bins)
        local_differences = differences[begin : begin + local.shape[1]].to(local.device)
        return list(local_differences.split([len(part) for part in surprisal]))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, each with the `differences` of its creative tokens."""
        batches, counts = super().get_batch_samples(*args, **kwargs)
        if self._calibrates and len(batches) > 1:
            tokens = [self._creative_tokens(self._prepare_inputs(batch)) for batch in batches]
            differences = self._differences(*map(list, zip(*tokens, strict=True)))
            batches = [{**batch, "differences": part} for batch, part in zip(batches, differences, strict=True)]
        return batches, counts

    @torch.no_grad()
    def _creative_tokens(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Surprisal and entropy at the creative tokens of a micro-batch."""
        self.model.train()
        rows = dict(batch)
        creative = rows.pop("creative")
        # Sharded models wait for each other: a process without creative rows runs its first row.
        some = _rows(rows, creative if creative.any() else _first(creative))
        with self.compute_loss_context_manager():
            out = self.model_wrapped(**some, tokens=TokenRequest())
        # Drop the stand-in row's tokens.
        n = None if creative.any() else 0
        return out["surprisal"][:n], out["entropy"][:n]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Creative and functional tokens `(2,)` of a step: of its micro-batches and all processes."""
        return self._reduced(self._count(batch_samples)).to(device)

    def _count(self, batches: Sequence[dict[str, Any]]) -> torch.Tensor:
        counts = torch.zeros(2, dtype=torch.int64)
        for batch in batches:
            learned, creative = (batch["labels"][:, 1:] != -100).sum(1), batch["creative"]
            counts += torch.stack([learned[creative].sum(), learned[~creative].sum()]).cpu()
        return counts

    def _closed(self, mode: str) -> StepTokens:
        """All tokens of this process since the last call. Their differences are in bins of all of these tokens."""
        tokens = StepTokens.joined(self._seen.pop(mode))
        # In training, the differences came with the micro-batches, in bins of the whole step.
        if mode == "eval" or not self._calibrates:
            (differences,) = self._differences([tokens.surprisal[tokens.creative]], [tokens.entropy[tokens.creative]])
            tokens = replace(tokens, differences=differences)
        return tokens

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate, as transformers does. The loss is that of the whole set, not a mean over its batches."""
        self._seen.pop("eval", None)
        out = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._seen["eval"]:
            tokens = self._closed("eval")
            counts = self._reduced(torch.stack([tokens.creative.sum(), (~tokens.creative).sum()]))
            loss = self._reduced(self._objective(tokens, *counts.tolist()))
            out.metrics[f"{metric_key_prefix}_loss"] = loss.item()
            self._add_to_log("eval", tokens.figures())
        return out

    @torch.no_grad()
    def _base_states(self, model: torch.nn.Module, rows: dict[str, Any], compared: torch.Tensor) -> dict[str, Any]:
        """Hidden states of the frozen base at the label positions of some rows, and its head where it has another."""
        some = _rows(rows, compared)
        if self.reference is not None:
            hidden = self.reference(**some, tokens=TokenRequest(hidden=True))["hidden"]
            return {"base_hidden": hidden, "within_base": self._within_reference}
        with as_base(self.accelerator.unwrap_model(model)):
            out = model(**some, tokens=TokenRequest(hidden=True, head=self._head_is_adapted))
        if not self._head_is_adapted:
            return {"base_hidden": out["hidden"]}
        return {"base_hidden": out["hidden"], "within_base": lambda compute, states: compute(out["head"], states)}


def _rows(batch: dict[str, Any], mask: torch.Tensor) -> dict[str, Any]:
    return {name: value[mask] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _first(mask: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(mask), device=mask.device) == 0


class DomainCollator:
    """TRL's collator, which also says which rows are creative: `creative` `(B,)`, bool.

    Args:
        collate (`Callable`): TRL's collator for the data.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows that have a `domain`."""
        creative = [is_creative(example.get("domain")) for example in examples]
        batch = self.collate([{k: v for k, v in example.items() if k != "domain"} for example in examples])
        return {**batch, "creative": torch.tensor(creative)}
