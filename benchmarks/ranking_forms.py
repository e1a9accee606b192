"""Forms of ranking that docs/ranking.md tries and viewrank does not offer; each says what it is.

    VIEWRANK_MODULES=benchmarks.ranking_forms python train.py --config recipes/stl10_cpu_s2r2.yaml \
        --method.objective benchmarks.ranking_forms.TrimmedAP --method.objective.share 0.01

So that every row of the log of hypotheses can be measured again. They work in one process.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.average import MovingAverage
from model.encoder import Encoder
from model.method.joint_embedding import JointEmbedding
from model.method.method import Output, encode, large
from model.objective import LogAP, Objective, SmoothAP
from model.objective.queries import PerQuery


class PlaceWeightedAP(LogAP):
    """LogAP whose positives are worth their place to a power: 0 is NT-Xent, 1 is LogAP.

    Args:
        temperature: see `LogAP`.
        power: of a positive's place among the positives.
    """

    def __init__(self, *, temperature: float = 0.1, power: float = 2.0) -> None:
        super().__init__(temperature=temperature)
        self.power = power

    def logits(self, S_QK: Tensor) -> Tensor:
        """See `NTXent.logits`."""
        own_QK = S_QK / self.temperature
        return own_QK + self.power * (super().logits(S_QK) - own_QK)


class OuterLogAP(LogAP):
    """-log AP itself, of which LogAP is a bound: it lets go of positives that stand far behind.

        -log (mean over positives k of m_k / (m_k + Σ_n e^((s_n - s_k) / T))),  m_k the place of k

    LogAP is the mean of the logarithms instead; the logarithm of the mean leaves each positive with
    its share of AP, so that one far behind hardly counts.

    Args:
        temperature: see `LogAP`.
    """

    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """See `MeanOverQueries.per_query`."""
        with torch.enable_grad():
            score_QG = S_QG.scatter(1, positive_QK, -torch.inf).requires_grad_(grad)
            own_QK = S_QK.detach().clone().requires_grad_(grad)
            rest_Q = (score_QG / self.temperature).logsumexp(1)
            log_precision_QK = -F.softplus(rest_Q[:, None] - self.logits(own_QK))
            loss_Q = math.log(S_QK.shape[1]) - log_precision_QK.logsumexp(1)
            if not grad:
                return PerQuery(loss_Q)
            dS_QG, dS_QK = torch.autograd.grad(loss_Q.sum(), (score_QG, own_QK))
        return PerQuery(loss_Q.detach(), dS_QG, dS_QK)


class TrimmedAP(LogAP):
    """LogAP without each query's highest negatives, which may show the same thing.

    Args:
        temperature: see `LogAP`.
        share: of the gallery that is left out, from the top.
    """

    def __init__(self, *, temperature: float = 0.1, share: float = 0.01) -> None:
        super().__init__(temperature=temperature)
        self.share = share

    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """See `MeanOverQueries.per_query`."""
        S_QG.scatter_(1, positive_QK, -torch.inf)
        highest_QX = S_QG.topk(round(self.share * S_QG.shape[1]), dim=1).indices
        return super().per_query(
            S_QG.scatter_(1, highest_QX, -torch.inf), S_QK, positive_QK, grad=grad
        )


class WarmingAP(LogAP):
    """LogAP whose temperature goes from one value to another along a cosine.

    Args:
        first: temperature of the first step.
        last: temperature from step `steps` on.
        steps: number of training steps between.
    """

    def __init__(self, *, first: float = 0.2, last: float = 0.05, steps: int = 115) -> None:
        super().__init__(temperature=first)
        self.first, self.last, self.steps = first, last, steps
        self.step = 0

    def loss(self, z_VAD: Tensor, gallery_views: int, samples: slice) -> Tensor:
        """See `Objective.loss`."""
        done = torch.tensor(min(1.0, self.step / self.steps))
        self.temperature = self.last + (self.first - self.last) * float(
            (1 + torch.cos(torch.pi * done)) / 2
        )
        self.step += 1
        return super().loss(z_VAD, gallery_views, samples)


class Mixture(Objective):
    """A weighted mean of LogAP, which never lets go of a positive, and SmoothAP, which does.

    Args:
        temperature: of both.
        share: of SmoothAP.
    """

    def __init__(self, *, temperature: float = 0.1, share: float = 0.5) -> None:
        super().__init__()
        self.share = share
        self.log_ap = LogAP(temperature=temperature)
        self.smooth_ap = SmoothAP(temperature=temperature)

    def loss(self, z_VAD: Tensor, gallery_views: int, samples: slice) -> Tensor:
        """See `Objective.loss`."""
        firm = self.log_ap.loss(z_VAD, gallery_views, samples)
        yielding = self.smooth_ap.loss(z_VAD, gallery_views, samples)
        return (1 - self.share) * firm + self.share * yielding


class CentroidAP(Objective):
    """LogAP of views among images: each image is the mean of its gallery views' unit vectors.

    A query's own view is left out of its image's mean.

    Args:
        temperature: see `LogAP`.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def loss(self, z_VAD: Tensor, gallery_views: int, samples: slice) -> Tensor:
        """See `Objective.loss`."""
        z_VAD = F.normalize(z_VAD, dim=-1)
        sum_AD = z_VAD[:gallery_views].sum(0)
        rest_VAD = sum_AD - z_VAD * (torch.arange(len(z_VAD)) < gallery_views)[:, None, None]
        own_VA = (z_VAD * F.normalize(rest_VAD, dim=-1)).sum(-1)
        S_VAC = z_VAD @ F.normalize(sum_AD, dim=-1).T
        self_AC = torch.eye(len(sum_AD), dtype=torch.bool)
        S_VAC = torch.where(self_AC, own_VA[..., None], S_VAC) / self.temperature
        return -S_VAC.log_softmax(-1).diagonal(dim1=1, dim2=2)[:, samples].mean()


