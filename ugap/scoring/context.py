"""How many tokens a model reads at once, and whether texts after one prefix may share its cache.

A cache is tried, not trusted. Some models accept a cache and ignore it, some cannot copy theirs to several rows. A
probe compares the states of two texts after one prefix with those of whole rows.
"""

import logging
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from ugap.scoring.head.lm_head import are_close

logger = logging.getLogger(__name__)

# Names of the longest sequence in the configs of transformers; where it is not positive, there is no limit.
_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "max_sequence_length")
_UNLIMITED = 2**31
_PREFIX, _REST = 4, 3  # tokens of the probe


def context_limit(config: Any) -> int:
    """Tokens that a model of this config takes at once; a number beyond every text where it says none."""
    limits = (getattr(config, name, None) for name in _LIMITS)
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), _UNLIMITED)


def states_after(run: Any, prefix: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states `(B, L, H)` of rows `ids` `(B, L)` after a prefix `(1, P)`, which runs once for all rows."""
    # Made of a config, the cache would drop what lies beyond a window that not every model with one applies.
    cache = DynamicCache()
    run(input_ids=prefix, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(ids))
    return run(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state


@torch.no_grad()
def shares_prefixes(run: Any, model: PreTrainedModel, device: torch.device, name: str) -> bool:
    """Whether texts after one prefix may share its cache: tried on a probe; a debug line says why not.

    Args:
        run (`torch.nn.Module`): The model without its head.
        model (`PreTrainedModel`): The model.
        device (`torch.device`): Where its input goes.
        name (`str`): Its name in the log.
    """
    vocabulary = model.config.get_text_config().vocab_size
    tokens = [(11 * i + 5) % vocabulary for i in range(_PREFIX + 2 * _REST)]
    prefix = torch.tensor([tokens[:_PREFIX]], device=device)
    rows = torch.tensor([tokens[_PREFIX : _PREFIX + _REST], tokens[_PREFIX + _REST :]], device=device)
    whole = run(input_ids=torch.cat([prefix.expand(2, -1), rows], dim=1), use_cache=False).last_hidden_state
    try:
        states = states_after(run, prefix, rows)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # models fail in their own ways
        logger.debug("%s: each text runs its prefix anew, the cache cannot be shared: %r", name, error)
        return False
    same = are_close(states, whole[:, _PREFIX:])
    if not same:
        logger.debug("%s: each text runs its prefix anew, the shared cache changes hidden states", name)
    return same
