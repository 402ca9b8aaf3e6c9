"""`generate()` at human uncertainty: what `model.generate(custom_generate=...)` loads from an exported folder.

Every module here is a copy of one of the package `ugap`, except for the parameters. They need torch, NumPy and
transformers alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from .hub_params import PARAMS
from .params_processor import ALONE, WITHOUT_EFFECT, ParamsLogitsProcessor, check_vocabulary, mode_weight
from .special import suppressed_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def generate(
    inputs: torch.Tensor | None = None,
    *,
    model: "PreTrainedModel",
    kind: str = "auto",
    mode: str | None = None,
    weight: float | None = None,
    seed: int | None = None,
    logits_processor: Sequence[LogitsProcessor] | None = None,
    **options: Any,
) -> Any:
    """Write at human uncertainty.

    Every token is drawn here, whatever `do_sample`, `temperature`, `top_k` or `top_p` say. Special tokens that do not
    end a text are not drawn. The `tokenizer` names them: the one of the call, or else that of the model's folder or
    of the local cache. Without a tokenizer, the model's configs name those that they know.

    Args:
        inputs (`torch.Tensor` of shape `(B, T)`, *optional*): As for `model.generate()`; or give `input_ids`.
        model (`PreTrainedModel`): The model that the parameters were fitted with.
        kind (`str`, *optional*, defaults to `"auto"`): Kind or domain of the human texts to follow; `auto` is the
            creative kinds, or those of the first domain where none is creative. The prompt does not change it.
        mode (`str`, *optional*): `"creative"` (the default: as uncertain as people), `"balanced"` (half of that) or
            `"precise"` (greedy).
        weight (`float`, *optional*): Share of the model's own human level in [0, 1], instead of a mode.
        seed (`int`, *optional*): Seed of the draws; by default torch's own generator is used.
        logits_processor (`Sequence[LogitsProcessor]`, *optional*): Processors that act on the scores before the draw.
        options: The other options of `model.generate()`, such as `attention_mask`, `max_new_tokens`,
            `num_return_sequences`, `streamer`, `tokenizer` and `return_dict_in_generate`.

    Returns:
        The output of `model.generate()`.

    Raises:
        ValueError: Before anything is generated, if kind, mode or weight is unknown or out of range, or an option asks
            for beams or another decoding. Also if the vocabulary is smaller than the ranks of the human texts.

    Example:
        ```python
        model.generate(**inputs, custom_generate=FOLDER, trust_remote_code=True, mode="creative", max_new_tokens=200)
        ```
    """
    strength = mode_weight(mode, weight)
    if kind not in PARAMS:
        raise ValueError(f"unknown kind {kind!r}: there are {', '.join(sorted(PARAMS)) or 'none'}")
    config = options.get("generation_config")
    replaced = {name: options.pop(name, None) for name in ALONE}
    if config is not None and (config.num_beams or 1) > 1:
        replaced["num_beams"] = config.num_beams
    for name, value in replaced.items():
        if value is not None and value != ALONE[name] and name not in WITHOUT_EFFECT:
            raise ValueError(
                f"{name}={value!r} is not possible here: every token is drawn at human uncertainty, one by one"
            )
    params = PARAMS[kind]
    if weight is None and mode in (None, "creative"):
        params = {**params, **params.get("reader", {})}
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    suppress_tokens = suppressed_tokens(model, options.get("tokenizer"), _setting(options, model, "eos_token_id"))
    processor = ParamsLogitsProcessor(
        params,
        strength,
        draw=True,
        generator=generator,
        suppress_tokens=suppress_tokens,
        pad_token_id=_setting(options, model, "pad_token_id"),
    )
    check_vocabulary(params, model.config.get_text_config().vocab_size)
    # generate() writes several texts of a prompt only if it samples; sampling from the drawn token alone is no change.
    sampled = (_setting(options, model, "num_return_sequences") or 1) > 1
    # Through the class: if the folder is in the model's repository, `model.generate` is this function.
    return type(model).generate(
        model,
        inputs,
        logits_processor=LogitsProcessorList([*(logits_processor or []), processor]),
        **{**options, **ALONE, "do_sample": sampled},
    )


def _setting(options: dict[str, Any], model: "PreTrainedModel", name: str) -> Any:
    """A setting of `generate()`: from the call, from the config of the call, or from the model's own config."""
    configs = (options.get("generation_config"), model.generation_config)
    values = [options.get(name), *(getattr(config, name, None) for config in configs)]
    return next((value for value in values if value is not None), None)
