"""What completions are compared with in training: the scorers, their human profiles, and the reward made of them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ugap.cli.arguments import option
from ugap.cli.human import like_option, read_like
from ugap.cli.training import device_of, say, trusts_code
from ugap.data.domain import CREATIVE
from ugap.errors import InputError

if TYPE_CHECKING:
    from ugap.profile import HumanProfile
    from ugap.scoring import Scorer
    from ugap.training import UncertaintyReward
    from ugap.training.policy import Policy


@dataclass(kw_only=True)
class HumanOptions:
    """The human text that completions are compared with."""

    profile: str | None = option(
        "human profile of the scorer, a file or the name of a shipped one (default: the scorer's own)",
        default=None,
        group="rewards",
        metavar="NAME",
    )
    kind: str | None = option(
        "kind of text or domain of the profile that completions are compared with "
        f"(default: the column kind of the texts, without one {CREATIVE})",
        default=None,
        group="rewards",
    )
    like: str | None = like_option("rewards")
    second_scorer: list[str] = option(
        "further frozen models that score completions, each by its own human profile: the reward is the mean over all",
        default=[],
        group="rewards",
        metavar="NAME",
    )
    pointwise: bool = option(
        "reward each completion by itself: best for one average text, so for training without groups alone",
        default=False,
        group="rewards",
    )


def read_human(arguments: Any) -> list[str]:
    """The texts to write like; checks the other `HumanOptions` as far as it can be done before a model is loaded.

    Raises:
        InputError: The profile or the file cannot be read, the profile lacks the kind, or options exclude each other.
    """
    from ugap.profile import HumanProfile
    from ugap.profile.fitting import named_profile

    given = arguments.profile
    if arguments.like is not None and arguments.kind is not None:
        raise InputError("give --like or --kind, not both")
    profile = named_profile(arguments.scorer or arguments.model) if given is None else HumanProfile.load(given)
    if profile is not None:
        # Raises for an unknown kind. A profile that has to be fitted first is checked after the model is loaded.
        profile.weights(arguments.kind or CREATIVE)
    return read_like(arguments.like)


def frozen_scorer(arguments: Any, config: Any) -> "Scorer | None":
    """The frozen scorer, unless it is the policy's base. A full fine-tuning changes its base, so it needs a scorer."""
    from ugap.scoring import Scorer

    name = arguments.scorer or (arguments.model if arguments.full else None)
    if name is None:
        return None
    return Scorer.from_pretrained(name, device=device_of(config), trust_remote_code=trusts_code(config))


def base_scorer(policy: "Policy") -> "Scorer":
    """The policy's base as a scorer, before training."""
    from peft import PeftModel

    from ugap.scoring import Scorer, SharedScorer

    if isinstance(policy.model, PeftModel):
        return SharedScorer(policy.model, policy.tokenizer)
    # Without an adapter to continue, the policy still is its base.
    return Scorer(policy.model, policy.tokenizer)


def human_of(arguments: Any, scorer: "Scorer", like: Sequence[str]) -> "tuple[HumanProfile, str]":
    """The human profile of a scorer, and the kind of it to compare with.

    Args:
        arguments (`Any`): The options; `HumanOptions` are among them.
        scorer (`Scorer`): The scorer of the completions.
        like (`Sequence[str]`): The texts to write like; none where a kind is followed.

    Raises:
        InputError: The profile is of another model, lacks the kind, or the texts are too few.
    """
    from ugap.profile import HumanProfile
    from ugap.profile.fitting import certainty, like_texts
    from ugap.profile.profile import LIKE
    from ugap.profile.texts import FEWEST_TEXTS

    own = HumanProfile.for_scorer(scorer) if arguments.profile is None else HumanProfile.load(arguments.profile)
    own.check(scorer.id)
    if not like:
        kind = arguments.kind or CREATIVE
        own.weights(kind)
        return own, kind
    own = like_texts(own, scorer, like)
    # A human level takes some hundred tokens; the features of whole texts take a number of texts.
    if own.kinds[LIKE].texts is None:
        raise InputError(
            f"too few of the texts to write like are long enough to compare whole texts with: give {FEWEST_TEXTS}"
        )
    say(f"{scorer.name} compares with {certainty(own)}")
    return own, LIKE


def uncertainty_reward(
    arguments: Any,
    config: Any,
    scorer: "Scorer | None",
    human: "tuple[HumanProfile, str]",
    like: Sequence[str],
    *,
    length: int | None = None,
) -> "UncertaintyReward":
    """The reward of the options.

    Args:
        arguments (`Any`): The options; `HumanOptions` are among them.
        config (`Any`): The config of the trainer.
        scorer (`Scorer`, *optional*): The first scorer; by default the policy's base.
        human (`tuple[HumanProfile, str]`): Its human profile, and the kind of it to compare with: see `human_of`.
        like (`Sequence[str]`): The texts to write like; none where a kind is followed.
        length (`int`, *optional*): Nominal length of a completion in tokens; by default the trainer's.

    Raises:
        InputError: As `human_of`, of the further scorers.
    """
    from ugap.training import UncertaintyReward

    profiles: list[HumanProfile] = [human[0]]
    scorers: list[Scorer | None] = [scorer]
    for name in arguments.second_scorer:
        # --profile is that of the first scorer; each further one has its own.
        further = frozen_scorer(dataclasses.replace(arguments, scorer=name), config)
        assert further is not None
        profiles.append(human_of(dataclasses.replace(arguments, profile=None), further, like)[0])
        scorers.append(further)
    return UncertaintyReward(
        profiles, scorers, kind=kind_of_all(arguments, like), length=length, pointwise=arguments.pointwise
    )


def kind_of_all(arguments: Any, like: Sequence[str]) -> str | None:
    """The kind that all texts are compared with; `None` where each is compared with its own."""
    from ugap.profile.profile import LIKE

    return LIKE if like else arguments.kind
