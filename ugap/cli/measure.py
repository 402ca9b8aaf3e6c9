"""`ugap measure`: the human-model uncertainty gap of models on a text set, by domain, decoding and scorer."""

from collections.abc import Sequence
from dataclasses import dataclass

from ugap.cli.arguments import option
from ugap.cli.human import like_option, read_like, reader_option
from ugap.cli.model import adapter_option, check_adapter
from ugap.cli.plan import dry_run_option, print_plan
from ugap.cli.report import report_study
from ugap.cli.texts import Texts, read_texts
from ugap.study.options import GapOptions, values

DESCRIPTION = """\
Measure how much more surprising human text is than model text: models continue prefixes of human texts, both
continuations are scored, and the gap is estimated with 95% intervals.

examples:
  ugap measure --model gemma-3-270m --data demo --limit 16 --output runs/gemma
  ugap measure --model base-model --model chat-model --stage base-model=base --stage chat-model=instruct \\
      --data stories.jsonl --decoding ancestral top-p-0.9 "warm=temperature:1.1" --output runs/pair --resume
  ugap measure --scorer gemma-3-270m --data rewrites.jsonl --candidate gpt=gpt_text --output runs/given

decodings: ancestral (T=1), top-p-0.9, temperature-0.7, top-k-50, min-p-0.1, typical-p-0.95, greedy; eta-0.0009,
top-h-0.4; ugap-creative, ugap-balanced (the modes of the sampler), ugap-own (weight 1: the model's own human level);
or NAME=setting:value,setting:value with any settings of generate(), or human_mode, human_weight, human_reader and
human_kind of the sampler: "warm=temperature:1.1", "half=human_weight:0.5", "news=human_mode:creative,human_kind:news".

The folder gets report.html, gap.json, gap.csv and gap.md, scores.parquet (every text, token by token) and plots."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models that write, their decodings, and the scorers."""

    output: str = option("folder of the study", group="study", metavar="DIR")
    decoding: list[str] = option(
        "decodings (default: ancestral to greedy of the list above, as far as the engine has them)",
        default=[],
        group="study",
        metavar="NAME",
    )
    like: str | None = like_option("study")
    reader: str | None = reader_option("study")
    profile: str | None = option(
        "human profile of the model, for the decodings at human uncertainty (default: its own)",
        default=None,
        group="study",
        metavar="FILE",
    )
    model: list[str] = option(
        "models that continue the prefixes: assets, folders (also of a PEFT adapter), .gguf files or Hub ids",
        default=[],
        group="models",
        metavar="NAME",
    )
    adapter: str | None = adapter_option("models")
    scorer: list[str] = option(
        "who scores: self (each model itself) or one fixed model for all",
        default=["self"],
        group="models",
        metavar="NAME",
    )
    stage: list[str] = option(
        "stage of a model for the contrasts: base, instruct or reasoning",
        default=[],
        group="models",
        metavar="MODEL=STAGE",
    )
    prompting: list[str] = option(
        "raw (the bare prefix) or chat (a request through the chat template)",
        default=["raw"],
        group="models",
        metavar="HOW",
    )


@dataclass(frozen=True, kw_only=True)
class Arguments(GapOptions, Texts, Models):
    """Arguments of `ugap measure`."""

    candidate: list[str] = option(
        "given continuations, by the column that holds them", default=[], group="texts", metavar="NAME=COLUMN"
    )
    domain: str | None = option("one domain for all texts, instead of their own", default=None, group="texts")
    resume: bool = option("resume an interrupted study", default=False, group="study")
    dry_run: bool = dry_run_option()

    def __post_init__(self) -> None:
        """Refuse what can be refused before torch is imported, which takes seconds.

        Raises:
            InputError: A decoding is unknown, there is no model or candidate, an adapter has not one model, or the
                folder holds a study.
        """
        from ugap.errors import InputError
        from ugap.files import refuse_results
        from ugap.study.named import check_names

        check_names(self.decoding)
        if not (self.model or self.candidate):
            raise InputError("there is nothing to compare: name a --model, or a --candidate of given continuations")
        check_adapter(self.adapter, self.model, self.engine)
        refuse_results(self.output, self.resume, "parts")


def run(arguments: Arguments) -> None:
    """Measure, write the report and print the findings.

    Raises:
        InputError: The input is bad, or another process writes there; finished units stay for `--resume`.
    """
    from ugap.errors import require
    from ugap.models.adapter import adapted_name
    from ugap.study import StudySettings, parse_decodings, run_study
    from ugap.study.contrasts import STAGES
    from ugap.study.engine import default_decodings
    from ugap.study.following import with_profile
    from ugap.study.gap.plan import plan_study

    # Before the measurement, which can take hours.
    require("report")
    names = arguments.decoding or default_decodings(arguments.engine)
    decodings = parse_decodings(names) if arguments.model else {}
    models, adapters = arguments.model, {}
    stages = _pairs("stage", arguments.stage, STAGES)
    if arguments.adapter is not None:
        (base,) = models
        models = [adapted_name(base, arguments.adapter)]
        adapters = {models[0]: {"name": base, "adapter": arguments.adapter}}
        stages = {models[0] if model == base else model: stage for model, stage in stages.items()}
    settings = StudySettings(
        models=models,
        adapters=adapters,
        scorers=arguments.scorer,
        decodings=with_profile(decodings, arguments.profile, arguments.reader),
        promptings=arguments.prompting,
        like=read_like(arguments.like),
        stages=stages,
        **values(arguments, GapOptions),
    )
    # A candidate is read from its column as one more text of the row.
    candidates = _pairs("candidate", arguments.candidate)
    rows = read_texts(arguments, skip_bad=arguments.skip_bad, domain=arguments.domain, candidates=candidates)
    if arguments.dry_run:
        print_plan(plan_study(rows, settings))
        return
    result = run_study(rows, settings, arguments.output, data=arguments.data, resume=arguments.resume, progress=True)
    report_study(result, arguments.output)


def _pairs(name: str, words: list[str], values: Sequence[str] | None = None) -> dict[str, str]:
    """`["a=b"]` to `{"a": "b"}`."""
    from ugap.errors import InputError

    pairs: dict[str, str] = {}
    for word in words:
        # A model may be a path with "=" in it, so the last one counts.
        key, equals, value = word.rpartition("=")
        if not (equals and key and value) or key in pairs:
            raise InputError(f"--{name} {word}: give NAME=VALUE, every name once")
        if values is not None and value not in values:
            raise InputError(f"--{name} {word}: {value!r} is none of {', '.join(values)}")
        pairs[key] = value
    return pairs
