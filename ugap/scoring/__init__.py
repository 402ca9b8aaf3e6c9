"""The scoring module: a model and texts to surprisal, entropy, varentropy and rank per token."""

from ugap.scoring.head import HeadStatistics, head_statistics
from ugap.scoring.scorer import Scorer
from ugap.scoring.token_scores import ScorerId, TokenScores

__all__ = ["HeadStatistics", "Scorer", "ScorerId", "TokenScores", "head_statistics"]
