"""Models by local path, Hub id, or the name of an asset that a package registry ships."""

from ugap.models.adapter import adapter_hash, with_adapter
from ugap.models.assets import ASSETS, Asset, asset_path
from ugap.models.cache import cache_dir
from ugap.models.chat import chat_ids
from ugap.models.gguf import convert_gguf
from ugap.models.load import load_model
from ugap.models.wheels import Wheel, fetch_wheel

__all__ = [
    "ASSETS",
    "Asset",
    "Wheel",
    "adapter_hash",
    "asset_path",
    "cache_dir",
    "chat_ids",
    "convert_gguf",
    "fetch_wheel",
    "load_model",
    "with_adapter",
]
