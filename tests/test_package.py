"""The package as a whole: who may import whom, what an import costs, and what is in the wheel."""

import ast
import json
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
from ugap.errors import EXTRAS
from ugap.models import load_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ugap"

# From the bottom up; packages of one tuple may import each other. A package holds the modules of its folders but those
# that are named themselves.
PACKAGES = [
    ("environment", "errors", "files", "lazy", "progress", "terminal", "unicode"),
    ("data", "models"),
    ("statistics",),
    ("scoring.head",),
    ("scoring",),
    ("profile",),
    ("sampling.portable",),
    ("sampling",),
    ("sampling.engines",),
    ("study",),
    ("study.analysis", "study.gap", "study.probes"),
    ("study.compare", "study.multi"),
    ("report",),
    ("report.page",),
    ("training.evaluation",),
    ("training",),
    ("cli",),
]
LEVELS = {package: level for level, packages in enumerate(PACKAGES) for package in packages}
PROGRAMS = ("eval", "train")
# Who may import what an extra installs; everything else works without it.
USERS = {
    "datasets": ("ugap.training", "ugap.cli.training", "ugap.data.readers", "ugap.scoring.dataset", "train"),
    "gguf": ("ugap.models.gguf_header",),
    "jinja2": ("ugap.report.page",),
    "llama_cpp": ("ugap.sampling.engines",),
    "matplotlib": ("ugap.report", "ugap.training.evaluation.wandb_log"),
    "peft": (
        *("ugap.training", "ugap.cli.reward", "ugap.cli.training", "ugap.models.adapter", "train"),
        *("ugap.scoring.scorer", "ugap.scoring.shared", "ugap.scoring.head.lm_head"),
    ),
    "plotly": ("ugap.report.page",),
    "sacrebleu": ("ugap.statistics.diversity",),
    "triton": ("ugap.scoring.head",),
    "trl": ("ugap.training", "train"),
    "vllm": ("ugap.sampling.engines", "ugap.study.vllm_engine", "ugap.training.vllm_rollouts"),
    "wandb": ("ugap.training.evaluation",),
}
# The extras of engines and kernels need not be installed: module and distribution.
OPTIONAL = {
    "llama_cpp": "llama-cpp-python",
    "sacrebleu": "sacrebleu",
    "triton": "triton",
    "vllm": "vllm",
}


