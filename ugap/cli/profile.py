"""`ugap profile`: what human text looks like to one scorer, by domain; fit one or show one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ugap.cli.arguments import option

if TYPE_CHECKING:
    from ugap.profile import HumanProfile

DESCRIPTION = """\
Fit a human profile to human texts: quantiles of surprisal, entropy, deviation, PMI and rank by domain, and the
calibration curve (how surprising people are where the model's entropy is h). Or show one that exists.

examples:
  ugap profile --show gemma-3-270m
  ugap profile --model gemma-3-270m --data stories.jsonl manuals.jsonl --output gemma-3-270m.json

Of each text the first tokens are the prefix (its prompt, where it has one), and what follows is profiled."""


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap profile`."""

    show: str | None = option("show a shipped profile or a profile file", default=None, group="show", metavar="NAME")
    model: str | None = option(
        "asset, folder, .gguf file or Hub id of the scorer", default=None, group="fit", metavar="NAME"
    )
    data: list[str] = option(
        "human texts with a domain column; several files are joined", default=[], group="fit", metavar="FILE"
    )
    output: str | None = option("profile to write (JSON)", default=None, group="fit", metavar="FILE")
    source: str = option(
        "what the texts are, for the record (default: the names of the files)", default="", group="fit"
    )
    prefix_tokens: int = option("tokens of a text that are its prefix", default=64, group="fit")
    max_tokens: int = option("tokens of a text that are profiled, at most", default=512, group="fit")
    min_tokens: int = option("a text with fewer tokens after its prefix is left out", default=16, group="fit")
    limit: int | None = option("texts per domain and file", default=None, group="fit")
    text_column: str = option("column of the text", default="text", group="fit", metavar="COLUMN")
    domain: str | None = option("the domain of all texts, whatever the data say", default=None, group="fit")
    skip_bad: bool = option("log and skip bad rows instead of stopping", default=False, group="fit")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "type of the weights", default="float32", group="fit"
    )
    device: str | None = option("where the model runs (default: the GPU if there is one)", default=None, group="fit")
    trust_remote_code: bool = option("run the code that a repository brings along", default=False, group="fit")
    seed: int = option("seed of the bootstrap", default=0, group="fit")
    resume: bool = option("go on with an interrupted run", default=False, group="fit")


def run(arguments: Arguments) -> None:
    """Fit or show a profile.

    Raises:
        InputError: The input is bad, or it is not clear what to do.
    """
    from ugap.errors import InputError
    from ugap.profile import HumanProfile

    if arguments.show is not None:
        _show(HumanProfile.load(arguments.show))
        return
    for name in ("model", "data", "output"):
        if not getattr(arguments, name):
            raise InputError(f"--{name} is needed to fit a profile, or --show NAME to see one")
    _show(_fit(arguments))
    print(f"\nwritten to {arguments.output}")


def _fit(arguments: Arguments) -> "HumanProfile":
    from pathlib import Path

    from ugap.data import load_texts
    from ugap.files import locked, output_file
    from ugap.profile import HumanProfile
    from ugap.scoring import Scorer
    from ugap.study.excerpts import cut_excerpts
    from ugap.study.scoring_job import ScoringJob
    from ugap.study.store import scores_from_row

    assert arguments.model is not None
    assert arguments.output is not None
    output_file(arguments.output)
    texts = [
        load_texts(
            name,
            text_column=arguments.text_column,
            domain=arguments.domain,
            skip_bad=arguments.skip_bad,
        )
        for name in arguments.data
    ]
    scorer = Scorer.from_pretrained(
        arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
    )
    excerpts = [
        excerpt
        for rows in texts
        for excerpt in cut_excerpts(
            rows,
            scorer.tokenizer,
            prefix_tokens=arguments.prefix_tokens,
            max_new_tokens=arguments.max_tokens,
            min_new_tokens=arguments.min_tokens,
            limit=arguments.limit,
            per_text=1,
        )
    ]
    output = Path(arguments.output)
    with locked(output):
        job = ScoringJob(
            scorer,
            output.with_name(output.name + ".parts"),
            pmi=True,
            skip_bad=arguments.skip_bad,
            resume=arguments.resume,
            settings={
                "data": arguments.data,
                "text_column": arguments.text_column,
                "domain": arguments.domain,
                "dtype": arguments.dtype,
                "prefix_tokens": arguments.prefix_tokens,
                "max_tokens": arguments.max_tokens,
                "min_tokens": arguments.min_tokens,
                "limit": arguments.limit,
            },
        )
        keys = job.run(
            [str(i) for i in range(len(excerpts))],
            [excerpt.human for excerpt in excerpts],
            [excerpt.prefix for excerpt in excerpts],
            where=[f"{excerpt.where}, text {excerpt.id!r}" for excerpt in excerpts],
            progress=True,
        )
        scores: dict[str, list] = {}
        for key in keys:
            for row in job.store.read(key):
                scores.setdefault(excerpts[int(row["id"])].domain, []).append(scores_from_row(row, scorer.id))
        source = arguments.source or ", ".join(Path(name).name for name in arguments.data)
        profile = HumanProfile.fit(scores, source=source, seed=arguments.seed)
        profile.save(output)
        job.store.clear()
        return profile


def _show(profile: "HumanProfile") -> None:
    from rich.table import Table

    from ugap.terminal import Terminal, one_line

    console = Terminal()
    console.print(one_line(f"scorer {profile.scorer.name} ({profile.scorer.weight_hash}); {profile.source}"))
    figures = Table("domain", "texts", "tokens", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("surprisal", "entropy", "deviation", "pmi"):
        figures.add_column(name, justify="right")
    curves = Table("calibration", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    levels = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    for level in levels:
        curves.add_column(f"g({level:g})", justify="right")
    for name in profile.domains:
        domain = profile.domain(name)
        means = (domain.means.get(measure) for measure in ("surprisal", "entropy", "deviation", "pmi"))
        shown = ("-" if mean is None else f"{mean:.3f}" for mean in means)
        figures.add_row(one_line(name), str(domain.n_texts), str(domain.n_tokens), *shown)
        curves.add_row(one_line(name), *(f"{value:.2f}" for value in profile.curve(name)([*levels])))
    console.print(figures)
    console.print("\nmean surprisal of people where the model's entropy is h (nats):")
    console.print(curves)
