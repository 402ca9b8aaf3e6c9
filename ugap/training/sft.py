"""Supervised fine-tuning toward human uncertainty: creativity against reality, and factuality held by a constraint.

A row is human text of a domain. On creative rows the model's entropy is brought to the surprisal that the text really
has; on all rows the text is learned; on functional rows the model is held near its frozen base. The losses are those of
`ugap.training.losses`, on per-token quantities from `ugap.training.token_forward`.

The constraint holds the mean `KL(base || policy)` over the tokens of functional rows at or below a limit: the
multiplier of `ugap.training.constraint` is the weight of that KL beside the losses, and moves once an optimiser step.
"""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate.utils import is_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from trl import SFTConfig, SFTTrainer

from ugap.errors import InputError
from ugap.sampling import weight_of
from ugap.training.constrained import ConstrainedConfig, ConstrainedTrainer
from ugap.training.domains import CREATIVE, FUNCTIONAL, check_domains, check_evaluation_domains, is_creative
from ugap.training.losses import creativity_loss, creativity_reality_loss, gem_loss, reality_loss
from ugap.training.shared_scorer import as_base, evaluating, switch_off_dropout
from ugap.training.token_forward import TokenRequest, add_token_forward

Objective = Literal["creativity-reality", "cross-entropy", "gem"]


@dataclass
class UncertaintySFTConfig(ConstrainedConfig, SFTConfig):
    """Arguments of [`UncertaintySFTTrainer`], beside those of TRL's `SFTConfig`."""

    objective: Objective = field(
        default="creativity-reality",
        metadata={
            "help": "What is minimised: `creativity-reality`, or one of the baselines `cross-entropy` (plain SFT) and "
            "`gem` (arXiv 2408.16673). The constraint can stand beside each."
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
            "help": "Entropy that is aimed at on creative rows, per nat of the text's surprisal. Below 1 leaves room "
            "for what makes a model's own text more surprising to the scorer than the model's entropy is: their "
            "divergence, and where its own mistakes lead it."
        },
    )
    kl_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of KL(base || policy) on functional rows in the reality loss; fixed, and apart from "
            "the constraint's multiplier."
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


