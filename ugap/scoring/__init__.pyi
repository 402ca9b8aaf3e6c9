from .head.statistics import HeadStatistics as HeadStatistics
from .head.statistics import head_statistics as head_statistics
from .records import ScorerId as ScorerId
from .records import TokenScores as TokenScores
from .scorer import Scorer as Scorer
from .shared import SharedScorer as SharedScorer
