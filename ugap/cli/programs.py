"""Where the programs and the configs are: beside the package in a checkout, inside it when installed."""

from pathlib import Path

import ugap

_PACKAGE = Path(ugap.__file__).parent


def programs_folder(kind: str) -> Path:
    """The folder of the programs of one `kind` (`"eval"`, `"train"`)."""
    installed = _PACKAGE / "programs"
    return (installed if installed.is_dir() else _PACKAGE.parent) / kind


def configs_folder() -> Path:
    """The folder of the YAML configs."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str) -> Path:
    """The config file `name`: a path, or else the path of a shipped config below the folder of configs.

    Where there is neither, the path is returned as it was given, for the reader of the file to complain about.
    """
    given, shipped = Path(name).expanduser(), configs_folder() / name
    return shipped if not given.exists() and shipped.is_file() else given
