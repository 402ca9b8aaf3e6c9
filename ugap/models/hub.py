"""What the Hub's client raises where the network gives no answer."""

from typing import cast

from huggingface_hub.errors import HfHubHTTPError

# The base error of the HTTP client under huggingface_hub, which changes with its version, and OSError. Answers of the
# Hub, such as 404, are of the subclass `HfHubHTTPError`: catch them first.
NETWORK_ERRORS = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
