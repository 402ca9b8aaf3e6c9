"""The study of many models: each by `run_study` in a folder of its own, one in memory at a time, shared by shards.

Design choices:

- A model's folder says how far it is: `gap.json` is there when it is finished, `skipped.json` when it could not be run,
  and parts where it was interrupted. So a killed run can be resumed, and shards need to know nothing of each other.
  A local model whose files changed since (`files.json`) is not finished.
- A model that fails (none has that name, it is no causal language model, it does not fit into memory) is recorded in
  `skipped.json` and the study continues; the next run tries it again. A wrong setting or text ends the study before a
  model is loaded.
- A branch of the Hub moves. The commit that it means is asked for once, before the model is loaded, and kept in the
  folder (`revision.json`); from then on the study holds to it. `lock.yaml` lists them, and holds other studies to them.
- Whoever finds every model settled makes the contrasts: with shards, the one that ends last.
"""

import gc
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import torch
import yaml

from ugap.data import TextRow, content_hash
from ugap.errors import InputError, is_out_of_memory, reading
from ugap.files import locked, refuse_results, replacing, write_json
from ugap.models.hub import is_commit, is_local, resolve_commit
from ugap.study.contrasts import STAGES
from ugap.study.decodings import DECODINGS, Settings
from ugap.study.engine import check_engine
from ugap.study.following import check_kinds, check_texts, like_hash
from ugap.study.gap.run import PARTS, StudySettings, run_locked
from ugap.study.options import Dtype, MultiOptions, values
from ugap.study.pairs import SELF
from ugap.study.store import rows_hash

CHATS = {"raw": ["raw"], "template": ["chat"], "both": ["raw", "chat"]}
DTYPES = get_args(Dtype)

STUDY, FINISHED, SKIPPED = "study.json", "gap.json", "skipped.json"
REVISION, FILES, LOCK = "revision.json", "files.json", "lock.yaml"


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model of the study.

    Args:
        name (`str`): Asset, folder, `.gguf` file or Hub id.
        family (`str`): Models of one family are compared with each other, so it names the size too.
        stage (`str`): `"base"`, `"instruct"` or `"reasoning"`.
        label (`str`, *optional*): What tables and plots call it; by default the name.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of the weights.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id.
        chat (`str`, *optional*, defaults to `"raw"`): `"raw"` continues the bare prefix, `"template"` asks through the
            chat template, `"both"` does each.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run the code that the repository brings along.
    """

    name: str
    family: str
    stage: str
    label: str = ""
    dtype: Dtype = "float32"
    revision: str | None = None
    chat: str = "raw"
    trust_remote_code: bool = False

    @property
    def title(self) -> str:
        """What tables and plots call the model."""
        return self.label or self.name

    @property
    def folder(self) -> str:
        """Name of the model's folder."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.title).strip("-.").lower()


def parse_models(entries: Any) -> list[ModelEntry]:
    """Models from the list of a YAML file.

    Raises:
        InputError: If an entry is incomplete, has an unknown key or a wrong value, or two share a name or folder.

    Example:
        >>> parse_models([{"name": "gemma-3-270m", "family": "gemma-3-270m", "stage": "base"}])[0].title
        'gemma-3-270m'
    """
    if not isinstance(entries, list) or not entries:
        raise InputError("models: a list of models is needed, each with its name, family and stage")
    models = [_parse_model(number, entry) for number, entry in enumerate(entries, start=1)]
    for attribute in ("title", "folder"):
        seen: dict[str, ModelEntry] = {}
        for model in models:
            other = seen.setdefault(getattr(model, attribute), model)
            if other is not model:
                raise InputError(
                    f"models: {model.name} and {other.name} share the {attribute} {getattr(model, attribute)!r}: "
                    "give one of them a label"
                )
    return models


