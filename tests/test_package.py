"""The package as a whole: who may import whom, what an import costs, and what is in the wheel."""

import ast
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import ugap
from ugap.cli.main import COMMANDS
from ugap.cli.programs import configs_folder, find_config, programs_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ugap"

# From the bottom up; rooms of one tuple may import each other.
ROOMS = [
    ("errors", "files", "progress", "terminal", "unicode"),
    ("data", "models"),
    ("statistics",),
    ("scoring",),
    ("profile",),
    ("sampling",),
    ("study",),
    ("report",),
    ("training",),
    ("cli",),
]
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
PROGRAMS = ("eval", "train")
# Module and distribution that an extra installs; it need not be there.
OPTIONAL = {
    "diversity": ("sacrebleu", "sacrebleu"),
    "llama-cpp": ("llama_cpp", "llama-cpp-python"),
    "triton": ("triton", "triton"),
    "vllm": ("vllm", "vllm"),
}


def imports(source: str, module: str) -> Iterator[str]:
    """Full names of all modules that `source` imports, at its top or inside functions; `module` is its own name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            # `from ugap import models` names a room only in its last part.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, module: str) -> list[str]:
    """What `module` of the package imports from a room above its own, or from the programs."""
    own = LEVELS[module.split(".")[1]]
    wrong = []
    for name in imports(source, module):
        parts = name.split(".")
        above = parts[0] == "ugap" and len(parts) > 1 and LEVELS.get(parts[1], -1) > own
        if parts[0] in PROGRAMS or above:
            wrong.append(f"{module} imports {name}")
    return wrong


def modules() -> dict[str, Path]:
    """Every module of the package but the package itself, by its full name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "__init__.py":
            found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return found


def python(code: str, **environment: str) -> str:
    """Run `code` in a fresh interpreter that sees the checkout, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestRooms:
    def test_every_module_stands_in_a_room(self):
        assert {name.split(".")[1] for name in modules()} <= LEVELS.keys()

    @pytest.mark.parametrize("module", modules())
    def test_nothing_imports_from_above(self, module):
        assert violations(modules()[module].read_text(encoding="utf-8"), module) == []

    @pytest.mark.parametrize(
        ("source", "caught"),
        [
            ("import ugap.report", True),
            ("from ugap.report import tables", True),
            ("from ugap import report", True),
            ("from ..report import tables", True),
            ("def late():\n    from ugap.cli.main import main", True),
            ("import eval.bench", True),
            ("from train import grpo", True),
            ("from ugap.scoring import Scorer", False),
            ("from . import quantiles", False),
            ("import numpy", False),
        ],
    )
    def test_the_walk_sees_each_kind_of_import(self, source, caught):
        assert bool(violations(source, "ugap.profile.profile")) is caught

    def test_every_import_is_a_declared_dependency(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = [line for extra in OPTIONAL for line in project["optional-dependencies"][extra]]
        declared = {re.split(r"[^\w-]", line)[0] for line in [*project["dependencies"], *extras]}
        owners = {**packages_distributions(), **{module: [owner] for module, owner in OPTIONAL.values()}}
        for module, path in modules().items():
            for name in imports(path.read_text(encoding="utf-8"), module):
                top = name.split(".")[0]
                if top in sys.stdlib_module_names or top == "ugap":
                    continue
                assert top in owners, f"{module} imports {top}, which is not installed"
                assert {owner.lower().replace("_", "-") for owner in owners[top]} & declared, f"{module} imports {top}"


class TestImport:
    def test_the_names_of_the_package(self):
        assert set(ugap.__all__) <= set(dir(ugap))
        with pytest.raises(AttributeError, match="No ugap attribute Scorrer"):
            _ = vars(ugap)["__getattr__"]("Scorrer")

    def test_the_names_load_at_first_use(self):
        assert [getattr(ugap, name).__name__ for name in ugap.__all__] == ugap.__all__

    @pytest.mark.parametrize(
        "code",
        [
            "import ugap; dir(ugap)",
            "from ugap.cli.main import main; assert main(['--help']) == 0",
            *(f"from ugap.cli.main import main; assert main(['{name}', '--help']) == 0" for name in COMMANDS),
        ],
    )
    def test_help_needs_no_torch(self, code):
        printed = python(f"{code}\nimport sys\nprint('torch' in sys.modules)")
        assert printed.splitlines()[-1] == "False"

    @pytest.mark.parametrize(
        ("name", "heavy"),
        [
            ("sampling.HumanEntropyLogitsProcessor", ["scipy", "accelerate", "datasets", "pandas", "peft", "rich"]),
            ("sampling.generate", ["datasets", "pandas", "peft", "trl"]),
            ("scoring.Scorer", ["datasets", "pandas", "peft", "trl"]),
            ("study.named", ["torch", "numpy", "accelerate"]),
        ],
    )
    def test_a_name_loads_no_more_than_it_needs(self, name, heavy):
        package, _, name = name.partition(".")
        code = f"from ugap.{package} import {name}\nimport sys\nprint([one for one in {heavy} if one in sys.modules])"
        assert python(code).splitlines()[-1] == "[]"


class TestPrograms:
    def test_beside_the_package_in_a_checkout(self):
        assert programs_folder("eval") == ROOT / "eval"
        assert programs_folder("train") == ROOT / "train"
        assert configs_folder() == ROOT / "configs"

    def test_a_config_is_a_path_or_the_name_of_a_shipped_one(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shipped = next(configs_folder().glob("*.yaml"))
        assert find_config(shipped.name) == shipped
        assert find_config("none.yaml") == Path("none.yaml")
        Path(shipped.name).touch()
        assert find_config(shipped.name) == Path(shipped.name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("ugap-*.whl"))


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    place = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(place / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    return place


@pytest.fixture
def run(scripts, tmp_path):
    """Run a program of the environment, away from the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(scripts / program), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.slow
