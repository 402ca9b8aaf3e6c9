"""Sharded models have the gradients of whole ones: two processes on a CPU, other text in each."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("sharded_worker.py")
ROOT = WORKER.parents[2]
no_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed (DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed)",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "root",  # FSDP2 with the head in the group of the whole model
        "apart",  # the head sharded by itself
        "root-tied",
        pytest.param("zero", marks=no_deepspeed),
        pytest.param("zero-tied", marks=no_deepspeed),
    ],
)
def test_two_processes_have_the_gradients_of_one(kind, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folders = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, str(WORKER), kind]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), port],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ended = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    for out, _ in ended:
        differences = json.loads(out.splitlines()[-1])
        assert len(differences) == (20 if kind.endswith("tied") else 21)
        assert max(differences.values()) < 1e-5, differences
