"""The kernels are compiled for GPUs that are not there: `python tests/scoring/test_kernels_compile.py 90` prints how.

It takes no device, only Triton's compiler, which must not be in interpreter mode: so the test runs this file.
"""

import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import pytest

SUMS = {"high": "*fp32", "low": "*fp32", "targets": "*i64", "scale": "fp32", "softcap": "fp32"}
# Arguments that are multiples of 16 for every model that counts.
ALIGNED = ("vocabulary", "n_hidden", "hidden_stride", "weight_stride", "width")


def compile_kernels(capability: int) -> list[dict[str, Any]]:
    """Kernel, options, and bytes and registers that it takes, for each kernel and dtype."""
    from ugap.scoring.head import triton_kernels as kernels

    found = []
    for pointer, full in product(("*bf16", "*fp32"), (False, True)):
        recipe = {"HAS_BIAS": full, "HAS_SOFTCAP": full}
        inputs = {"hidden": pointer, "weight": pointer, "bias": pointer, "out": "*fp32", **SUMS}
        blocks = kernels.blocks_for(capability // 10, plain=not full)
        fused = {"UPCAST": False, "BLOCK_T": blocks.tokens, "BLOCK_V": blocks.words, "BLOCK_H": blocks.hidden}
        options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
        for count in ("nothing", "window", "earlier") if pointer == "*bf16" else ():
            constants = {**recipe, **fused, "COUNT": count}
            found.append(report(kernels._fused_kernel, inputs, constants, capability, **options))
        found.append(report(kernels._own_kernel, inputs, {**recipe, "BLOCK_H": 1024}, capability))
        tile = {**recipe, "BLOCK_T": kernels.ROWS, "BLOCK_V": kernels.COLUMNS}
        inputs = {"product": "*fp32", "bias": pointer, "sums": "*fp32", **SUMS}
        found.append(report(kernels._fold_kernel, inputs, {**tile, "COUNT": "window"}, capability))
        columns = dict.fromkeys(("product", "maximum", "constant", "per_z", "by_surprisal"), "*fp32")
        inputs = {**SUMS, **columns, "bias": pointer, "out": pointer}
        found.append(report(kernels._gradient_kernel, inputs, tile, capability))
    return found


def report(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, **options: int
) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    multiples = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in ALIGNED]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in multiples},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.cubin").write_bytes(compiled.asm["cubin"])
        words = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", f"{folder}/kernel.cubin"]
        usage = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    counts = {
        key: int(value)
        for key, value in (word.split(":", 1) for word in usage if word.count(":") == 1 and word[-1].isdigit())
    }
    return {
        "kernel": kernel.__name__,
        "types": types["bias"],
        **{name: value for name, value in constants.items() if not name.startswith("BLOCK")},
        "shared": compiled.metadata.shared,
        "registers": counts["REG"],
        "stack": counts["STACK"],
        "tensor_cores": next(
            (kind for kind in ("wgmma", "tcgen05.mma", "mma.sync") if kind in compiled.asm["ptx"]), None
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "tensor_cores", "shared"),
    [(80, "mma.sync", 163 << 10), (90, "wgmma", 227 << 10), (100, "tcgen05.mma", 227 << 10)],
)
def test_every_kernel_compiles(capability: int, tensor_cores: str, shared: int) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, __file__, str(capability)]
    done = subprocess.run(
        words, env=environment, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"] for row in found} == {"_fused_kernel", "_fold_kernel", "_own_kernel", "_gradient_kernel"}
    for row in found:
        assert row["shared"] <= shared
        assert row["tensor_cores"] == (tensor_cores if row["kernel"] == "_fused_kernel" else None)
        assert row["stack"] <= 600, row  # bytes a thread of what does not fit into the registers


if __name__ == "__main__":
    for row in compile_kernels(int(sys.argv[1])):
        print(json.dumps(row))