def imports(source: str, module: str) -> Iterator[str]:
    """Full names of all modules that `source` imports, at its top or inside functions; `module` is its own name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            # `from ugap import models` names a package only in its last part.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def level(name: str) -> int | None:
    """The level of the innermost package that holds a module or a name of ours."""
    parts = name.split(".")[1:]
    outwards = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((LEVELS[package] for package in outwards if package in LEVELS), None)


def violations(source: str, module: str) -> list[str]:
    """What `module` of the package imports from a package above its own, or from the programs."""
    own = level(module)
    assert own is not None
    wrong = []
    for name in imports(source, module):
        top = name.split(".")[0]
        other = level(name) if top == "ugap" else None
        if top in PROGRAMS or (other is not None and other > own):
            wrong.append(f"{module} imports {name}")
    return wrong


def distribution(requirement: str) -> str:
    """The name in a line of dependencies."""
    return re.split(r"[^\w-]", requirement)[0]


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


class TestPackages:
    def test_every_module_has_a_level(self):
        assert [name for name in modules() if level(name) is None] == []

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

    @pytest.mark.parametrize(
        ("source", "module", "caught"),
        [
            ("from ugap.sampling.engines import vllm", "ugap.sampling.generation", True),
            ("from ugap.sampling import engines", "ugap.sampling.generation", True),
            ("from ugap.study.compare.run import compare", "ugap.study.gap.run", True),
            ("from ugap.sampling import generate", "ugap.sampling.engines.vllm", False),
            ("from ugap.study.gap.table import Cell", "ugap.study.compare.run", False),
        ],
    )
    def test_the_walk_sees_a_package_in_a_package(self, source, module, caught):
        assert bool(violations(source, module)) is caught

    def test_exports_copy_modules_that_need_nothing_else_of_ours(self):
        free = {"numpy", "torch", "transformers", *sys.stdlib_module_names}
        for module, path in modules().items():
            if module.startswith("ugap.sampling.portable."):
                for name in imports(path.read_text(encoding="utf-8"), module):
                    allowed = name.startswith("ugap.sampling.portable.") or name.split(".")[0] in free
                    assert allowed, f"{module} imports {name}"

    def test_an_extra_is_imported_where_it_belongs(self):
        programs = {f"{kind}.{path.stem}": path for kind in PROGRAMS for path in (ROOT / kind).glob("*.py")}
        for module, path in {**modules(), **programs}.items():
            for name in imports(path.read_text(encoding="utf-8"), module):
                users = USERS.get(name.split(".")[0])
                belongs = users is None or any(f"{module}.".startswith(f"{user}.") for user in users)
                assert belongs, f"{module} imports {name}"

    def test_the_extras_are_those_that_errors_name(self):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        for extra, names in EXTRAS.items():
            assert set(names) <= {distribution(line) for line in extras[extra]}
            # vLLM asks for releases of its own of torch and transformers.
            assert extra in re.findall(r"[\w-]+", extras["all"][0]) or extra == "vllm"
        assert set().union(*EXTRAS.values()) | OPTIONAL.keys() == USERS.keys()
        assert "ugap[all]" in extras["dev"]

    def test_every_import_is_a_declared_dependency(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        core = {distribution(line) for line in project["dependencies"]}
        extra = {distribution(line) for lines in project["optional-dependencies"].values() for line in lines}
        assert not core & (USERS.keys() | set(OPTIONAL.values()))
        owners = {**packages_distributions(), **{module: [owner] for module, owner in OPTIONAL.items()}}
        for module, path in modules().items():
            for name in imports(path.read_text(encoding="utf-8"), module):
                top = name.split(".")[0]
                if top in sys.stdlib_module_names or top == "ugap":
                    continue
                assert top in owners, f"{module} imports {top}, which is not installed"
                declared = extra if top in USERS else core
                assert {owner.lower().replace("_", "-") for owner in owners[top]} & declared, f"{module} imports {top}"


# torch itself needs jinja2. Python takes a module that is None for one that is not installed.
WITHOUT_EXTRAS = f"""
import json, sys
sys.modules.update(dict.fromkeys({sorted(set().union(*EXTRAS.values()) - {"jinja2"})}))
from ugap.cli.main import main
print("statuses", [main(words) for words in json.loads(sys.argv[1])])
"""


@pytest.mark.slow
class TestWithoutExtras:
    """The commands where none of the extras is installed; those of a test share a process."""

    @pytest.fixture
    def run(self, tmp_path):
        def run(*commands: list[str]) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps(commands)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

        return run

    def test_texts_are_scored_and_prompts_continued(
        self, run, tiny_folder, write_rows, text_rows, make_profile, tmp_path
    ):
        make_profile(load_model(str(tiny_folder))[0]).save(tmp_path / "tiny.json")
        model = ["--model", str(tiny_folder)]
        done = run(
            ["score", *model, "--input", write_rows(text_rows), "--output", "scores.parquet"],
            ["generate", *model, "--profile", "tiny.json", "--prompt", "the cat", "--max_new_tokens", "4"],
        )
        assert done.stdout.splitlines()[-1] == "statuses [0, 0]", done.stderr
        assert (tmp_path / "scores.parquet").is_file()
        assert "nats per token" in done.stdout

    def test_a_missing_extra_is_one_line(self, run, tmp_path):
        (tmp_path / "x.gguf").write_bytes(b"GGUF")
        matplotlib = 'matplotlib is not installed: pip install "ugap[report]"'
        datasets = 'datasets is not installed: pip install "ugap[train]"'
        lines = [
            (["measure", "--model", "tiny", "--output", "out"], matplotlib),
            (["demo", "--output", "out"], matplotlib),
            (["report", "out"], 'plotly is not installed: pip install "ugap[report]"'),
            (["train", "sft"], datasets),
            (
                ["score", "--model", "x.gguf", "--input", "demo", "--output", "out"],
                'gguf is not installed: pip install "ugap[gguf]"',
            ),
            (["score", "--model", "tiny", "--input", "org/texts", "--output", "out"], datasets),
        ]
        done = run(*(words for words, _ in lines))
        assert done.stdout == f"statuses {[2] * len(lines)}\n"
        errors = [line for line in done.stderr.splitlines() if line.startswith("ugap: ")]
        assert errors == [f"ugap: error: {line}" for _, line in lines]
        assert "Traceback" not in done.stderr


class TestImport:
    def test_the_names_of_the_package(self):
        assert set(ugap.__all__) <= set(dir(ugap))
        with pytest.raises(AttributeError, match="no attribute 'Scorrer'"):
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
    def test_help_imports_nothing_heavy(self, code):
        heavy = ["numpy", "rich", "torch", "transformers"]
        printed = python(f"{code}\nimport sys\nprint([one for one in {heavy} if one in sys.modules])")
        assert printed.splitlines()[-1] == "[]"

    @pytest.mark.parametrize(
        ("names", "heavy"),
        [
            (["sampling.HumanEntropyLogitsProcessor"], ["scipy", "accelerate", "datasets", "pandas", "peft", "rich"]),
            # Transformers loads much of itself for them, which takes ten seconds on a busy machine.
            pytest.param(
                ["sampling.generate", "scoring.Scorer"], ["datasets", "pandas", "peft", "trl"], marks=pytest.mark.slow
            ),
            (["report.findings"], ["matplotlib", "plotly"]),
            (["cli.arguments"], ["torch", "numpy", "transformers", "trl"]),
            (["study.named"], ["torch", "numpy", "accelerate"]),
        ],
        ids=lambda names: names[0],
    )
    def test_names_load_no_more_than_they_need(self, names, heavy):
        imported = [name.partition(".") for name in names]
        code = "".join(f"from ugap.{package} import {name}\n" for package, _, name in imported)
        code += f"import sys\nprint([one for one in {heavy} if one in sys.modules])"
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
    binaries = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(binaries / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    # Byte-compiling all of torch takes longer than compiling what the tests import.
    subprocess.run([*pip, "--no-compile", "-c", str(ROOT / "constraints.txt"), f"{wheel}[all]"], check=True)
    return binaries


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
            " ".join(
                sorted(
                    path.name
                    for path in (ROOT / folder).rglob("*")
                    if path.suffix in (".py", ".yaml") and path.parent.name != "benchmarks"  # of a checkout alone
                )
            )
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
