"""Log-AP: an upper bound of minus the logarithm of average precision, with an exponential.

Ours, found by asking which form of AP holds its own on few steps and small crops (docs/methods.md
has the trials); no paper is known to us that trains with it. 1 - AP lets go of what is ranked
badly: the slope of 1 / position is 1 / position², and early in training, or for a small crop,
positives stand at position 100. The logarithm's slope is 1 / position; and where Smooth-AP's
sigmoid pulls most at negatives level with the positive, the exponential pulls at the highest ones.

By Jensen -log AP ≤ mean over positives of -log precision, and since a step is below an exponential
precision ≥ among / (among + Σ e^difference). So the bound is NT-Xent over many views in which a
positive is worth as much as its place among the positives: the second best may have two negatives
above it at the precision at which the best may have one. With two views both are the same.
"""

from torch import Tensor

from model.objective.nt_xent import NTXent


class LogAP(NTXent):
    """The mean of a bound of -log precision over all views as queries and their positives.

    For a query, with s its scores, P its positives and N its negatives:

        among_k = 1 + number of positives that score higher than k; no gradient
        loss    = mean over k ∈ P of log(1 + Σ_{n ∈ N} exp((s_n - s_k) / temperature) / among_k)

    Args:
        temperature: width of the exponential in units of cosine.
    """

    def logits(self, S_QK: Tensor) -> Tensor:
        """See `NTXent.logits`."""
        among_QK = (S_QK[:, None, :] > S_QK[:, :, None]).sum(-1) + 1
        return super().logits(S_QK) + among_QK.to(S_QK.dtype).log()
