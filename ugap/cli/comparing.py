"""The options that all comparisons of a base with its tuned models share, and the settings from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ugap.cli.arguments import option
from ugap.errors import InputError
from ugap.study.options import BeforeAfterOptions, values

if TYPE_CHECKING:
    from ugap.data import TextRow
    from ugap.study.compare.run import BeforeAfterSettings, Tuned


@dataclass(frozen=True, kw_only=True)
class CompareOptions(BeforeAfterOptions):
    """The texts and facts that models are compared on, and the scorers."""

    scorer: list[str] = option(
        "scorers: self (the frozen base), or other models by name", default=["self"], group="scorers", metavar="NAME"
    )
    profile: list[str] = option(
        "human profiles of scorers: files, or names of shipped ones (default: the scorers' own)",
        default=[],
        group="scorers",
        metavar="NAME",
    )
    data: str = option("held-out human texts", group="texts", metavar="FILE")
    tune: str | None = option(
        "other human texts, to match the temperature of the base", default=None, group="texts", metavar="FILE"
    )
    decoding: list[str] = option(
        "decodings of base and tuned models",
        default=["ancestral", "temperature-0.7"],
        group="decodings",
        metavar="NAME",
    )
    match: bool = option(
        "add the base at the temperature that matches human text on --tune", default=False, group="decodings"
    )
    facts: Literal["held-out", "all", "none"] = option(
        "facts of the probe: the half that training does not use, all, or none", default="held-out", group="probes"
    )
    facts_limit: int | None = option("ask N facts only, some of every kind", default=None, group="probes")


def compared(
    arguments: CompareOptions, model: str, tuned: "Sequence[Tuned]", **more: Any
) -> "tuple[list[TextRow], list[TextRow], BeforeAfterSettings]":
    """The human texts, the texts to match the temperature on, and the settings from the options.

    Args:
        arguments (`CompareOptions`): The options.
        model (`str`): The base.
        tuned (`Sequence[Tuned]`): The tuned models.
        **more (`Any`): Further settings.

    Raises:
        InputError: A file, profile or decoding is bad, or options exclude each other.
    """
    from ugap.data.domain import load_domain
    from ugap.profile import HumanProfile
    from ugap.study.compare.run import BeforeAfterSettings, probe_facts
    from ugap.study.decodings import parse_decodings

    if arguments.match and arguments.tune is None:
        raise InputError("--match needs --tune: other human texts, to match the temperature on")
    settings = BeforeAfterSettings(
        **values(arguments, BeforeAfterOptions),
        model=model,
        tuned=tuned,
        decodings=parse_decodings(arguments.decoding),
        scorers=arguments.scorer,
        profiles=[HumanProfile.load(name) for name in arguments.profile],
        facts=probe_facts(arguments.facts, limit=arguments.facts_limit),
        **more,
    )
    rows = load_domain(arguments.data, arguments.domain)
    # Read only for --match: a study without it may keep --tune in its YAML file.
    others = load_domain(arguments.tune, arguments.domain) if arguments.tune is not None and arguments.match else []
    return rows, others, settings
