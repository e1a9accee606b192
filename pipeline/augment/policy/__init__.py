"""View policies, one file a paper.

The import list is the registry: a policy that is named here is a choice of `--views.policy`, and
tests hold it to the values of its paper.
"""

from pipeline.augment.policy.byol_views import BYOL as BYOL
from pipeline.augment.policy.dino_views import DINO as DINO
from pipeline.augment.policy.groco_views import GroCo as GroCo
from pipeline.augment.policy.moco_v2_views import MoCoV2 as MoCoV2
from pipeline.augment.policy.policy import Policy as Policy
from pipeline.augment.policy.s2r2_views import S2R2 as S2R2
from pipeline.augment.policy.simclr_views import SimCLR as SimCLR
from pipeline.augment.policy.swav_views import SwAV as SwAV
