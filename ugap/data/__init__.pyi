from .demo import DEMO as DEMO
from .parts import PartStore as PartStore
from .parts import content_hash as content_hash
from .parts import part_key as part_key
from .texts import TextRow as TextRow
from .texts import load_texts as load_texts
