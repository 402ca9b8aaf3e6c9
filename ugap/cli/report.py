"""`ugap report`: studies as one HTML page that opens from disk."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ugap.cli.arguments import option

if TYPE_CHECKING:
    from ugap.study import StudyResult

DESCRIPTION = """\
Make one HTML page of a study, or of several side by side: the finding, the gap by domain and decoding, the
distributions of human and model tokens, a reader with every token tinted, the table, and the record. The page is one
file and needs no network. Of a study that still runs, it shows the finished part.

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
        InputError: A folder holds no study, has no scores, or is of a newer version.
    """
    from ugap.errors import InputError
    from ugap.report.page import write_page
    from ugap.terminal import one_line

    if not all(arguments.folders) or not arguments.folders:
        raise InputError("name the folder of a study (see ugap report --help)")
    runs = write_page(arguments.folders, arguments.output)
    for folder, study in zip(arguments.folders, runs, strict=True):
        if study.unfinished:
            print(f"{one_line(folder)} has not ended: {len(study.texts)} texts are scored so far")
    print(f"The report is in {one_line(arguments.output)}: open it in a browser")


def report_study(study: "StudyResult", folder: str) -> None:
    """Write the tables, plots and page of a study into its folder, and print the findings and where the page is."""
    # Here, as plots take a second to import: the study shows its progress first.
    from ugap.report import write_report
    from ugap.report.page import write_page

    write_report(study, folder, command=command_line())
    write_page([folder], Path(folder) / "report.html")
    print_page(folder)


def print_page(folder: str) -> None:
    """Print where the page of a study is."""
    from ugap.terminal import one_line

    page = str(Path(folder) / "report.html")
    print(f"To look at it, and to read the texts token by token, open {one_line(page)} in a browser")


def command_line() -> str:
    """The command that runs, as a shell would take it."""
    return shlex.join(["ugap", *sys.argv[1:]])
