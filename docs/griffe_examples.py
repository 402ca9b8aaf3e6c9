"""For mkdocstrings: our docstrings head one example with `Example:`, which griffe reads under the name `Examples:`."""

from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Give the section of examples the name that griffe knows, so that doctests are shown as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section of one object's docstring."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
