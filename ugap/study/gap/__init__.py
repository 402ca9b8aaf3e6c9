"""The study of the gap of one or more models: run, table."""