class SharedObjectsAP(LogAP):
    """LogAP that reckons with false negatives: the debiased estimate of Chuang et al. 2020.

        Σ_n e_n  becomes  N · max((mean_n e_n - prior · mean_k e_k) / (1 - prior), e^(-1 / T))

    https://arxiv.org/abs/2007.00224, equation 8, with LogAP's places.

    Args:
        temperature: see `LogAP`.
        prior: share of the negatives that are of the query's own class.
    """

    def __init__(self, *, temperature: float = 0.1, prior: float = 0.1) -> None:
        super().__init__(temperature=temperature)
        self.prior = prior

    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """See `MeanOverQueries.per_query`."""
        with torch.enable_grad():
            score_QG = S_QG.scatter(1, positive_QK, -torch.inf).requires_grad_(grad)
            own_QK = S_QK.detach().clone().requires_grad_(grad)
            count_Q = score_QG.isfinite().sum(1)
            mean_Q = (score_QG / self.temperature).exp().sum(1) / count_Q
            same_Q = (own_QK / self.temperature).exp().mean(1)
            floor = torch.tensor(-1 / self.temperature).exp()
            rest_Q = torch.maximum((mean_Q - self.prior * same_Q) / (1 - self.prior), floor)
            among_QK = (S_QK[:, None, :] > S_QK[:, :, None]).sum(-1) + 1
            logit_QK = own_QK / self.temperature + among_QK.log()
            loss_Q = F.softplus((count_Q * rest_Q).log()[:, None] - logit_QK).mean(1)
            if not grad:
                return PerQuery(loss_Q)
            dS_QG, dS_QK = torch.autograd.grad(loss_Q.sum(), (score_QG, own_QK))
        return PerQuery(loss_Q.detach(), dS_QG, dS_QK)


class MomentumRanking(JointEmbedding):
    """Joint embedding whose gallery is a moving average's embeddings of the large views.

    Args:
        momentum: of the average.
        encoder: see `JointEmbedding`, as all that follow.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        objective: Objective,
        momentum: float = 0.99,
        hidden_size: int = 512,
        embedding_size: int = 128,
        projector_layers: int = 2,
        output_norm: bool = False,
    ) -> None:
        super().__init__(
            encoder=encoder,
            objective=objective,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            projector_layers=projector_layers,
            output_norm=output_norm,
        )
        self.twin = MovingAverage(self.encoder, self.projector)
        self.momentum = momentum

    def forward(
        self,
        views: tuple[Tensor, ...],
        id_B: Tensor | None = None,
        gradient_VBD: Tensor | None = None,
    ) -> Output:
        """See `Method.forward`."""
        del id_B
        assert gradient_VBD is None
        z_VBD = torch.cat([self.embed(views_VBCHW) for views_VBCHW in views]).float()
        key_VBD = torch.cat([encode(self.twin, view) for view in large(views)]).float()
        loss = self.objective(torch.cat([key_VBD.detach(), z_VBD]), gallery_views=len(key_VBD))
        return Output(loss=loss, z_VAD=z_VBD.detach())

    def after_step(self, progress: float | Tensor) -> None:
        """See `Method.after_step`."""
        del progress
        self.twin.follow(self.encoder, self.projector, momentum=self.momentum)
