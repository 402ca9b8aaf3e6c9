"""The options that the training programs share, and the policy, data and training run that they ask for.

The scorers and the reward have a module of their own: `ugap.cli.reward`.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from ugap.cli.arguments import option
from ugap.errors import InputError, is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from ugap.data import TextRow
    from ugap.data.facts import Fact
    from ugap.profile import HumanProfile
    from ugap.profile.profile import Selection
    from ugap.scoring import Scorer
    from ugap.study.excerpts import Excerpt
    from ugap.training.policy import Policy

# Sections of the help whose options may change when a run is resumed.
FREE = ("evaluations", "output")


@dataclass(kw_only=True)
class PolicyOptions:
    """The policy to train."""

    model: str = option("asset, folder, .gguf file or Hub id of the policy", group="policy", metavar="NAME")
    adapter: str | None = option(
        "folder of a PEFT adapter to continue, instead of a new one", default=None, group="policy", metavar="DIR"
    )
    full: bool = option("train all weights, no adapter", default=False, group="policy")
    lora_r: int = option("rank of the new LoRA adapter", default=16, group="policy")
    lora_alpha: int = option("scale of the adapter; LoRA divides it by the rank", default=32, group="policy")
    lora_dropout: float = option("dropout of the adapter", default=0.0, group="policy")
    lora_target_modules: list[str] = option(
        "layers that get the adapter", default=["all-linear"], group="policy", metavar="NAME"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "type of the weights", default="float32", group="policy"
    )
    scorer: str | None = option(
        "frozen model that scores the policy's text (default: the base of the policy)",
        default=None,
        group="policy",
        metavar="NAME",
    )


@dataclass(kw_only=True)
class DataOptions:
    """The texts and facts to train on."""

    data: list[str] = option(
        "human texts with a domain (creative, functional): .jsonl(.gz), .csv(.gz), .parquet, a Hub data set, or demo",
        group="data",
        metavar="FILE",
    )
    functional: list[str] = option(
        "text sets whose functional texts are added", default=["demo"], group="data", metavar="FILE"
    )
    facts: bool = option("train on half of the factual probe too", default=True, group="data")
    functional_share: float = option("share of functional rows", default=0.3, group="data")
    limit: int | None = option("texts of each domain and file", default=None, group="data")
    prefix_tokens: int = option("tokens of a prompt that is cut from a text", default=64, group="data")


@dataclass(kw_only=True)
class EvaluationOptions:
    """The evaluations of the gap, and the files that the run leaves."""

    eval_data: list[str] = option(
        "held-out human texts (default: one in ten of the texts, left out of training)",
        default=[],
        group="evaluations",
        metavar="FILE",
    )
    eval_limit: int = option("held-out prefixes of each domain", default=32, group="evaluations")
    eval_tokens: int = option("tokens of a continuation in an evaluation", default=64, group="evaluations")
    eval_facts: int = option("facts to ask, from the other half of the probe", default=96, group="evaluations")
    eval_decoding: str | None = option(
        "decoding of the policy in evaluations: see ugap measure --help, or setting:value,... "
        "(default: that of the training if it generates, else ancestral)",
        default=None,
        group="evaluations",
        metavar="NAME",
    )
    eval_every: int = option(
        "steps between evaluations; 0 evaluates only at the start and the end", default=50, group="evaluations"
    )
    merge: bool = option(
        "also write the model with the adapter merged, into output_dir/merged (an existing one is replaced)",
        default=False,
        group="output",
    )


@dataclass(frozen=True)
class Data:
    """The texts and facts of a run.

    Args:
        texts (`Sequence[TextRow]`): Texts to train on.
        facts (`Sequence[Fact]`): Facts to train on.
        excerpts (`Sequence[Excerpt]`): Held-out prefixes with their human continuations.
        asked (`Sequence[Fact]`): Held-out facts.
    """

    texts: "Sequence[TextRow]"
    facts: "Sequence[Fact]"
    excerpts: "Sequence[Excerpt]"
    asked: "Sequence[Fact]"


def policy_of(arguments: Any, config: Any) -> "Policy":
    """Load the policy.

    Raises:
        InputError: It cannot be loaded, an adapter does not fit, or options exclude each other.
    """
    from peft import LoraConfig

    from ugap.models.fingerprint import weight_hash
    from ugap.profile.fitting import known_profile
    from ugap.scoring import ScorerId
    from ugap.training.policy import ALL_LINEAR, MERGED, load_policy

    if arguments.full and arguments.adapter is not None:
        raise InputError("--full trains all weights, and --adapter an adapter: choose one")
    if arguments.full and arguments.merge:
        raise InputError("--merge puts an adapter into the weights, and --full has none: the output folder is a model")
    if arguments.lora_r < 1:
        raise InputError(f"lora_r is {arguments.lora_r}, and at least 1 is needed")
    targets = arguments.lora_target_modules
    lora = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        task_type="CAUSAL_LM",
    )
    policy = load_policy(
        arguments.model,
        lora=None if arguments.full or arguments.adapter is not None else lora,
        adapter=arguments.adapter,
        dtype=arguments.dtype,
        device=device_of(config),
        trust_remote_code=trusts_code(config),
    )
    if arguments.full or arguments.merge or (Path(config.output_dir) / MERGED).is_dir():
        # The trained model will carry the human profile of its base: a bad file is found before the training.
        base = ScorerId(arguments.model, weight_hash(policy.model))
        known_profile(arguments.model, base, policy.tokenizer)
    kind = "all weights" if arguments.full else f"adapter {arguments.adapter}"
    if policy.lora is not None:
        kind = f"LoRA of rank {lora.r}, alpha {lora.lora_alpha}, on {', '.join(targets)}"
    say(f"policy: {arguments.model}, {kind}, {arguments.dtype} on {policy.model.device}")
    return policy


def data_of(arguments: Any, tokenizer: "PreTrainedTokenizerBase") -> Data:
    """Load the texts and facts.

    Raises:
        InputError: A text set is bad or too short, or held-out texts are trained on.
    """
    from ugap.data.facts import load_facts, split_facts
    from ugap.study.excerpts import cut_excerpts
    from ugap.training.evaluation.held_out import hold_out, read_texts, some_of_every_kind

    lengths = {"prefix_tokens": arguments.prefix_tokens, "max_new_tokens": arguments.eval_tokens}
    for name in ("prefix_tokens", "eval_limit", "eval_tokens"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name} is {getattr(arguments, name)}, and at least 1 is needed")
    texts = read_texts(arguments.data, arguments.functional, limit=arguments.limit)
    if arguments.eval_data:
        held = read_texts(arguments.eval_data)
        # By text, as ids of two files have nothing in common.
        trained = {row.text for row in texts}
        for row in held:
            if row.text in trained:
                raise InputError(f"{row.where}: held-out text {row.id!r} is trained on as well")
    else:
        texts, held = hold_out(texts, tokenizer, **lengths)
    facts, others = split_facts(load_facts())
    data = Data(
        texts,
        facts if arguments.facts else [],
        cut_excerpts(held, tokenizer, limit=arguments.eval_limit, **lengths),
        some_of_every_kind(others, max(0, arguments.eval_facts)),
    )
    say(f"texts to train on: {_counted(texts)}; facts: {len(data.facts)}")
    say(f"held out: {_counted(data.excerpts)} prefixes from {_counted(held)} texts; facts: {len(data.asked)}")
    return data


def decoding_of(word: str | None, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """A decoding by its name, or by its settings alone.

    Raises:
        InputError: It is unknown.

    Example:
        >>> decoding_of("temperature:0.5", {}), decoding_of(None, {"top_p": 0.9})
        ({'temperature': 0.5}, {'top_p': 0.9})
    """
    from ugap.study.decodings import parse_decodings

    if word is None:
        return default
    (settings,) = parse_decodings([f"own={word}" if ":" in word and "=" not in word else word]).values()
    return settings


def settings_of(program: str, arguments: Any, like: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that a resumed run has to share with the run before, with the fingerprint of texts to write like."""
    fields = [field for field in dataclasses.fields(arguments) if field.metadata.get("group") not in FREE]
    return {
        "program": program,
        **{field.name: getattr(arguments, field.name) for field in fields},
        **_like_content(like),
    }


