"""The `ugap` command: one module per command, started by `ugap.cli.main`."""
