"""How much features vary: the error of a quantizer without use."""

from torch import Tensor


class FeatureMoments:
    """Mean and variance of features per channel over a stage, in float64."""

    def __init__(self) -> None:
        self.count, self.sum, self.sum_of_squares = 0, 0.0, 0.0

    def append(self, feats: Tensor) -> None:
        """Add features (M, H) of real frames."""
        feats = feats.double()
        self.count += feats.shape[0]
        self.sum = self.sum + feats.sum(dim=0)
        self.sum_of_squares = self.sum_of_squares + feats.square().sum(dim=0)

    def variance(self) -> float:
        """Variance over frames, mean over channels."""
        mean = self.sum / self.count
        return float((self.sum_of_squares / self.count - mean.square()).mean())
