"""The sampler inside other engines: vLLM and llama.cpp."""
