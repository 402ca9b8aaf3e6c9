"""What the tests of the training programs share: short runs on a tiny model, and what they leave behind."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from ugap.cli.main import main
from ugap.profile import HumanProfile
from ugap.scoring import Scorer

# A run of seconds; whatever comes behind wins.
SHORT = (
    *(
        "--use_cpu",
        "yes",
        "--max_steps",
        "4",
        "--save_steps",
        "2",
        "--eval_every",
        "2",
        "--per_device_train_batch_size",
        "4",
    ),
    *("--prefix_tokens", "8", "--eval_tokens", "16", "--eval_limit", "2", "--eval_facts", "6"),
    *("--learning_rate", "1e-2", "--logging_steps", "1", "--disable_tqdm", "yes"),
)
OF = {
    "sft": ("--piece_tokens", "32", "--constraint_limit", "0.01", "--constraint_warmup", "1"),
    "grpo": (
        "--num_generations",
        "2",
        "--max_completion_length",
        "12",
        "--constraint_margin",
        "0.02",
        "--per_text",
        "2",
    ),
    "dpo": ("--prompts", "8", "--samples_per_prompt", "3", "--sample_tokens", "12", "--min_margin", "0.01"),
}


@pytest.fixture(scope="session")
def texts_file(tmp_path_factory, text_rows) -> str:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in text_rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def profile_file(tmp_path_factory, tiny_folder) -> str:
    """A human profile of the tiny model, of forty texts."""
    rng = random.Random(0)
    words = "once upon a time there was tailor who had three sons and the youngest went into the forest old man said"
    texts = [" ".join(rng.choices(words.split(), k=40)) for _ in range(40)]
    scores = Scorer.from_pretrained(str(tiny_folder), device="cpu").score(texts, ["Once upon"] * 40, pmi=True)
    path = tmp_path_factory.mktemp("profile") / "tiny.json"
    HumanProfile.fit({"creative": scores, "functional": scores[:30]}, resamples=2).save(path)
    return str(path)


@pytest.fixture(scope="session")
def like_file(tmp_path_factory, text_rows) -> str:
    """Twenty texts to write like."""
    path = tmp_path_factory.mktemp("like") / "mine.txt"
    texts = [f"{i} {text_rows[i % len(text_rows)]['text']}" for i in range(20)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def words(tiny_folder, texts_file, profile_file) -> Callable[..., list[str]]:
    """`words(program, folder, *more, data=None)`: the command line of a short run."""

    def make(program: str, folder: Path, *more: str, data: str | None = None) -> list[str]:
        own = OF[program] if program == "sft" else (*OF[program], "--profile", profile_file)
        texts = ("--data", data or texts_file, "--functional", data or texts_file)
        return ["train", program, "--model", str(tiny_folder), *texts, "--output_dir", str(folder), *SHORT, *own, *more]

    return make


@pytest.fixture(scope="session")
def train(words) -> Callable[..., Path]:
    """`train(program, folder, *more)`: a short run; its folder."""

    def run(program: str, folder: Path, *more: str) -> Path:
        assert main(words(program, folder, *more)) == 0
        return folder

    return run


@pytest.fixture(scope="session")
def evaluations() -> Callable[[Path], list[dict[str, float]]]:
    """`evaluations(folder)`: what the run has measured."""
    return lambda folder: [json.loads(line) for line in (folder / "ugap_gap.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, Tensor]]:
    """`weights(folder)`: those of the adapter that was saved."""
    return lambda folder: load_file(folder / "adapter_model.safetensors")


@pytest.fixture
def interrupted() -> Callable[..., Path]:
    """`interrupted(finished, folder)`: what a run would have left if it had been killed behind its second step."""

    def make(finished: Path, folder: Path) -> Path:
        gone = ("checkpoint-4", "adapter_model.safetensors", "README.md", "merged")
        shutil.copytree(finished, folder, ignore=lambda _, names: [name for name in names if name in gone])
        # The checkpoint is whole: the names above are those of the folder itself.
        shutil.copytree(finished / "checkpoint-2", folder / "checkpoint-2", dirs_exist_ok=True)
        return folder

    return make
