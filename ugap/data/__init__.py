"""Text in, rows out: text sets from files, the Hub or the embedded demo, and the parts of long jobs."""

from ugap.data.demo import DEMO
from ugap.data.parts import PartStore, content_hash, part_key
from ugap.data.texts import TextRow, load_texts

__all__ = ["DEMO", "PartStore", "TextRow", "content_hash", "load_texts", "part_key"]