class TestWheel:
    """The wheel, built from the checkout and installed with all it needs into a fresh environment."""

    def test_it_holds_the_package_the_programs_and_the_configs(self, wheel):
        expected = {
            *(f"ugap/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*") if path.is_file()),
            *(f"ugap/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")),
            *(f"ugap/programs/{kind}/{path.name}" for kind in PROGRAMS for path in (ROOT / kind).glob("*.py")),
        }
        expected = {name for name in expected if "__pycache__" not in name}
        with zipfile.ZipFile(wheel) as archive:
            held = set(archive.namelist())
        for folder in ("configs", "configs/accelerate", *(f"programs/{kind}" for kind in PROGRAMS)):
            assert any(name.startswith(f"ugap/{folder}/") for name in expected)
        assert expected <= held
        assert {name.split("/")[0] for name in held} == {"ugap", f"ugap-{ugap.__version__}.dist-info"}

    def test_help(self, run):
        for words in (["--help"], *([name, "--help"] for name in COMMANDS)):
            done = run("ugap", *words)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("usage: ugap")
            assert done.stderr == ""

    def test_version(self, run):
        assert run("ugap", "--version").stdout == f"ugap {ugap.__version__}\n"

    def test_the_exported_names_import(self, run):
        done = run("python", "-c", "import ugap; print([getattr(ugap, name).__name__ for name in ugap.__all__])")
        assert done.stdout.strip() == str(ugap.__all__), done.stderr

    def test_programs_and_configs_are_found_inside_the_package(self, run):
        code = (
            "from ugap.cli.programs import *\n"
            "for folder in (programs_folder('eval'), programs_folder('train'), configs_folder()):\n"
            "    print(*sorted(path.name for path in folder.rglob('*') if path.suffix in ('.py', '.yaml')))"
        )
        done = run("python", "-c", code)
        names = [
            " ".join(sorted(path.name for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")))
            for folder in ("eval", "train", "configs")
        ]
        assert done.stdout.splitlines() == names, done.stderr

    def test_the_environment_is_consistent(self, run):
        done = run("python", "-m", "pip", "check")
        assert done.returncode == 0, done.stdout


def test_one_place_makes_the_console():
    """What may reach a terminal is decided there."""
    made = [path for folder in ("ugap", "eval", "train") for path in (ROOT / folder).rglob("*.py")]
    others = [path for path in made if re.search(r"(?<![\w.\"])Console\(", path.read_text(encoding="utf-8"))]
    assert not others  # ugap/terminal.py has a class of its own
