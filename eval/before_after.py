"""A model before and after fine-tuning: the gap, the share of it that is closed, variety, facts and questions."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from ugap.cli.arguments import option
from ugap.cli.comparing import CompareOptions, compared
from ugap.cli.main import main
from ugap.files import refuse_results, write_json

DESCRIPTION = """\
Compare a model with its fine-tuned selves on held-out human texts, with the same prompts and seeds: how far each is
from people, which share of the base's gap is closed, and what it cost in facts.

examples:
  ugap eval before_after --model smollm2-135m-instruct --adapter runs/sft --data stories.test.jsonl --output runs/ba
  ugap eval before_after --model M --adapter ours=runs/sft plain=runs/plain --data stories.test.jsonl
      --scorer self gemma-3-270m --tune stories.val.jsonl --match --questions gsm8k.test.jsonl --output runs/ba
  ugap eval before_after --model runs/collapsed/merged --base_scorer smollm2-135m-instruct --adapter runs/sft ...

One ruler: what the base and the tuned models write is read by the same frozen models. --scorer self is the base, or
the model that --base_scorer names (where the base itself was made by training, say); other names are cross-scorers.

Share closed: 1 - |gap after| / |gap before|. The gap has two sides: overshooting people counts like falling short, and
below 0 the gap has grown. --match adds the cheap answer: the base at the temperature at which its mean surprisal is
people's on the texts of --tune. decodings: see ugap measure --help.

The folder gets before_after.json (gaps in surprisal, entropy, PMI and deviation with intervals, shares closed, rewards,
1-Wasserstein distances from people's texts and from the human profile, distinct-2, distinct-4, repetition, the factual
probe and the questions with McNemar's test), before_after.png (the gaps), and parts, from which --resume goes on."""

NAME, PARTS = "before_after", "parts"


@dataclass(frozen=True, kw_only=True)
class Models:
    """What is compared."""

    model: str = option("asset, folder, .gguf file or Hub id of the base", group="models", metavar="NAME")
    adapter: list[str] = option(
        "PEFT adapters of the base: DIR, or NAME=DIR", default=[], group="models", metavar="DIR"
    )
    tuned: list[str] = option(
        "tuned models that are whole (merged, or trained in full): MODEL, or NAME=MODEL",
        default=[],
        group="models",
        metavar="MODEL",
    )


@dataclass(frozen=True, kw_only=True)
class Arguments(CompareOptions, Models):
    """Arguments of `ugap eval before_after`."""

    questions: str | None = option(
        "questions whose answer is a number (columns question and answer), such as those of GSM8K; asked greedily",
        default=None,
        group="probes",
        metavar="FILE",
    )
    questions_limit: int | None = option("ask the first N of them only", default=None, group="probes")
    question_tokens: int = option("tokens of an answer to a question", default=256, group="probes")
    output: str = option("folder of the results", default="runs/before_after", group="output", metavar="DIR")
    resume: bool = option(
        "resume an interrupted run, or add models, decodings or scorers to one", default=False, group="output"
    )


def run(arguments: Arguments) -> None:
    """Measure, print the tables, and write `before_after.json` and `before_after.png`.

    Raises:
        InputError: The input is bad; what is finished stays for `--resume`.
    """
    from ugap.errors import InputError
    from ugap.report.before_after import before_after_tables, plot_before_after
    from ugap.study.compare.run import Tuned, measure_before_after
    from ugap.study.probes.questions import load_questions
    from ugap.terminal import Terminal

    tuned = [
        *(Tuned.parse(word, is_adapter=True) for word in arguments.adapter),
        *(Tuned.parse(word, is_adapter=False) for word in arguments.tuned),
    ]
    if not (tuned or arguments.match):
        raise InputError("there is nothing to compare the base with: name an --adapter, a --tuned model, or --match")
    output = Path(arguments.output)
    # After the words are checked and before a model is loaded.
    refuse_results(arguments.output, arguments.resume, PARTS)
    rows, others, settings = compared(
        arguments,
        arguments.model,
        tuned,
        questions=load_questions(arguments.questions, limit=arguments.questions_limit) if arguments.questions else [],
        question_tokens=arguments.question_tokens,
    )
    record = measure_before_after(rows, settings, output / PARTS, tune=others, progress=True)
    record["settings"] |= {"arguments": asdict(arguments)}
    write_json(output / f"{NAME}.json", record)
    plot_before_after(record, output / f"{NAME}.png")
    console = Terminal()
    for table in before_after_tables(record):
        console.print(table)
        console.print()
    console.print(f"All numbers and answers are in {output / f'{NAME}.json'}, the gaps in {NAME}.png", markup=False)


if __name__ == "__main__":
    sys.exit(main(["eval", "before_after", *sys.argv[1:]]))
