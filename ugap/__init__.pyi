from .models import load_model as load_model
from .profile import HumanProfile as HumanProfile
from .sampling import HumanEntropyLogitsProcessor as HumanEntropyLogitsProcessor
from .sampling import generate as generate
from .scoring import Scorer as Scorer
from .scoring import TokenScores as TokenScores

__version__: str
__all__: list[str]