def _like_content(like: Sequence[str]) -> dict[str, str | None]:
    from ugap.study.following import like_hash

    return {"like_hash": like_hash(like)} if like else {}


@contextmanager
def in_one_line() -> Iterator[None]:
    """Raise errors of TRL, PEFT and the Hub as one line, and hide the bars of `datasets`.

    Raises:
        InputError: Instead of their ValueError, and of the errors of the Hub and the network.
    """
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    from ugap.models.hub import NETWORK_ERRORS

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except InputError:
        raise
    except NETWORK_ERRORS as error:
        if getattr(error, "errno", None) is not None:  # an error of the machine, not of the Hub
            raise
        raise InputError(f"the Hub: {_line(error)}") from error
    except ValueError as error:
        raise InputError(_line(error)) from error
    finally:
        if not hidden:
            enable_progress_bars()


def train(
    program: str,
    trainer: "Trainer",
    arguments: Any,
    data: Data,
    *,
    checkpoint: Path | None,
    scorer: "Scorer | None" = None,
    decoding: Mapping[str, Any],
    like: Sequence[str] = (),
    human: "tuple[HumanProfile, Selection | None] | None" = None,
) -> None:
    """Train with evaluations of the gap; then save, print the evaluations, push and close, as TRL's scripts do.

    Args:
        program (`str`): Name of the program.
        trainer (`Trainer`): A trainer whose card is measured, see `ugap.training.evaluation.card.MeasuredCard`.
        arguments (`Any`): The options; `PolicyOptions`, `DataOptions` and `EvaluationOptions` are among them.
        data (`Data`): The held-out prefixes and facts.
        checkpoint (`Path`, *optional*): The checkpoint to resume from.
        scorer (`Scorer`, *optional*): The frozen scorer; by default the policy's base.
        decoding (`Mapping[str, Any]`): Decoding of the policy in evaluations.
        like (`Sequence[str]`, *optional*): The texts to write like, for the record.
        human (`tuple[HumanProfile, str or Mapping[str, float] or None]`, *optional*): The scorer's human profile, and
            the kind of it that creative texts are compared with; by default what `UncertaintyGapCallback` finds.

    Raises:
        InputError: The evaluations do not fit the training, a tracker does not begin, memory does not suffice, or
            logits are not finite.
        Terminated: The run got SIGTERM, and has saved a checkpoint.
    """
    from ugap.models.fingerprint import weight_hash
    from ugap.profile.fitting import known_profile
    from ugap.scoring import ScorerId
    from ugap.training.evaluation.callback import UncertaintyGapCallback
    from ugap.training.evaluation.card import before_and_after
    from ugap.training.policy import MERGED, leave_profile, save_merged
    from ugap.training.rollouts import SampledGRPOTrainer
    from ugap.training.run_folder import check_settings, note_run
    from ugap.training.termination import saving_at_sigterm

    args: Any = trainer.args
    profile, kind = human or (None, None)
    gap = UncertaintyGapCallback(
        trainer,
        data.excerpts,
        scorer=scorer,
        profile=profile,
        kind=kind,
        facts=data.asked,
        decoding=decoding,
        max_new_tokens=arguments.eval_tokens,
        eval_every=arguments.eval_every,
    )
    trainer.add_callback(gap)
    content = {**trained_on(trainer, data), **_like_content(like)}
    # A checkpoint may be that of a run in another folder, whose settings count then.
    check_settings(args.output_dir if checkpoint is None else checkpoint.parent, content)
    begin_trackers(trainer)
    note_run(args.output_dir, {"program": program, **vars(arguments), **content}, config=args.to_dict())
    say(f"training into {args.output_dir}: {_effective(args)}")
    with within_memory(args), saving_at_sigterm(trainer):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    # From here as in TRL's scripts, which save, write the card, push and end.
    folder = Path(args.output_dir)
    trainer.save_model(str(folder))
    if arguments.full and (base_hash := content.get("weight_hash")):
        trained = weight_hash(trainer.accelerator.unwrap_model(trainer.model))  # of every process, as some shard
        if trainer.is_world_process_zero():
            people = known_profile(arguments.model, ScorerId(arguments.model, base_hash), trainer.processing_class)
            leave_profile(people, trained, folder)
    trainer.create_model_card(model_name=(args.hub_model_id or folder.resolve().name).split("/")[-1])
    # A merged model of an earlier run would not belong to the new adapter.
    if trainer.is_world_process_zero() and (arguments.merge or (folder / MERGED).is_dir()):
        save_merged(
            arguments.model, folder, folder / MERGED, dtype=arguments.dtype, trust_remote_code=trusts_code(args)
        )
    say(f"\n{before_and_after(gap.evaluations[0], gap.evaluations[-1])}\n\nsaved in {folder}")
    if args.push_to_hub:
        with in_one_line():
            trainer.push_to_hub()
    if isinstance(trainer, SampledGRPOTrainer):
        trainer.end_vllm()
    trainer.accelerator.end_training()


