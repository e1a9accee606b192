"""Training methods: what a step computes from the views of a batch.

The import list is the registry: a method is one file beside these and one line here.
"""

from .byol import BYOL as BYOL
from .joint_embedding import JointEmbedding as JointEmbedding
from .method import MemoryRequest as MemoryRequest
from .method import Method as Method
from .method import Output as Output
from .moco import MoCo as MoCo
from .qk_iteration import QKIteration as QKIteration
from .simsiam import SimSiam as SimSiam
from .swav import SwAV as SwAV
