"""Probes of what a model knows: facts and questions."""
