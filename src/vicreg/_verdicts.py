"""The verdict on a diagnosis, and words on each measure that agree with the verdict.

The thresholds are here and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LEVELS", "Judge", "shown_count"]

#: The levels of a verdict, the worst first.
LEVELS = (
    "not-finite",
    "collapsed",
    "dead",
    "correlated",
    "low-rank",
    "low-variance",
    "too-few-samples",
    "healthy",
)

#: Up to this many samples two independent features have a mean |correlation| of almost 1/2, and
#: the ranks have three values at most: no pattern can be told from chance.
_TOO_FEW = 4
#: The effective rank, as a share of the most that the batch can have. White noise has three
#: quarters of it or more for any n and d. Singular values that fall as 1/√i, those of most trained
#: networks, have as much; those that fall as 1/i have a third for 200 dimensions and a seventh for
#: 2000.
_LOW_RANK, _COLLAPSED_RANK = 1 / 3, 1 / 10
#: Below this rank nearly all of the variance is in one direction. Two singular values of 9 : 1
#: have a rank of 1.4.
_ONE_DIRECTION = 1.5
#: How far the stds fall short of 1 on average: this is the variance term. It is 0.11 by chance
#: alone for 8 samples of white noise with a std of 1, and not quite 0 after training.
_LOW_VARIANCE, _COLLAPSED_VARIANCE = 1 / 4, 9 / 10
#: The mean |correlation| up to which features count as independent, and from which on as
#: redundant. Few samples correlate by chance: it must also be more than twice what chance gives.
_INDEPENDENT, _REDUNDANT = 0.1, 0.5


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The numbers of a diagnosis as floats, and the verdict on them.

    Parameters
    ----------
    n, d, rank_limit : int
        As in `Diagnosis`; the first and the last are any numbers where samples have weights.
    mean_std, dead_features, mean_abs_correlation : float
        As in `Diagnosis`.
    effective_rank, participation_ratio, variance : float
        As in `Diagnosis`.
    unit_norm : bool
        Whether each sample has norm 1. Then no std can reach the hinge, and their mean is at most
        √(n / ((n - 1) d)), about 1/√d.
    """

    n: float
    d: int
    rank_limit: float
    mean_std: float
    dead_features: float
    mean_abs_correlation: float
    effective_rank: float
    participation_ratio: float
    variance: float
    unit_norm: bool

    @property
    def level(self) -> str:
        """The first that holds, in the order of the notes of `diagnose`."""
        if math.isnan(self.mean_std):
            return "not-finite"
        if self.n <= 1:  # by their weights: nothing is measured
            return "too-few-samples"
        if self.dead_features == self.d:
            return "collapsed"
        if self.n <= _TOO_FEW:
            return "too-few-samples"
        if "collapsed" in (self._variance, self._rank):
            return "collapsed"
        if self.dead_features:
            return "dead"
        if self._correlation == "high":
            return "correlated"
        if self._rank == "low":
            return "low-rank"
        return "low-variance" if self._variance == "low" else "healthy"

    @property
    def verdict(self) -> str:
        """The verdict in one line."""
        dimensions = f"{self.effective_rank:.1f} of {shown_count(self.rank_limit)} dimensions"
        verdicts = {
            "not-finite": "Not finite: some values are NaN or infinite",
            "collapsed": f"Collapsed: {self._what_collapsed(dimensions)}",
            "dead": f"{self.dead_features:.0f} of {self.d} features "
            f"{'is' if self.dead_features == 1 else 'are'} dead",
            "correlated": "Strongly correlated: two features have a |correlation| of "
            f"{self.mean_abs_correlation:.2g} on average",
            "low-rank": f"Low effective rank for this batch: {dimensions}",
            "low-variance": f"Low variance: {self._short_std}",
            "too-few-samples": f"Too few samples to tell: {shown_count(self.n)}",
            "healthy": f"Healthy: every feature varies, and they fill {dimensions}",
        }
        return verdicts[self.level]

    def _what_collapsed(self, dimensions: str) -> str:
        if self.dead_features == self.d:
            return "every sample is the same"
        return (
            self._short_std if self._variance == "collapsed" else f"the batch fills {dimensions}"
        )

    @property
    def _short_std(self) -> str:
        wanted = "where the loss asks for 1"
        if self.unit_norm:
            wanted = f"where unit norm allows {self.most_at_unit_norm:.3g}"
        return f"features have a std of {self.mean_std:.3g} on average, {wanted}"

    @property
    def most_at_unit_norm(self) -> float:
        """The most that the stds, with the divisor n - 1, are on average at unit norm."""
        return math.sqrt(self.n / ((self.n - 1) * self.d))

    @property
    def _variance(self) -> str:
        short = self.variance
        if self.unit_norm:
            short = 1 - self.mean_std / self.most_at_unit_norm
        if short >= _COLLAPSED_VARIANCE:
            return "collapsed"
        return "low" if short > _LOW_VARIANCE else "good"

    @property
    def _rank(self) -> str:
        share = self.effective_rank / self.rank_limit
        is_one_direction = self.effective_rank < _ONE_DIRECTION and self.rank_limit > 2
        if share < _COLLAPSED_RANK or is_one_direction:
            return "collapsed"
        return "low" if share < _LOW_RANK else "good"

    @property
    def _correlation(self) -> str:
        # Up to twice what chance gives is no sign of correlation.
        if self.mean_abs_correlation <= max(2 * self._chance_correlation, _INDEPENDENT):
            return "good"
        return "moderate" if self.mean_abs_correlation < _REDUNDANT else "high"

    @property
    def _chance_correlation(self) -> float:
        """The mean |r| of n samples of two independent normal features."""
        return math.exp(math.lgamma((self.n - 1) / 2) - math.lgamma(self.n / 2)) / math.sqrt(
            math.pi
        )

    @property
    def on_std(self) -> str:
        """Words on the mean std."""
        if math.isnan(self.mean_std):
            return _NOT_FINITE
        if self.n <= 1:
            return _TOO_FEW_TO_TELL
        if self.mean_std == 0:
            return "collapsed: every sample is the same"
        if self.unit_norm:
            return f"{self._variance}: unit norm allows {self.most_at_unit_norm:.3g} at most"
        if self.variance == 0:
            return "good: beyond the hinge of the loss, at 1"
        return f"{self._variance}: short of the hinge at 1 by {self.variance:.2g}"

    @property
    def on_dead_features(self) -> str:
        """Words on the number of dead features."""
        if math.isnan(self.mean_std):
            return _NOT_FINITE
        if self.n <= 1:
            return _TOO_FEW_TO_TELL
        if not self.dead_features:
            return "good"
        return "collapsed: all are constant" if self.dead_features == self.d else "bad: constant"

    @property
    def on_correlation(self) -> str:
        """Words on the mean |correlation|."""
        if math.isnan(self.mean_abs_correlation):
            return _NOT_FINITE
        if self.n <= 1:
            return _TOO_FEW_TO_TELL
        if self.d - self.dead_features < 2:
            return "no two features vary"
        word = _TOO_FEW_TO_TELL if self.n <= _TOO_FEW else self._correlation
        return f"{word}: chance alone gives {self._chance_correlation:.2g}"

    @property
    def on_rank(self) -> str:
        """Words on the effective rank."""
        if math.isnan(self.effective_rank):
            return _NOT_FINITE
        if self.n <= 1:
            return _TOO_FEW_TO_TELL
        if self.effective_rank == 0:
            return "collapsed: nothing varies"
        if self.n <= _TOO_FEW:
            return _TOO_FEW_TO_TELL
        if self._rank == "good" and self.level in ("collapsed", "correlated"):
            return ""  # no praise beside such a verdict
        return "collapsed to few dimensions" if self._rank == "collapsed" else self._rank

    @property
    def on_participation(self) -> str:
        """Words on the participation ratio: low beside a good rank where few are large."""
        is_low = self.participation_ratio < _LOW_RANK * self.rank_limit
        if self.on_rank in ("good", "") and is_low:
            return "some dimensions vary far more than others"
        return self.on_rank

    @property
    def on_variance(self) -> str:
        """Words on the variance term."""
        if self.unit_norm and self.d > 1:
            return "above 0 at unit norm: no std reaches 1"
        return "0 where every std reaches 1"


_NOT_FINITE = "not every value is finite"
_TOO_FEW_TO_TELL = "too few samples to tell"


def shown_count(count: float) -> str:
    """Return a number of samples or of dimensions in words: an integer, or with two decimals."""
    return f"{count:.0f}" if count == count // 1 else f"{count:.2f}"
