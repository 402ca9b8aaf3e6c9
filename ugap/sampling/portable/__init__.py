"""Modules that an exported folder copies unchanged: they need torch, NumPy and transformers alone."""