def trained_on(trainer: "Trainer", data: Data) -> dict[str, str]:
    """Fingerprints of the base and of the texts, as names of folders and files do not show a change.

    A model that is sharded while loading has no fingerprint, as no process has all weights.
    """
    from ugap.data import content_hash
    from ugap.models.fingerprint import weight_hash
    from ugap.study.store import rows_hash

    policy: Any = trainer.accelerator.unwrap_model(trainer.model)
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    # ZeRO-3 leaves empty parameters where other processes hold the weights.
    whole = all(parameter.numel() for parameter in base.parameters())
    return {
        "data_hash": content_hash((rows_hash(data.texts), list(data.facts))),
        **({"weight_hash": weight_hash(base)} if whole else {}),
    }


def check_trackers(config: Any) -> None:
    """Check that the trackers of the run are installed.

    Raises:
        InputError: A tracker is unknown or not installed.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in config.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"report_to: no tracker {name!r}; choose of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError, AssertionError) as error:
            raise InputError(f"report_to {name}: {_line(error)}") from error


def begin_trackers(trainer: "Trainer") -> None:
    """Start the trackers' runs, as transformers does when training begins, but with errors as one line.

    Raises:
        InputError: A tracker has no key, or does not reach its service.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = {callback: name for name, callback in INTEGRATION_TO_CALLBACK.items()}
    for callback in trainer.callback_handler.callbacks:
        if type(callback) not in names or not hasattr(callback, "setup"):
            continue
        # Only some trackers take it.
        optional = {"processing_class": trainer.processing_class}
        accepted = {
            name: optional[name] for name in optional.keys() & inspect.signature(callback.setup).parameters.keys()
        }
        try:
            callback.setup(trainer.args, trainer.state, trainer.model, **accepted)
        except Exception as error:  # each tracker has errors of its own
            raise InputError(f"report_to {names[type(callback)]}: {_line(error)}") from error


