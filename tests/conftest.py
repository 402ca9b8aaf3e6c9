"""What the tests share: a tiny tokenizer and tiny models made here from a config and a seed, and the two real models.

Nothing is built before a test asks for it.
"""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import ugap.models.gguf
import ugap.profile.fitting
from ugap.cli.main import main
from ugap.models import load_model
from ugap.models.fingerprint import weight_hash
from ugap.profile import HumanProfile
from ugap.scoring import Scorer, ScorerId, TokenScores

torch.set_num_threads(1)

CORPUS = """\
Once upon a time there was a tailor who had three sons, and the youngest was called Simpleton.
The youngest went into the forest, and the old man said to the youngest: give me a piece of your cake.
A function returns a value; the value of the expression is the value of the function.
Wenn es regnet, wird das Haus naß. Être ou ne pas être. 東京の夜 🦊🌲
""".splitlines()

ARCHITECTURES = ("llama", "gemma3", "gemma2", "cohere", "granite", "gpt2", "phi")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")


@pytest.fixture(scope="session", autouse=True)
def made_on_the_fly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Profiles and converted GGUF files go into a folder of the tests; profiles rest on few of the embedded texts."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ugap.profile.fitting, "cache_dir", lambda: folder)
        patch.setattr(ugap.models.gguf, "cache_dir", lambda: folder)
        patch.setattr(ugap.profile.fitting, "EMBEDDED_TEXTS", 16)
        yield folder


def _train_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens; `<bos>` (if any), `<eos>` and `<|im_end|>` are special."""
    special = ["<eos>", "<|im_end|>", *(["<bos>"] if bos else [])]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS * 4, trainer)
    marks = {"bos_token": "<bos>"} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", pad_token="<eos>", extra_special_tokens=["<|im_end|>"], **marks
    )


def _tiny_model(architecture: str, vocabulary: int, **changes: Any) -> PreTrainedModel:
    """A random model of hidden size 32 and two layers, wide enough in its weights to be far from uniform."""
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **changes,
    }
    windowed = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    torch.manual_seed(0)
    match architecture:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape))
        case "gemma3":
            model = Gemma3ForCausalLM(Gemma3TextConfig(**{**windowed, **shape}))
        case "gemma2":
            caps = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": None}
            model = Gemma2ForCausalLM(Gemma2Config(**{**windowed, **caps, **shape}))
        case "cohere":
            model = CohereForCausalLM(CohereConfig(**{"logit_scale": 0.25, **shape}))
        case "granite":
            model = GraniteForCausalLM(GraniteConfig(**{"logits_scaling": 4.0, **shape}))
        case "gpt2":
            names = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": shape["max_position_embeddings"]}
            kept = {k: shape[k] for k in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")}
            model = GPT2LMHeadModel(GPT2Config(**names, **kept))
        case "phi":
            model = PhiForCausalLM(PhiConfig(**shape))
            torch.nn.init.normal_(model.lm_head.bias)
        case _:
            raise ValueError(architecture)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tiny byte-level BPE with a BOS token; " youngest" is one token of it."""
    return _train_tokenizer(bos=True)


