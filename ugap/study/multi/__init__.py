"""The study of many models, one after another or in shards: run, contrasts."""
