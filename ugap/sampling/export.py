"""The sampler as a folder that `model.generate(custom_generate=...)` loads, from disk or from the Hub, without `ugap`.

transformers runs `custom_generate/generate.py` of such a folder. It follows relative imports between Python files and
nothing else, so the sampler's modules are copied unchanged and the parameters of the profile become a Python module.
"""

import pprint
import re
import string
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ugap.errors import InputError
from ugap.files import replacing
from ugap.profile import HumanProfile
from ugap.profile.positions import REFERENCE, band
from ugap.profile.profile import AUTO
from ugap.sampling.params import TAIL, human_params
from ugap.terminal import one_line

# Module of `portable` by its name in the folder. They import each other relatively, and nothing else of `ugap`.
MODULES = {
    "drawing.py": "drawing.py",
    "temperature.py": "temperature.py",
    "human.py": "human.py",
    "special.py": "special.py",
    "params_processor.py": "params_processor.py",
    "generate.py": "hub_generate.py",
}
_PARAMS = "hub_params.py"


def export_custom_generate(
    folder: str | Path,
    profile: HumanProfile | str | Path,
    *,
    base_model: str | None = None,
    tail: float | None = TAIL,
) -> Path:
    """Write a self-contained folder for `model.generate(custom_generate=folder, trust_remote_code=True, ...)`.

    The Hub takes the folder as a repository. It has a `README.md` with a model card, and `custom_generate/` with the
    sampler. There are parameters of every kind and domain of the profile, and of `auto`, the creative kinds. Each file
    is written whole or not at all, and `generate.py` last.

    Args:
        folder (`str` or `Path`): Where to write: a new or empty folder, or one of an earlier export. Files whose names
            start with a dot do not count.
        profile (`HumanProfile`, `str` or `Path`): The profile, its file, or the name of a shipped one.
        base_model (`str`, *optional*): Hub id of the model that the profile was fitted with, for the model card.
        tail (`float`, *optional*, defaults to `0.999`): Where the human tail is cut; `None` cuts nothing.

    Returns:
        `Path`: The folder.

    Raises:
        InputError: If the folder holds something else or cannot be written, or the base model is no Hub id. Also if
            the profile cannot be read, or lacks the tail or the mean surprisal of a kind.

    Example:
        ```python
        export_custom_generate("ugap-creative", "gemma-3-270m", base_model="google/gemma-3-270m")
        model.generate(**inputs, custom_generate="ugap-creative", trust_remote_code=True, mode="creative")
        ```
    """
    folder = Path(folder)
    if base_model is not None:
        try:
            validate_repo_id(base_model)
        except HFValidationError as error:
            raise InputError(f"base_model {base_model!r}: no Hub id: {str(error).splitlines()[0]}") from error
    loaded = profile if isinstance(profile, HumanProfile) else HumanProfile.load(profile)
    params = {kind: human_params(loaded, kind, tail) for kind in sorted({*loaded.kinds, *loaded.domains, AUTO})}
    if loaded.readings:
        for kind, own in params.items():
            to_reader = human_params(loaded.read_by(), kind, tail)
            own["reader"] = {name: to_reader[name] for name in ("g", "gain", "mean_surprisal")}
    code = folder / "custom_generate"
    sources = resources.files("ugap.sampling.portable")
    files = {
        folder / "README.md": _readme(loaded, params, base_model, tail).encode(),
        code / _PARAMS: _params_module(loaded, params).encode(),
        **{code / name: (sources / source).read_bytes() for name, source in MODULES.items()},
    }
    try:
        if folder.exists() and not _may_be_written(folder):
            raise InputError(f"{folder}: is there already and was not made by this export: choose another folder")
        # `generate.py` is the last of them: a folder without it cannot be used half written.
        for path, content in files.items():
            with replacing(path) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder


def _may_be_written(folder: Path) -> bool:
    # A fresh clone of a Hub repository holds files such as .gitattributes.
    empty = folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())
    return empty or (folder / "custom_generate" / _PARAMS).is_file()


def _params_module(profile: HumanProfile, params: dict[str, dict[str, Any]]) -> str:
    literal = pprint.pformat(params, width=118, compact=True, sort_dicts=False)
    return (
        '"""Parameters of human texts by kind; in nats, except for the ranks and the CDF.\n\n'
        "`h` and `g`: knots of the curve of human mean surprisal over the model's entropy. `entropy_quantiles` and\n"
        "`cdf`: quantiles of the entropy in human text. `edges` and `ranks`: inner edges of bins of entropy, and\n"
        "the last human rank in each. By position, in bands that start at `bands`: `entropy_scale` and `gain`,\n"
        "which multiply quantiles and curve, and the `mean_surprisal` of the human texts, per token. `reader` has\n"
        "what `creative` takes instead: at that level the text is human to a stronger reader.\n"
        '"""\n\n'
        "from typing import Any\n\n"
        f"SCORER = {(profile.scorer_name, profile.weight_hash)}  # the model, and the fingerprint of its weights\n"
        f"PARAMS: dict[str, dict[str, Any]] = {literal}\n"
    )


def _readme(
    profile: HumanProfile, params: dict[str, dict[str, Any]], base_model: str | None, tail: float | None
) -> str:
    front: dict[str, Any] = {"library_name": "transformers", "license": "apache-2.0", "tags": ["custom_generate"]}
    if base_model is not None:
        front["base_model"] = base_model
    rows = []
    named = {kind: values for kind, values in params.items() if kind != AUTO}
    for kind, values in named.items():
        human = profile.kind(kind)
        level = values["mean_surprisal"][band(REFERENCE)]
        rows.append(f"| {_code(kind)} | {human.n_texts:,} | {human.n_tokens:,} | {level:.3f} |")
    model = base_model or profile.scorer_name
    template = (resources.files("ugap.sampling.portable") / "hub_readme.md").read_text(encoding="utf-8")
    text = string.Template(template).substitute(
        model=_code(model),
        model_literal=_literal(model),
        name=_code(profile.scorer_name),
        hash=_code(profile.weight_hash),
        source=_prose(profile.source or "not recorded"),
        cut="Nothing is cut: every token may be drawn."
        if tail is None
        else f"Tokens beyond the rank that holds {100 * tail:g}% of people's tokens there are never drawn.",
        rows="\n".join(rows),
        kind_literal=_literal("creative" if "creative" in params else next(iter(profile.kinds))),
        kinds=", ".join(_code(_literal(kind)) for kind in named),
    )
    return "\n".join(["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "", text])


def _literal(name: str) -> str:
    """A name as a literal of Python, on one line."""
    return f'"{name}"' if name.isprintable() and not set(name) & {'"', "\\"} else repr(name)


def _code(name: str) -> str:
    """A name as a Markdown code span, also in a table cell: on one line, with no character of it read as markup."""
    shown = one_line(name).replace("|", "\\|")
    # A code span may hold backticks if its fence is longer than any run of them.
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    padding = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def _prose(words: str) -> str:
    """Text of a person in Markdown, on one line, with no character of it read as markup."""
    return re.sub(r"[\\`*_\[\]<>|~&$]", r"\\\g<0>", one_line(words))