@contextmanager
def within_memory(args: Any) -> Iterator[None]:
    """Raise an error of too little memory as one line.

    Raises:
        InputError: Instead of the errors of torch and Python.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"out of memory in training, with per_device_train_batch_size {args.per_device_train_batch_size}: halve it "
            f"and double gradient_accumulation_steps ({args.gradient_accumulation_steps}), which trains the same"
        ) from error


def say(text: str, file: TextIO | None = None) -> None:
    """Print, once for all processes; by default on stdout."""
    from accelerate import PartialState

    from ugap.terminal import visible

    if PartialState().is_main_process:
        print(visible(text), file=file, flush=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _effective(args: Any) -> str:
    """The settings of a trainer that depend on the device and on other settings, for the log."""
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no mixed precision"
    rows = f"{args.per_device_train_batch_size} rows x {args.gradient_accumulation_steps} x {args.world_size} processes"
    return (
        f"learning rate {args.learning_rate:g}, {rows} a step, {precision}, gradient checkpointing "
        f"{'on' if args.gradient_checkpointing else 'off'}, reports to {', '.join(args.report_to) or 'nobody'}"
    )


def device_of(config: Any) -> str | None:
    """The device that models are loaded on."""
    return "cpu" if config.use_cpu else None  # None: the GPU if there is one


def trusts_code(config: Any) -> bool:
    """Whether the code of a model's repository may run; a config without the option trusts none."""
    return bool(getattr(config, "trust_remote_code", False))


def _counted(rows: "Sequence[TextRow] | Sequence[Excerpt]") -> str:
    domains = [row.domain for row in rows]
    return ", ".join(f"{domains.count(domain)} {domain}" for domain in dict.fromkeys(domains)) or "none"
