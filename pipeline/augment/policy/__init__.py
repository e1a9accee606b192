"""View policies, one file a paper.

The import list is the registry: a policy that is named here is a choice of `--views.policy`, and
tests hold it to the values of its paper.
"""

from pipeline.augment.policy.byol_views import BYOLViews as BYOLViews
from pipeline.augment.policy.dino_views import DINOViews as DINOViews
from pipeline.augment.policy.groco_views import GroCoViews as GroCoViews
from pipeline.augment.policy.moco_v2_views import MoCoV2Views as MoCoV2Views
from pipeline.augment.policy.policy import Policy as Policy
from pipeline.augment.policy.s2r2_views import S2R2Views as S2R2Views
from pipeline.augment.policy.simclr_views import SimCLRViews as SimCLRViews
from pipeline.augment.policy.swav_views import SwAVViews as SwAVViews
