"""The settings that a study and its command share, each with the help of its option.

The settings of a study and the arguments of its command inherit them, so each default is declared once. Each declares
itself the options that the two take in different forms (decodings by name, or with their settings). Help needs no
torch: nothing heavy is imported here.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
EngineName = Literal["transformers", "vllm"]
ENGINE_HELP = "what generates"
ENGINE_ARGS_HELP = "options of vLLM, such as tensor_parallel_size=4 or max_model_len=4096"


def values(options: Any, of: type) -> dict[str, Any]:
    """The fields of a dataclass by name, with the values of an object that inherits them.

    Args:
        options (`Any`): The object.
        of (`type`): The dataclass.

    Example:
        >>> values(GapOptions(limit=8), StudyOptions)["limit"]
        8
    """
    return {one.name: getattr(options, one.name) for one in dataclasses.fields(of)}


def _help(help: str, group: str, *, metavar: str | None = None) -> dict[str, str]:
    """The help of a field, in the metadata that `ugap.cli.arguments.option` reads."""
    return {"help": help, "group": group} | ({} if metavar is None else {"metavar": metavar})


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The settings that studies of one and of many models share."""

    prefix_tokens: int = field(default=64, metadata=_help("tokens of a prefix, where a text has no prompt", "study"))
    prompt_separator: str | None = field(
        default=None,
        metadata=_help(
            "what stands between a prompt and its text "
            "(default: an empty line, unless one of them has white space there)",
            "study",
            metavar="TEXT",
        ),
    )
    max_new_tokens: int = field(default=128, metadata=_help("tokens of a continuation", "study"))
    limit: int | None = field(default=None, metadata=_help("prefixes per domain", "study"))
    per_text: int = field(default=4, metadata=_help("prefixes of one source text, at most", "study"))
    batch_size: int = field(default=16, metadata=_help("prefixes in a unit of work", "study"))
    seed: int = field(default=0, metadata=_help("seed of sampling and bootstrap", "study"))
    pmi: bool = field(default=True, metadata=_help("measure PMI and CPMI too (a second pass)", "study"))
    skip_bad: bool = field(default=False, metadata=_help("log and skip bad rows instead of stopping", "texts"))
    device: str | None = field(
        default=None, metadata=_help("where models run (default: the GPU if there is one)", "models")
    )
    engine: EngineName = field(default="transformers", metadata=_help(ENGINE_HELP, "models"))
    engine_args: list[str] = field(
        default_factory=list, metadata=_help(ENGINE_ARGS_HELP, "models", metavar="KEY=VALUE")
    )


@dataclass(frozen=True, kw_only=True)
class GapOptions(StudyOptions):
    """The settings of all models of one study; in a study of many, each model has its own."""

    dtype: Dtype = field(default="float32", metadata=_help("type of the weights", "models"))
    trust_remote_code: bool = field(
        default=False, metadata=_help("run the code that a repository brings along", "models")
    )


@dataclass(frozen=True, kw_only=True)
class MultiOptions(StudyOptions):
    """As for one model, but without the second pass, which doubles the time of reading."""

    # Off: the second pass doubles the time of twenty-eight models.
    pmi: bool = field(default=False, metadata=_help("measure PMI and CPMI too (a second pass)", "study"))


@dataclass(frozen=True, kw_only=True)
class BeforeAfterOptions:
    """The models, texts and decodings of the comparison of a base with its tuned models."""

    base_scorer: str | None = field(
        default=None, metadata=_help("the frozen model behind self (default: the base)", "scorers", metavar="NAME")
    )
    dtype: Dtype = field(default="float32", metadata=_help("type of the weights", "scorers"))
    device: str | None = field(
        default=None, metadata=_help("where models run (default: the GPU if there is one)", "scorers")
    )
    trust_remote_code: bool = field(
        default=False, metadata=_help("run the code that a repository brings along", "scorers")
    )
    domain: str = field(default="creative", metadata=_help("domain of the texts that are taken", "texts"))
    limit: int | None = field(default=None, metadata=_help("prefixes, at most", "texts"))
    per_text: int = field(default=2, metadata=_help("prefixes of one text", "texts"))
    prefix_tokens: int = field(default=64, metadata=_help("tokens of a prefix", "texts"))
    max_new_tokens: int = field(default=128, metadata=_help("tokens of a continuation", "texts"))
    seeds: int = field(
        default=1, metadata=_help("continuations of every prefix, each with a seed of its own", "decodings")
    )
    batch_size: int = field(default=16, metadata=_help("prefixes that are continued side by side", "decodings"))
