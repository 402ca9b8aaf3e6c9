"""What is wrong with a training is said before it starts: one line, exit status 2, and nothing is left behind."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from ugap.cli.main import main
from ugap.files import locked


@pytest.fixture
def said(words, refused, tmp_path):
    """`said(program, *more)`: what is wrong with a run, which leaves no file."""

    def run(program, *more, folder=None, data=None):
        folder = tmp_path / "run" if folder is None else folder
        before = sorted(folder.rglob("*"))
        line = refused(*words(program, folder, *more, data=data))
        assert sorted(folder.rglob("*")) == before
        return line.removeprefix("ugap: error: ").removesuffix("\n")

    return run


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    return train("sft", folder, "--max_steps", "1", "--eval_every", "0", "--save_steps", "1")


@pytest.fixture
def creative_only(write_rows, text_rows, tmp_path):
    """Options of a data set without functional rows."""
    rows = [row for row in text_rows if row["domain"] == "creative"]
    config = tmp_path / "creative.yaml"
    config.write_text(f"data: {write_rows(rows, 'creative.jsonl')}\nfunctional: []\nfacts: no\n")
    return str(config)


class TestData:
    def test_no_domain(self, said, write_rows):
        path = write_rows([{"id": "a", "text": "Once upon a time."}])
        assert said("sft", data=path) == f"{path}, row 1: no column 'domain'; the columns are 'id', 'text'"

    def test_another_domain(self, said, write_rows):
        path = write_rows([{"id": "a", "domain": "news", "text": "Rain in London."}])
        assert said("grpo", data=path) == f"{path}, row 1: domain 'news' is neither 'creative' nor 'functional'"

    def test_an_id_in_two_files(self, said, write_rows, texts_file):
        path = write_rows([{"id": "c0", "domain": "creative", "text": "Once upon a time."}], "more.jsonl")
        line = said("dpo", "--data", path)
        assert line == f"{path}, row 1: id 'c0' is that of {texts_file}, row 1: each text needs its own"

    def test_no_functional_texts_where_they_are_named(self, said, write_rows):
        path = write_rows([{"id": "a", "domain": "creative", "text": "Once upon a time."}])
        assert said("sft", "--functional", path) == f"{path}: has no texts of the domain 'functional'"

    @pytest.mark.parametrize("program", ["sft", "grpo"])
    def test_no_functional_rows_for_a_constraint(self, program, words, refused, creative_only, tmp_path):
        command = words(program, tmp_path / "run")
        for name in ("--data", "--functional"):
            place = command.index(name)
            del command[place : place + 2]
        line = refused(*command, "--config", creative_only)
        assert "the training set has no functional rows, and the constraint is held on them" in line
        assert not (tmp_path / "run").exists()

    def test_own_samples_under_a_constraint(self, said):
        assert said("sft", "--self_samples", "4").startswith("self_samples has no functional rows")

    def test_held_out_texts_that_are_trained_on(self, said, texts_file):
        line = said("sft", "--eval_data", texts_file)
        assert line == f"{texts_file}, row 1: held-out text 'c0' is trained on as well"

    def test_texts_that_are_too_short(self, said):
        line = said("sft", "--eval_tokens", "5000")
        assert line == "domain 'creative': no text has the 5008 tokens of a prefix and its continuation"

    def test_nothing_would_be_left_to_train_on(self, said, write_rows, text_rows):
        line = said("sft", data=write_rows([text_rows[0]]))
        assert line == "domain 'creative': with one text there is none to hold out; name held-out texts"


class TestPolicy:
    def test_an_adapter_of_another_model(self, said, tiny_folder, tokenizer, tmp_path):
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        adapter = tmp_path / "adapter"
        get_peft_model(LlamaForCausalLM(config), LoraConfig(target_modules="all-linear")).save_pretrained(adapter)
        line = said("sft", "--adapter", str(adapter))
        assert line.startswith(f"{adapter}: the adapter does not fit {tiny_folder}: ")

    def test_no_adapter(self, said, tmp_path):
        assert str(tmp_path / "none") in said("grpo", "--adapter", str(tmp_path / "none"))

    @pytest.mark.parametrize(
        ("more", "line"),
        [
            (["--full", "--adapter", "a"], "--full trains all weights, and --adapter an adapter: choose one"),
            (["--full", "--merge"], "--merge puts an adapter into the weights, and --full has none"),
            (["--lora_r", "0"], "lora_r is 0, and at least 1 is needed"),
            (["--model", "nowhere/none.gguf"], "nowhere/none.gguf: neither a folder"),
            (["--eval_decoding", "warm"], "unknown decoding 'warm': choose of ancestral"),
            (["--self_decoding", "heat:2"], "decoding 'own=heat:2': 'heat:2' is not a generate() setting"),
        ],
    )
    def test_options(self, said, more, line):
        assert said("sft", *more).startswith(line)

    def test_a_layer_that_is_not_there(self, said, tiny_folder):
        line = said("sft", "--lora_target_modules", "q_proj", "c_attn")
        assert line.startswith(f"lora_target_modules: {tiny_folder} has no layer 'c_attn'; it has down_proj, ")

    @pytest.mark.parametrize("how", ["--merge", "--full"])
    def test_a_damaged_profile_that_the_trained_model_would_carry(self, said, tiny_folder, tmp_path, how):
        base = shutil.copytree(tiny_folder, tmp_path / "base")
        (base / "ugap_profile.json").write_text("{", encoding="utf-8")
        line = said("sft", "--model", str(base), how)
        assert "ugap_profile.json" in line

    def test_the_embedding_is_no_target(self, said, tiny_folder):
        line = said("sft", "--lora_target_modules", "q_proj", "embed_tokens", "--merge")
        assert line.startswith(f"lora_target_modules: 'embed_tokens' is the embedding of {tiny_folder}, and PEFT would")


class TestRewards:
    @pytest.mark.parametrize("program", ["grpo", "dpo"])
    def test_a_profile_of_another_scorer(self, program, said, chat_folder):
        line = said(program, "--scorer", str(chat_folder))
        assert "profile" in line
        assert "chat" in line

    @pytest.mark.parametrize("program", ["grpo", "dpo"])
    def test_texts_of_a_kind_that_the_profile_lacks(self, program, said, text_rows, tmp_path):
        path = tmp_path / "sermons.jsonl"
        path.write_text("".join(json.dumps({**row, "kind": "sermon"}) + "\n" for row in text_rows), encoding="utf-8")
        line = said(program, data=str(path))
        assert line.startswith("the human profile has no kind 'sermon'; it has creative, functional: name one kind for")

    @pytest.mark.parametrize("program", ["grpo", "dpo"])
    def test_human_texts_before_a_model_is_loaded(self, program, said, like_file, tmp_path, monkeypatch):
        monkeypatch.setattr("ugap.training.policy.load_policy", None)
        few = tmp_path / "few.txt"
        assert said(program, "--kind", "sermon") == (
            "the human profile has no kind 'sermon'; it has creative, functional"
        )
        assert said(program, "--kind", "creative", "--like", like_file) == "give --like or --kind, not both"
        assert said(program, "--like", str(few)).startswith(f"{few}: ")
        if program == "grpo":
            line = said("grpo", "--full", "--rollouts", "human")
            assert line.startswith("rollouts at human uncertainty need the human profile of the policy")

    def test_too_few_texts_to_write_like(self, said, like_file, tmp_path):
        few = tmp_path / "few.txt"
        with open(like_file, encoding="utf-8") as file:
            few.write_text("\n\n".join(file.read().split("\n\n")[:10]))
        line = said("dpo", "--like", str(few))
        assert line == "too few of the texts to write like are long enough to compare whole texts with: give 16"

    def test_no_two_continuations_differ_enough(self, words, tmp_path, capsys):
        assert main(words("dpo", tmp_path / "run", "--min_margin", "9")) == 2
        line = "ugap: error: no prompt has two of 3 continuations whose rewards differ by 9.0: "
        assert capsys.readouterr().err.startswith(line)
        assert not (tmp_path / "run" / "pairs.jsonl").exists()

    @pytest.mark.parametrize(
        ("more", "line"),
        [
            (["--samples_per_prompt", "1"], "samples_per_prompt is 1, and a pair needs 2"),
            (["--min_margin", "0"], "min_margin is 0.0, and a pair needs rewards that differ"),
        ],
    )
    def test_options(self, words, refused, tmp_path, more, line):
        assert refused(*words("dpo", tmp_path / "run", *more)) == f"ugap: error: {line}\n"


class TestTrainer:
    @pytest.mark.parametrize(
        ("program", "more", "line"),
        [
            ("sft", ["--packing"], "packing puts rows of both domains into one"),
            ("sft", ["--weight", "2"], "weight"),
            ("sft", ["--learning_rate", "fast"], "--learning_rate: invalid float value: 'fast'"),
            ("grpo", ["--num_generations", "3"], "generation_batch_size (4) must be divisible by num_generations (3)"),
            ("grpo", ["--constraint_limit", "0.1"], "constraint_limit and constraint_margin both say the limit"),
            ("sft", ["--eval_strategy", "steps"], "You have set `args.eval_strategy` to"),
            ("sft", ["--lora_target_modules", "lm_head"], "Applying a PEFT adapter to `lm_head` is not supported"),
            ("sft", ["--push_to_hub"], "the Hub: Cannot reach https://huggingface.co"),
        ],
    )
    def test_what_trl_its_config_or_the_hub_refuses(self, program, more, line, said, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert said(program, *more).startswith(line)

    @pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
    def test_a_tracker_that_is_not_installed(self, name, said, monkeypatch):
        monkeypatch.setattr(f"transformers.integrations.integration_utils.is_{name}_available", lambda: False)
        line = said("sft", "--report_to", name)
        assert line.startswith(f"report_to {name}: ")
        assert "to be installed" in line

    def test_no_such_tracker(self, said):
        assert said("grpo", "--report_to", "paper").startswith("report_to: no tracker 'paper'; choose of ")

    def test_a_tracker_that_does_not_begin(self, said, monkeypatch):
        def setup(*_, **__):
            raise Exception("No API key configured.\nUse `wandb login`")  # as wandb has errors of its own

        monkeypatch.setattr("transformers.integrations.WandbCallback.setup", setup)
        assert said("sft", "--report_to", "wandb") == "report_to wandb: No API key configured. Use `wandb login`"

    @pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried ...")])
    def test_too_little_memory(self, error, words, capsys, monkeypatch, tmp_path):
        def compute_loss(*_, **__):
            raise error

        monkeypatch.setattr("ugap.training.UncertaintySFTTrainer.compute_loss", compute_loss)
        assert main(words("sft", tmp_path / "run", "--eval_every", "0")) == 2
        line = "ugap: error: out of memory in training, with per_device_train_batch_size 4: halve it and double "
        assert capsys.readouterr().err.splitlines()[-1].startswith(line)


class TestFolder:
    def test_a_run_is_there(self, said, finished):
        line = said("sft", folder=finished)
        assert line == (
            f"{finished}: there is a run already; add --resume_from_checkpoint yes to go on, or choose another folder"
        )

    def test_checkpoints_of_another_program_are_there(self, said, tmp_path):
        checkpoint = tmp_path / "run" / "checkpoint-7"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")
        assert "there is a run already" in said("sft")

    def test_nothing_to_go_on_from(self, said, tmp_path):
        line = said("sft", "--resume_from_checkpoint", "yes")
        assert line == f"{tmp_path / 'run'}: there is no run to resume"

    def test_no_checkpoint(self, said, tmp_path):
        line = said("sft", "--resume_from_checkpoint", str(tmp_path))
        assert line == f"{tmp_path}: not a checkpoint: it has no trainer_state.json, or a damaged one"

    @pytest.mark.parametrize(
        ("more", "line"),
        [
            (["--lora_r", "4"], "the run there has lora_r 16, not 4"),
            (["--no_facts"], "the run there has facts True, not False"),
        ],
    )
    def test_other_settings(self, said, finished, more, line):
        go_on = ("--resume_from_checkpoint", "yes")
        assert said("sft", *go_on, *more, folder=finished) == f"{finished}: {line}"

    def test_another_program(self, said, finished):
        line = said("grpo", "--resume_from_checkpoint", str(finished / "checkpoint-1"))
        assert line == f"{finished}: the run there has program 'sft', not 'grpo'"

    def test_the_record_of_a_run_says_what_it_was(self, finished, texts_file):
        record = json.loads((finished / "ugap_run.json").read_text())
        assert record["settings"]["data"] == [texts_file]
        assert record["config"]["constraint_limit"] == 0.01
        assert record["settings"]["eval_every"] == 0


class TestGoingOn:
    """A run does not go on with other content of the same names."""

    @pytest.fixture
    def again(self, finished, train, tmp_path):
        folder = tmp_path / "run"
        shutil.copytree(finished, folder)
        return folder

    def test_other_texts(self, again, said, texts_file, text_rows, tmp_path):
        """The file is edited, and keeps its name."""
        with open(texts_file, encoding="utf-8") as file:
            before = file.read()
        try:
            with open(texts_file, "w", encoding="utf-8") as file:
                file.writelines(json.dumps({**row, "text": row["text"] + " The end."}) + "\n" for row in text_rows)
            line = said("sft", "--max_steps", "2", "--eval_every", "0", "--resume_from_checkpoint", "yes", folder=again)
        finally:
            with open(texts_file, "w", encoding="utf-8") as file:
                file.write(before)
        assert f"{again}: the run there has data_hash " in line

    def test_another_base(self, again, said, tiny_folder, make_model):
        """The base was trained further in its folder."""
        model = make_model("llama", eos_token_id=0)
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        weights = tiny_folder / "model.safetensors"
        before = weights.read_bytes()
        try:
            model.save_pretrained(tiny_folder)
            line = said("sft", "--max_steps", "2", "--eval_every", "0", "--resume_from_checkpoint", "yes", folder=again)
        finally:
            weights.write_bytes(before)
        assert f"{again}: the run there has weight_hash " in line

    def test_a_folder_in_which_another_process_trains(self, said, tmp_path):
        with locked(tmp_path / "run"):
            line = said("sft")
        assert line == f"{tmp_path / 'run'}: another process is writing there; wait, or choose another output"
