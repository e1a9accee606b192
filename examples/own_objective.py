"""An objective of one's own: every view's hardest positive above its hardest negative.

    VIEWRANK_MODULES=examples/own_objective.py python train.py --config recipes/sample_s2r2.yaml \
        --method.objective own_objective.HardestTriplet --method.objective.margin 0.3

Hermans, Beyer, Leibe 2017, https://arxiv.org/abs/1703.07737: the batch-hard triplet loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.objective import Objective


class HardestTriplet(Objective):
    """The mean over views of max(0, margin + highest negative cosine - lowest positive cosine).

    Args:
        margin: in units of cosine.
    """

    def __init__(self, *, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def loss(self, z_VAD: Tensor, gallery_views: int, samples: slice) -> Tensor:
        """See `Objective.loss`; this one holds all N × G cosines at once."""
        V, A, _ = z_VAD.shape
        z_ND = F.normalize(z_VAD, dim=-1).flatten(0, 1)  # row v·A + a is view v of sample a
        sample_N = torch.arange(A, device=z_ND.device).repeat(V)
        G = gallery_views * A
        S_NG = z_ND @ z_ND[:G].T
        same_NG = sample_N[:, None] == sample_N[:G]
        itself_NG = torch.eye(V * A, G, dtype=torch.bool, device=z_ND.device)
        positive_N = S_NG.masked_fill(~same_NG | itself_NG, torch.inf).amin(1)
        negative_N = S_NG.masked_fill(same_NG, -torch.inf).amax(1)
        loss_N = F.relu(self.margin + negative_N - positive_N)
        return loss_N.unflatten(0, (V, A))[:, samples].mean()  # this rank's samples ask
