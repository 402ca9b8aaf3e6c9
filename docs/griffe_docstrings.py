"""For mkdocstrings: our docstrings follow transformers, and griffe reads Google's style. Two details differ."""

import re
from typing import Any

import griffe

# `size (`int`, *optional*, defaults to `8`): What it is.`
_ARGUMENT = re.compile(r"^( +[\w*, ]+ )\((`.*?)\):", re.M)
_MARKUP = re.compile(r"[`*]|, defaults to .*")


class TransformersStyle(griffe.Extension):
    """Show examples as code, and types without their Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring:
            text = obj.docstring.value.replace("Example:\n", "Examples:\n")
            obj.docstring.value = _ARGUMENT.sub(lambda match: f"{match[1]}({_MARKUP.sub('', match[2])}):", text)
