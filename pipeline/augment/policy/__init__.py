"""View policies, one file a paper.

The import list is the registry: what is named here is a choice of `--views.policy`, and is held by
the tests to the values of its paper.
"""

from .byol import BYOL as BYOL
from .dino import DINO as DINO
from .groco import GroCo as GroCo
from .moco_v2 import MoCoV2 as MoCoV2
from .policy import Policy as Policy
from .s2r2 import S2R2 as S2R2
from .simclr import SimCLR as SimCLR
from .swav import SwAV as SwAV
