"""`ugap report`: studies as one HTML page that opens from disk."""

from dataclasses import dataclass

from ugap.cli.arguments import option

DESCRIPTION = """\
Make one HTML page of a study, or of several beside each other: the finding, the gap by domain and decoding, how
people's and models' tokens are distributed, a reader with every token tinted, the table, and the record. The page holds
all that it shows and needs no network. A study that still runs is shown as far as it is.

examples:
  ugap report runs/first
  ugap report runs/before runs/after --output compared.html"""


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap report`."""

    folders: list[str] = option("folders of studies", default=[], group="report", metavar="DIR", positional=True)
    output: str = option("HTML file to write", default="report.html", group="report", metavar="FILE")


def run(arguments: Arguments) -> None:
    """Write the page and say where it is.

    Raises:
        InputError: A folder is no study's, has no scores, or is of a newer version.
    """
    from ugap.errors import InputError
    from ugap.report.page import write_page
    from ugap.terminal import one_line

    if not all(arguments.folders) or not arguments.folders:
        raise InputError("name the folder of a study (see ugap report --help)")
    runs = write_page(arguments.folders, arguments.output)
    for folder, made in zip(arguments.folders, runs, strict=True):
        if made.unfinished:
            print(f"{one_line(folder)} has not ended: {len(made.texts)} texts are scored so far")
    print(f"The report is in {one_line(arguments.output)}: open it in a browser")
