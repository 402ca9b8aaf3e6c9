"""`ugap score`: the surprisal, entropy, varentropy and rank of every token of texts."""

from dataclasses import dataclass

from ugap.cli.arguments import option
from ugap.cli.model import ModelOptions

DESCRIPTION = """\
Score texts token by token: surprisal, entropy, varentropy (nats) and rank under a model.

examples:
  ugap score --model gemma-3-270m --input stories.jsonl --output scores.parquet
  ugap score --model org/model --input texts.csv --text_column body --output scores.parquet --pmi
  accelerate launch -m ugap.cli.main score --model org/model --input big.jsonl --output scores.parquet

A text with a prompt is scored after the prompt. The output has a row per text: id, text, token_ids, offsets (start and
end of every token in the text), surprisal, entropy, varentropy, rank, straddles, and marginal_surprisal with --pmi.

The output head runs as plain torch on a GPU and as a compiled kernel on a CPU. UGAP_HEAD=triton asks for the Triton
kernels, UGAP_HEAD=torch for plain torch everywhere."""


@dataclass(kw_only=True)
class Arguments(ModelOptions):
    """Arguments of `ugap score`."""

    input: str = option(
        "texts: .jsonl(.gz), .csv(.gz), .parquet, a Hub data set, or demo", group="texts", metavar="FILE"
    )
    output: str = option("Parquet file to write", group="output", metavar="FILE")
    text_column: str = option("column of the text", default="text", group="texts", metavar="COLUMN")
    id_column: str = option("column of the id (row numbers if it is missing)", default="id", group="texts")
    prompt_column: str = option("column of the prompt before the text", default="prompt", group="texts")
    limit: int | None = option("score the first N texts only", default=None, group="texts")
    skip_bad: bool = option("log and skip bad rows instead of stopping", default=False, group="texts")
    pmi: bool = option("also score each text without its prompt", default=False, group="output")
    special_tokens: bool = option("read strings like <bos> as special tokens", default=False, group="texts")
    resume: bool = option("resume an interrupted run", default=False, group="output")


def run(arguments: Arguments) -> None:
    """Score a file.

    Raises:
        InputError: The input is bad; finished parts stay next to the output for `--resume`.
    """
    from pathlib import Path

    import pyarrow.parquet as pq

    from ugap.data import load_texts
    from ugap.files import locked, output_file
    from ugap.scoring import Scorer
    from ugap.study.scoring_job import ScoringJob
    from ugap.terminal import visible

    # Before the model is loaded, which takes longer than a look at the folder.
    output_file(arguments.output)
    rows = load_texts(
        arguments.input,
        text_column=arguments.text_column,
        id_column=arguments.id_column,
        prompt_column=arguments.prompt_column,
        domain="any",
        limit=arguments.limit,
        skip_bad=arguments.skip_bad,
    )
    scorer = Scorer.from_pretrained(arguments.model, **arguments.loading())
    output = Path(arguments.output)
    with locked(output):
        job = ScoringJob(
            scorer,
            output.with_name(output.name + ".parts"),
            pmi=arguments.pmi,
            skip_bad=arguments.skip_bad,
            special_tokens=arguments.special_tokens,
            resume=arguments.resume,
            # A run with other values has other parts, so --resume refuses them.
            settings={
                name: getattr(arguments, name)
                for name in ("input", "dtype", "limit", "text_column", "id_column", "prompt_column")
            },
        )
        keys = job.run(
            [row.id for row in rows],
            [row.text for row in rows],
            [row.prompt or "" for row in rows],
            where=[f"{row.where}, text {row.id!r}" for row in rows],
            progress=True,
        )
        job.finish(output, keys)
        if job.is_main:  # one of the processes of a launcher
            print(visible(f"{output}: {pq.read_metadata(output).num_rows} texts scored by {scorer.name}"))