class UncertaintySFTTrainer(ConstrainedTrainer, SFTTrainer):
    """TRL's `SFTTrainer` with the losses and the constraint of this package.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): As in TRL.
        args (`UncertaintySFTConfig`): Settings.
        train_dataset (`Dataset` or `IterableDataset`): Rows as TRL takes them (`text`, or `prompt` and `completion`,
            strings or messages), each with its `domain`: `"creative"` or `"functional"`.
        **kwargs: As in TRL's `SFTTrainer`.

    Where the policy is compared with its base, its dropout is switched off: it would count as divergence.

    The loss of a step is the mean over its micro-batches and processes. In the log, beside what TRL logs, are
    `creative/{nll,entropy,calibration}`, `functional/{nll,entropy,kl}` and `constraint/{metric}/{cost,limit,lambda}`.

    Raises:
        InputError: Before training, if the rows have no domain, none is functional while a constraint is asked
            for, or the model's output head is of a kind that is not known.

    Example:
        ```python
        args = UncertaintySFTConfig("runs/sft", mode="balanced", constraint_limit=0.02)
        trainer = UncertaintySFTTrainer(model, args, train_dataset=rows, peft_config=LoraConfig())
        trainer.train()
        ```
    """

    _tag_names = ["trl", "sft", "ugap"]  # noqa: RUF012  (as TRL declares it)
    loss_is_scaled_for_ga = False
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
                # The model as it is before training: there is no adapter to switch off.
                frozen = copy.deepcopy(base).requires_grad_(False)
                self._within_reference = functools.partial(add_token_forward(frozen, name).within, frozen)
                self.reference = self.accelerator.prepare_model(frozen, evaluation_mode=True)
            add_token_forward(base, name)

    @property
    def _needs_base(self) -> bool:
        losing = self.args.objective == "creativity-reality" and self.args.kl_weight > 0
        return self.constraint is not None or losing

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
        """The loss of one micro-batch: means over its tokens, as `ugap.training.losses` defines them.

        Raises:
            ValueError: If the model's outputs are asked for: there are no logits.
        """
        if return_outputs:
            raise ValueError("return_outputs: the logits are never built")
        args, train = self.args, self.model.training
        rows = dict(inputs)
        creative = rows.pop("creative")
        extra: dict[str, Any] = {}
        if self._needs_base:
            # Every process runs the base, whatever its rows are: sharded models wait for each other.
            compared = ~creative if not creative.all() else torch.arange(len(creative), device=creative.device) == 0
            extra = {**self._base_states(model, rows, compared), "compared": compared}
        out = model(**rows, **extra, tokens=TokenRequest(gem_beta=args.gem_beta if args.objective == "gem" else None))
        labels = rows["labels"][:, 1:]
        own = creative.unsqueeze(1).expand_as(labels)[labels != -100]
        surprisal, entropy = out["surprisal"], out["entropy"]
        kl = out["kl"] if "kl" in out and not creative.all() else surprisal[:0]
        calibration = creativity_loss(
            surprisal=surprisal[own], entropy=entropy[own], share=args.entropy_share, bins=args.calibration_bins
        )
        if args.objective == "gem":
            loss = gem_loss(out["gem"]).total
        elif args.objective == "cross-entropy":
            loss = reality_loss(surprisal).total
        else:
            reality = reality_loss(surprisal, kl, args.kl_weight)
            loss = creativity_reality_loss(args.weight, calibration, reality).total
        if self.constraint is not None:
            loss = loss + self.constraint.value * kl.sum() / max(1, len(kl))
            if train:
                self.constraint.observe(kl.sum(), len(kl))
        self._keep_metrics("train" if train else "eval", rows, surprisal, entropy, kl, own, calibration.total)
        return loss

    @torch.no_grad()
    def _base_states(self, model: torch.nn.Module, rows: dict[str, Any], compared: torch.Tensor) -> dict[str, Any]:
        """Hidden states of the frozen base at the label positions of some rows, and its head where it has its own."""
        some = {name: value[compared] if isinstance(value, torch.Tensor) else value for name, value in rows.items()}
        if self.reference is not None:
            hidden = self.reference(**some, tokens=TokenRequest(hidden=True))["hidden"]
            return {"base_hidden": hidden, "within_base": self._within_reference}
        with as_base(self.accelerator.unwrap_model(model)):
            out = model(**some, tokens=TokenRequest(hidden=True, head=self._head_is_adapted))
        if not self._head_is_adapted:
            return {"base_hidden": out["hidden"]}
        return {"base_hidden": out["hidden"], "within_base": lambda compute, states: compute(out["head"], states)}

    def _keep_metrics(
        self,
        mode: str,
        rows: dict[str, Any],
        surprisal: torch.Tensor,
        entropy: torch.Tensor,
        kl: torch.Tensor,
        creative: torch.Tensor,
        calibration: torch.Tensor,
    ) -> None:
        """Figures for the next log: sums over tokens and processes, divided by counts."""
        means = {"entropy": (entropy.sum(), len(entropy)), "functional/kl": (kl.sum(), len(kl))}
        for domain, tokens in ((CREATIVE, creative), (FUNCTIONAL, ~creative)):
            n = int(tokens.sum())
            means |= {f"{domain}/nll": (surprisal[tokens].sum(), n), f"{domain}/entropy": (entropy[tokens].sum(), n)}
        means["creative/calibration"] = (calibration, int(creative.any()))
        self._log_means(mode, means)
        if mode == "train":
            seen = self._reduced(rows["attention_mask"].sum())
            self._total_train_tokens += int(seen)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]


class DomainCollator:
    """TRL's collator, and which rows are creative: `creative` `(B,)`, bool.

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
