"""A base model compared with its tuned models: run, table, trade-off."""
