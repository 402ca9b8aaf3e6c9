"""Parameters that DeepSpeed's ZeRO-3 has sharded, whole for as long as the head reads them.

ZeRO-3 gathers a parameter around calls of its own module. The head reads the weight without calling the projection, so
it has to ask; in the backward pass once more, since the weight is dropped in between.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor


def gathered(*parameters: Tensor | None) -> AbstractContextManager[Any]:
    """Gather what ZeRO-3 has sharded and nobody else has gathered; nothing where it does not run.

    Under ZeRO-3 every process has to come here, since gathering is a collective operation.
    """
    # By identity: with tied or shared heads the same parameter comes twice.
    sharded = {id(p): p for p in parameters if p is not None and hasattr(p, "ds_status")}
    if not sharded:
        return nullcontext()
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    # What is available is in use by its module, which will drop it in its own time.
    absent = [p for p in sharded.values() if p.ds_status != ZeroParamStatus.AVAILABLE]
    return deepspeed.zero.GatheredParameters(absent) if absent else nullcontext()
