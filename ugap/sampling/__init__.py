"""Decoding at human uncertainty: the logits processor, the three modes, and adapters for serving engines."""

from ugap.sampling.draw import draw
from ugap.sampling.draw_processor import DrawLogitsProcessor
from ugap.sampling.export import export_custom_generate
from ugap.sampling.figures import human_figures, profile_of, weight_of
from ugap.sampling.generation import Generation, generate, generation_kwargs
from ugap.sampling.human import MODES, HumanSampler
from ugap.sampling.processor import HumanEntropyLogitsProcessor
from ugap.sampling.temperature import solve_temperature

__all__ = [
    "MODES",
    "DrawLogitsProcessor",
    "Generation",
    "HumanEntropyLogitsProcessor",
    "HumanSampler",
    "draw",
    "export_custom_generate",
    "generate",
    "generation_kwargs",
    "human_figures",
    "profile_of",
    "solve_temperature",
    "weight_of",
]
