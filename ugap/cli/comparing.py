"""The options that the comparisons of a base with its tuned models share, and what is made of them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ugap.cli.arguments import option
from ugap.errors import InputError

if TYPE_CHECKING:
    from ugap.data import TextRow
    from ugap.study.compare.run import BeforeAfterSettings, Tuned


@dataclass(kw_only=True)
class CompareOptions:
    """On what models are compared, and who reads what they write."""

    scorer: list[str] = option(
        "who reads: self (the frozen base), or other models by name", default=["self"], group="scorers", metavar="NAME"
    )
    base_scorer: str | None = option(
        "the frozen model behind self (default: the base)", default=None, group="scorers", metavar="NAME"
    )
    profile: list[str] = option(
        "human profiles of scorers: files, or names of shipped ones (default: the shipped ones)",
        default=[],
        group="scorers",
        metavar="NAME",
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "type of the weights", default="float32", group="scorers"
    )
    device: str | None = option("where models run (default: the GPU if there is one)", default=None, group="scorers")
    trust_remote_code: bool = option("run the code that a repository brings along", default=False, group="scorers")
    data: str = option("held-out human texts", group="texts", metavar="FILE")
    tune: str | None = option(
        "other human texts, to match the temperature of the base on", default=None, group="texts", metavar="FILE"
    )
    domain: str = option("domain of the texts that are taken", default="creative", group="texts")
    limit: int | None = option("prefixes, at most", default=None, group="texts")
    per_text: int = option("prefixes of one text", default=2, group="texts")
    prefix_tokens: int = option("tokens of a prefix", default=64, group="texts")
    max_new_tokens: int = option("tokens of a continuation", default=128, group="texts")
    decoding: list[str] = option(
        "decodings of base and tuned models",
        default=["ancestral", "temperature-0.7"],
        group="decodings",
        metavar="NAME",
    )
    match: bool = option(
        "add the base at the temperature that matches people on the texts of --tune", default=False, group="decodings"
    )
    seeds: int = option("continuations of every prefix, each with a seed of its own", default=1, group="decodings")
    batch_size: int = option("prefixes that are continued side by side", default=16, group="decodings")
    facts: Literal["held-out", "all", "none"] = option(
        "facts of the probe: the half that trainings do not use, all, or none", default="held-out", group="probes"
    )
    facts_limit: int | None = option("ask N of them only, some of every kind", default=None, group="probes")


def compared(
    arguments: CompareOptions, model: str, tuned: "Sequence[Tuned]", **more: Any
) -> "tuple[list[TextRow], list[TextRow], BeforeAfterSettings]":
    """The human texts, those to match the temperature on, and the settings that the options ask for.

    Args:
        arguments (`CompareOptions`): The options.
        model (`str`): The base.
        tuned (`Sequence[Tuned]`): The tuned models.
        **more (`Any`): Further settings.

    Raises:
        InputError: A file, profile or decoding is bad, or options do not go together.
    """
    from ugap.data.domain import load_domain
    from ugap.profile import HumanProfile
    from ugap.study.compare.run import BeforeAfterSettings, probe_facts
    from ugap.study.decodings import parse_decodings

    if arguments.match and arguments.tune is None:
        raise InputError("--match needs --tune: other human texts, to match the temperature on")
    own = {field.name for field in dataclasses.fields(BeforeAfterSettings)} - {"facts"}
    same = {field.name for field in dataclasses.fields(CompareOptions)} & own
    settings = BeforeAfterSettings(
        **{name: getattr(arguments, name) for name in same},
        model=model,
        tuned=tuned,
        decodings=parse_decodings(arguments.decoding),
        scorers=arguments.scorer,
        profiles=[HumanProfile.load(name) for name in arguments.profile],
        facts=probe_facts(arguments.facts, limit=arguments.facts_limit),
        **more,
    )
    rows = load_domain(arguments.data, arguments.domain)
    others = load_domain(arguments.tune, arguments.domain) if arguments.tune is not None and arguments.match else []
    return rows, others, settings
