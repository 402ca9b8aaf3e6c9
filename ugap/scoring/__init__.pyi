from .head import HeadStatistics as HeadStatistics
from .head import head_statistics as head_statistics
from .scorer import Scorer as Scorer
from .token_scores import ScorerId as ScorerId
from .token_scores import TokenScores as TokenScores