@pytest.fixture(scope="session")
def tokenizer_without_bos() -> PreTrainedTokenizerFast:
    return _train_tokenizer(bos=False)


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreTrainedModel]:
    """`make_model(architecture, **config)`: a new tiny model, always with the same weights."""

    def make(architecture: str = "llama", **changes: Any) -> PreTrainedModel:
        return _tiny_model(architecture, len(tokenizer), **changes)

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """A Llama of random weights; not to be changed."""
    return make_model("llama")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_model(request: pytest.FixtureRequest, make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """One model after another: plain, sliding windows, soft cap, logit scales, tied weights, biased head."""
    return make_model(request.param)


@pytest.fixture
def tiny_scorer(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Scorer:
    return Scorer(tiny_model, tokenizer, name="tiny")


@pytest.fixture(scope="session")
def gemma() -> Scorer:
    """The real `gemma-3-270m` in float32, for slow tests only."""
    return Scorer.from_pretrained("gemma-3-270m")


@pytest.fixture(scope="session")
def smollm2() -> Scorer:
    """The real `smollm2-135m-instruct` in float32, for slow tests only."""
    return Scorer.from_pretrained("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def statistics_of() -> Callable[[torch.Tensor, Sequence[int]], np.ndarray]:
    """`statistics_of(logits (N, V), targets (N,))`: surprisal, entropy, varentropy and rank `(4, N)` in float64."""

    def compute(logits: torch.Tensor, targets: Sequence[int]) -> np.ndarray:
        logits = logits.double()
        index = torch.as_tensor(targets).unsqueeze(1)
        surprisals = -torch.log_softmax(logits, -1)
        p = surprisals.neg().exp()
        terms = torch.where(p > 0, surprisals, 0)
        entropy = (p * terms).sum(-1)
        varentropy = (p * (terms - entropy.unsqueeze(1)) ** 2).sum(-1)
        own = logits.gather(1, index)
        earlier = torch.arange(logits.shape[1]) < index
        rank = 1 + ((logits > own) | ((logits == own) & earlier)).sum(-1)
        return torch.stack([surprisals.gather(1, index).squeeze(1), entropy, varentropy, rank.double()]).numpy()

    return compute


@pytest.fixture(scope="session")
def reference(
    statistics_of: Callable[[torch.Tensor, Sequence[int]], np.ndarray],
) -> Callable[[PreTrainedModel, Sequence[int], Sequence[int]], np.ndarray]:
    """`reference(model, context, token_ids)`: the four statistics `(4, T)` from a float64 copy's own logits."""

    @torch.no_grad()
    def compute(model: PreTrainedModel, context: Sequence[int], token_ids: Sequence[int]) -> np.ndarray:
        ids = [*context, *token_ids]
        logits = copy.deepcopy(model).double()(input_ids=torch.tensor([ids])).logits[0]
        first = max(len(context), 1)
        out = np.full((4, len(ids) - len(context)), np.nan)
        out[:, first - len(context) :] = statistics_of(logits[first - 1 : -1], ids[first:])
        return out

    return compute


# How surprising the made-up texts of a domain are, as a share of what a profile's maker asks for.
DOMAIN_LEVELS = {"creative": 1.0, "functional": 0.8}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_end|>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|>{% endif %}"
)


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """`save_model(name, model, chat=False)`: the folder of a saved model with the tiny tokenizer."""
    root = tmp_path_factory.mktemp("models")

    def save(name: str, model: PreTrainedModel, chat: bool = False) -> Path:
        folder = root / name
        model.save_pretrained(folder)
        own = copy.deepcopy(tokenizer)
        own.chat_template = CHAT_TEMPLATE if chat else None
        own.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_folder(save_model: Callable[..., Path], make_model: Callable[..., PreTrainedModel]) -> Path:
    """A folder with the tiny Llama: a base model, which has no chat template and hardly ever ends a text."""
    return save_model("base", make_model("llama", eos_token_id=0))


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    """The folder of an adapter with weights that change the tiny Llama."""
    from peft import LoraConfig, get_peft_model  # takes seconds, which most tests do without

    torch.manual_seed(0)
    model = get_peft_model(load_model(str(tiny_folder))[0], LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "adapter"
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def chat_folder(save_model: Callable[..., Path], make_model: Callable[..., PreTrainedModel]) -> Path:
    """Another tiny Llama with a chat template, less certain than `tiny_folder`."""
    return save_model("chat", make_model("llama", eos_token_id=0, initializer_range=0.2), chat=True)


@pytest.fixture(scope="session")
def text_rows() -> list[dict[str, str]]:
    """Six made-up texts in each of two domains, of several sentences and some hundred tiny tokens."""
    rng = random.Random(0)
    words = [
        "once",
        "upon",
        "a",
        "time",
        "there",
        "was",
        "tailor",
        "who",
        "had",
        "three",
        "sons",
        "and",
        "the",
        "youngest",
        "went",
        "into",
        "forest",
        "old",
        "man",
        "said",
    ]
    rows = []
    for domain in ("creative", "functional"):
        for i in range(6):
            sentences = [" ".join(rng.choices(words, k=rng.randint(6, 12))).capitalize() + "." for _ in range(9)]
            rows.append({"id": f"{domain[0]}{i}", "domain": domain, "text": " ".join(sentences)})
    return rows


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """`write_rows(rows, name="texts.jsonl")`: a file of JSON lines in the test's folder."""

    def write(rows: Sequence[Mapping[str, Any]], name: str = "texts.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def make_profile(tokenizer: PreTrainedTokenizerFast) -> Callable[..., HumanProfile]:
    """`make_profile(model, level=1.0, n_texts=12)`: a human profile of a tiny model, from made-up scores of texts.

    "creative" text is `level` times as surprising as the model's entropy says, "functional" text a little less; ranks
    reach a quarter of the vocabulary where the entropy is low and all of it where it is high.
    """

    def make(model: PreTrainedModel, level: float = 1.0, n_texts: int = 12) -> HumanProfile:
        scorer = ScorerId("tiny", weight_hash(model))
        rng = np.random.default_rng(0)

        def text(level: float, n: int = 250) -> TokenScores:
            entropy = rng.uniform(0.0, np.log(len(tokenizer)), n)
            surprisal = level * entropy * rng.gamma(2.0, 0.5, n)
            rank = 1 + rng.integers(0, len(tokenizer) // 4 + (entropy * len(tokenizer) / 8).astype(int))
            columns = (surprisal, entropy, np.ones(n), np.minimum(rank, len(tokenizer)))
            s, h, v, r = (column.astype(np.float32) for column in columns)
            offsets = np.stack([np.arange(n), np.arange(n) + 1], 1).astype(np.int32)
            return TokenScores(
                text="a" * n,
                token_ids=np.zeros(n, np.int32),
                offsets=offsets,
                surprisal=s,
                entropy=h,
                varentropy=v,
                rank=r,
                marginal_surprisal=None,
                scorer=scorer,
                straddles=False,
            )

        scores = {name: [text(share * level) for _ in range(n_texts)] for name, share in DOMAIN_LEVELS.items()}
        return HumanProfile.fit(scores, source="made up", resamples=2)

    return make


@pytest.fixture
def refused(capsys, caplog):
    """`refused(*words)`: the only line on stderr of a command that ends with status 2."""

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(words) == 2
        # `ugap generate` says what it loads before it can say what is wrong with it.
        line = re.sub(r"\Aloading .*\n", "", capsys.readouterr().err)
        assert line.startswith("ugap: error: ")
        assert line.count("\n") == 1
        assert line.endswith("\n")
        assert "Traceback" not in line
        assert not caplog.records  # outside of pytest, a warning would be a line of its own
        return line

    return run