def _parse_model(number: int, entry: Any) -> ModelEntry:
    if not isinstance(entry, Mapping):
        raise InputError(f"models: entry {number} is {entry!r}, not a model as `name: ...`")
    where = f"models: entry {number} ({entry.get('name', 'without a name')})"
    allowed = {one.name: one for one in fields(ModelEntry)}
    for key in entry:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {key!r}; there are {', '.join(allowed)}")
    for key in ("name", "family", "stage"):
        if key not in entry:
            raise InputError(f"{where}: {key} is missing")
    for key, value in entry.items():
        if key == "trust_remote_code":
            if not isinstance(value, bool):
                raise InputError(f"{where}: {key} is {value!r}, not yes or no")
        # YAML reads `revision: 1e5` and `label: on` as a number and a bool.
        elif not (isinstance(value, str) and value.strip()) and not (key == "revision" and value is None):
            raise InputError(f"{where}: {key} is {value!r}, not text: put it in quotes")
    for key, choices in (("stage", STAGES), ("chat", tuple(CHATS)), ("dtype", DTYPES)):
        if key in entry and entry[key] not in choices:
            raise InputError(f"{where}: {key} {entry[key]!r} is none of {', '.join(choices)}")
    model = ModelEntry(**entry)
    if not model.folder:
        raise InputError(f"{where}: the label {model.title!r} has no letter for a folder's name")
    return model


def read_lock(path: str | Path) -> dict[str, str]:
    """Commit hashes by model, from the `lock.yaml` of a study.

    Raises:
        InputError: If the file cannot be read, or holds anything else.
    """
    with reading(f"{path}: cannot be read as a lock"):
        lock = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    if not isinstance(lock, dict):
        raise InputError(f"{path}: not a lock: it must hold a commit for every model, as `name: commit`")
    for name, commit in lock.items():
        if not isinstance(commit, str) or not is_commit(commit):
            raise InputError(f"{path}: {name}: {commit!r} is not a commit hash of 40 digits")
    return lock


@dataclass(frozen=True, kw_only=True)
class MultiSettings(MultiOptions):
    """What a study of many models measures; what is not of one model is as in [`StudySettings`][].

    Args:
        models (`list[ModelEntry]`): The models.
        scorers (`list[str]`, *optional*, defaults to `["self"]`): Who scores.
        decodings (`dict[str, dict]`, *optional*): By default ancestral sampling alone.
        like (`Sequence[str]`, *optional*): Texts that decodings at human uncertainty without a kind write like.
        prefix_tokens (`int`, *optional*, defaults to `64`): Tokens of a prefix.
        prompt_separator (`str`, *optional*): Text between a prompt and its text.
        max_new_tokens (`int`, *optional*, defaults to `128`): Tokens of a continuation.
        limit (`int`, *optional*): Prefixes per domain.
        per_text (`int`, *optional*, defaults to `4`): Prefixes of one source text.
        batch_size (`int`, *optional*, defaults to `16`): Prefixes in a unit of work.
        seed (`int`, *optional*, defaults to `0`): Seed of sampling and bootstrap.
        pmi (`bool`, *optional*, defaults to `False`): Measure PMI and CPMI too.
        skip_bad (`bool`, *optional*, defaults to `False`): Leave out prefixes whose logits are not finite.
        device (`str`, *optional*): Where models run.
        engine (`str`, *optional*, defaults to `"transformers"`): What generates.
        engine_args (`list[str]`, *optional*): Options of vLLM as `KEY=VALUE`.
    """

    models: list[ModelEntry]
    scorers: list[str] = field(default_factory=lambda: [SELF])
    decodings: Mapping[str, Settings] = field(default_factory=lambda: {"ancestral": DECODINGS["ancestral"]})
    like: Sequence[str] = ()

    def of(self, model: ModelEntry, commit: str | None) -> StudySettings:
        """The settings of one model's study; `commit` pins a Hub id."""
        return StudySettings(
            **values(self, MultiOptions),
            dtype=model.dtype,
            trust_remote_code=model.trust_remote_code,
            models=[model.name],
            scorers=self.scorers,
            decodings=self.decodings,
            like=self.like,
            promptings=CHATS[model.chat],
            stages={model.name: model.stage},
            revisions={} if commit is None else {model.name: commit},
        )


