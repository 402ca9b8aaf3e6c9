"""The options of commands that load models: of one model, or each for a section of the help."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ugap.cli.arguments import option
from ugap.study.options import Dtype


def adapter_option(group: str) -> Any:
    """The option `--adapter`."""
    return option(
        "folder or Hub id of a PEFT adapter to put on the model (it can also be named as the model)",
        default=None,
        group=group,
        metavar="DIR",
    )


def device_option(group: str) -> Any:
    """The option `--device`."""
    return option("where models run (default: the GPU if there is one)", default=None, group=group)


def trust_option(group: str) -> Any:
    """The option `--trust_remote_code`."""
    return option("run the code that a repository brings along", default=False, group=group)


def check_adapter(adapter: str | None, models: Sequence[str], engine: str = "transformers") -> None:
    """Refuse an adapter where not one model is named, or the engine takes none.

    Raises:
        InputError: See above.
    """
    from ugap.errors import InputError

    if adapter is not None and len(models) != 1:
        raise InputError(
            f"--adapter {adapter} needs one --model, and there are {len(models)}: name the adapter's folder as a model"
        )
    if adapter is not None and engine != "transformers":
        raise InputError(f"--engine {engine} takes no adapter: merge it into its base first")


@dataclass(kw_only=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    model: str = option("asset, folder, .gguf file or Hub id of the model", group="model", metavar="NAME")
    adapter: str | None = adapter_option("model")
    dtype: Dtype = option("type of the weights", default="float32", group="model")
    device: str | None = device_option("model")
    trust_remote_code: bool = trust_option("model")

    def loading(self) -> dict[str, Any]:
        """The arguments of `load_model` and of `Scorer.from_pretrained` behind the name."""
        return {
            "adapter": self.adapter,
            "dtype": self.dtype,
            "device": self.device,
            "trust_remote_code": self.trust_remote_code,
        }
