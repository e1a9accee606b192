"""How well an embedding predicts those of its sample's other views: BYOL and SimSiam."""

import torch
import torch.nn.functional as F
from torch import Tensor


def agreement(p_VBD: Tensor, t_TBD: Tensor) -> Tensor:
    """Return the mean cosine of predictions and targets over all pairs of two different views.

    Args:
        p_VBD: prediction of every view [V, B, D].
        t_TBD: targets of the first T views [T, B, D], without gradient. Other views, small crops,
            only predict.
    """
    V, T = len(p_VBD), len(t_TBD)
    with torch.autocast(p_VBD.device.type, enabled=False):
        p_VBD, t_TBD = F.normalize(p_VBD.float(), dim=-1), F.normalize(t_TBD.float(), dim=-1)
        # A sum of targets is a target: V products instead of V · T.
        others_VBD = t_TBD.sum(0) - F.pad(t_TBD, (0, 0, 0, 0, 0, V - T))
        return (p_VBD * others_VBD).sum((0, 2)).mean() / (V * T - T)


def spread(z_VBD: Tensor) -> Tensor:
    """Return the mean standard deviation of unit embeddings, times √D: 1 if isotropic, 0 collapsed.

    As in SimSiam's Fig. 2, where it stands without the factor.
    """
    z_ND = F.normalize(z_VBD.detach().float(), dim=-1).flatten(0, 1)
    return z_ND.std(0).mean() * z_ND.shape[1] ** 0.5