@dataclass(frozen=True)
class Outcome:
    """The outcome of a model: `"finished"`, `"skipped"` (and why), or `"open"`: not run yet.

    Args:
        model (`ModelEntry`): The model.
        status (`str`): One of these three.
        reason (`str`): Why it was skipped.
        commit (`str`, *optional*): The commit of a Hub id.
    """

    model: ModelEntry
    status: str
    reason: str = ""
    commit: str | None = None


def model_folder(output: str | Path, model: ModelEntry) -> Path:
    """The folder of one model's study."""
    return Path(output) / "models" / model.folder


def run_multi(
    rows: Sequence[TextRow],
    settings: MultiSettings,
    output: str | Path,
    *,
    data: Sequence[str] = (),
    lock: Mapping[str, str] | None = None,
    shard: tuple[int, int] = (0, 1),
    resume: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Run this shard's models that are not finished, and give the outcomes of all models of the study.

    Args:
        rows (`Sequence[TextRow]`): Human texts.
        settings (`MultiSettings`): What to measure.
        output (`str` or `Path`): Folder of the study.
        data (`Sequence[str]`, *optional*): Names of the data, for the record.
        lock (`Mapping[str, str]`, *optional*): Commits to hold Hub models to, by title.
        shard (`tuple[int, int]`, *optional*, defaults to `(0, 1)`): `(i, n)` runs every n-th model from the i-th on.
        resume (`bool`, *optional*, defaults to `False`): Use the finished parts in the folder.
        progress (`bool`, *optional*, defaults to `False`): Show progress bars.
        say (`Callable[[str], None]`, *optional*): Called with a line about each model.

    Returns:
        `list[Outcome]`: One for every model of the study, of other shards too.

    Raises:
        InputError: If the folder holds another study, settings or texts are bad, or no model of the study can be run.
    """
    refuse_results(output, resume=True)
    output, (index, n_shards) = Path(output), shard
    if not 0 <= index < n_shards:
        raise InputError(f"shard {index}/{n_shards}: the first number goes from 0 to one less than the second")
    check_engine(settings.engine, settings.engine_args, settings.decodings)
    check_kinds(settings.decodings, [model.name for model in settings.models])
    check_texts(settings.like, settings.decodings, [row.text for row in rows])
    # Every n-th: neighbours in a list are often of one size, and shards should take about as long.
    mine = settings.models[index::n_shards]
    folders = [model_folder(output, model) for model in mine]
    for folder in folders:
        refuse_results(folder, resume, PARTS, FINISHED)
    commits = {model.title: _held(output, model, lock or {}) for model in settings.models}
    if not any(_begun(folder) for folder in output.glob("models/*")):
        (output / STUDY).unlink(missing_ok=True)  # nothing to resume: a corrected command may start here
    _same_study(output / STUDY, settings, {"data": list(data), "data_hash": rows_hash(rows)})
    for model, folder in zip(mine, folders, strict=True):
        files = _files([model.name, *settings.scorers])
        if _finished(folder) and _read(folder / FILES).get("files") == files:
            say(f"{model.title}: finished before")
            continue
        with locked(folder):
            reason = _run(rows, settings, model, commits[model.title], folder, data, progress)
            if reason:
                write_json(folder / SKIPPED, {"reason": reason})
                say(f"{model.title}: skipped: {reason}")
            else:
                write_json(folder / FILES, {"files": files})
                (folder / SKIPPED).unlink(missing_ok=True)
                say(f"{model.title}: done")
        _free()
    outcomes = [_outcome(output, model) for model in settings.models]
    # Written again after every run: shards each know the commits of all folders.
    commits_now = {one.model.title: one.commit for one in outcomes if one.commit is not None}
    if commits_now:
        with replacing(output / LOCK) as temporary:
            temporary.write_text(yaml.safe_dump(commits_now), encoding="utf-8")
    skipped = [one for one in outcomes if one.status == "skipped"]
    if len(skipped) == len(outcomes):
        raise InputError(f"no model could be run; the first: {skipped[0].reason}")
    return outcomes


def _run(
    rows: Sequence[TextRow],
    settings: MultiSettings,
    model: ModelEntry,
    commit: str | None,
    folder: Path,
    data: Sequence[str],
    progress: bool,
) -> str:
    """Run one model's study; why it could not be, or nothing. No reference to the model is left behind."""
    try:
        if not is_local(model.name):
            commit = commit or resolve_commit(model.name, model.revision)
            write_json(folder / REVISION, {"name": model.name, "revision": model.revision, "commit": commit})
        run_locked(rows, settings.of(model, commit), folder, data=data, progress=progress)
    except InputError as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            # Any other error is a fault of the program, which must not be hidden in a file.
            raise
        return f"{model.name}: it does not fit into memory"
    return ""


def _files(names: Sequence[str]) -> str:
    """A fingerprint of the files of local models: sizes and times of change, so that no model need be loaded for it.

    Where it differs, the model's study is resumed: the parts that depend on changed weights are redone.
    """
    stamps = []
    for name in names:
        path = Path(name)
        if is_local(name) and path.exists():
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                stamps.append((str(file), file.stat().st_size, file.stat().st_mtime_ns))
    return content_hash(stamps)


def _free() -> None:
    """Give back the memory of the model before the next one is loaded."""
    # A model is in reference cycles (hooks, modules): its memory is not free before a collection.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _held(output: Path, model: ModelEntry, lock: Mapping[str, str]) -> str | None:
    """The commit that a model is held to: that of its folder, of the lock, or of its own revision.

    Raises:
        InputError: If two of them differ.
    """
    kept = _read(model_folder(output, model) / REVISION).get("commit")
    pinned = model.revision if is_commit(model.revision) else None
    named = {"its folder": kept, "the lock": lock.get(model.title), "its revision": pinned}
    commits = {where: commit for where, commit in named.items() if commit is not None}
    if len(set(commits.values())) > 1:
        said = ", ".join(f"{where} says {commit[:12]}" for where, commit in commits.items())
        raise InputError(f"{model.name}: {said}; hold to the commit of the folder, or choose another folder")
    return next(iter(commits.values()), None)


def _same_study(path: Path, settings: MultiSettings, texts: Mapping[str, Any]) -> None:
    """Write the settings down, or see that they are those of the study in the folder; models may be added.

    Raises:
        InputError: If a setting, or a model that was there, differs.
    """
    common = {name: value for name, value in asdict(settings).items() if name != "models"}
    common["like"] = like_hash(settings.like)
    # Through JSON, so that tuples and lists, and int and str keys, compare equal to what was read.
    now = json.loads(json.dumps({**common, **texts, "models": {m.title: asdict(m) for m in settings.models}}))
    old = _read(path)
    for name in {**now, **old} if old else ():
        if name != "models" and now.get(name) != old.get(name):
            raise InputError(f"{path.parent}: the study there has {name} {old.get(name)!r}, not {now.get(name)!r}")
    for title, model in dict(old.get("models") or {}).items():
        if title in now["models"] and now["models"][title] != model:
            raise InputError(f"{path.parent}: the study there has {title} with other settings; choose another folder")
    if now != old:
        write_json(path, {**now, "models": {**dict(old.get("models") or {}), **now["models"]}})


def _outcome(output: Path, model: ModelEntry) -> Outcome:
    folder = model_folder(output, model)
    commit = _read(folder / REVISION).get("commit")
    if _finished(folder):
        return Outcome(model, "finished", commit=commit)
    reason = _read(folder / SKIPPED).get("reason")
    return Outcome(model, "skipped" if reason else "open", str(reason or ""), commit)


def _begun(folder: Path) -> bool:
    """Whether there is something to resume."""
    return (folder / PARTS).exists() or _finished(folder)


def _finished(folder: Path) -> bool:
    """Whether a model's study is whole: its record, which is written last, can be read."""
    # The scores are checked too: a user may have removed the large file.
    return "gaps" in _read(folder / FINISHED) and (folder / "scores.parquet").is_file()


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
