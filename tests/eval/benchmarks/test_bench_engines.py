"""The benchmark of the engines runs whole on a tiny model, with transformers in the place of vLLM."""

import json

from ugap.cli.main import main
from ugap.study.generation import TransformersEngine


def test_engines_and_decodings_take_turns(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ugap.study.engine.check_engine", lambda *args: None)
    monkeypatch.setattr(
        "ugap.study.engine.open_engine",
        lambda name, args, model, tokenizer, *more: TransformersEngine(model, tokenizer),
    )
    output = tmp_path / "engines.json"
    sizes = ["--batch_sizes", "2", "3", "--new_tokens", "4", "--repeats", "1", "--output", str(output)]
    words = ["eval", "bench_engines", "--model", str(tiny_folder), "--device", "cpu", *sizes]
    assert main([*words, "--decoding", "ancestral", "greedy"]) == 0
    speed = json.loads(output.read_text())["tokens_per_second"]
    variants = [f"{decoding} {engine}" for decoding in ("ancestral", "greedy") for engine in ("transformers", "vllm")]
    assert {size: list(rows) for size, rows in speed.items()} == {"2": variants, "3": variants}
    printed = capsys.readouterr().out
    for rows in speed.values():
        ours, others = rows["greedy transformers"], rows["greedy vllm"]
        assert f"| greedy | {ours:,.1f} | {others:,.1f} | {others / ours:.2f} |" in printed


def test_bad_input(refused):
    assert "expected positive numbers" in refused("eval", "bench_engines", "--repeats", "0")
