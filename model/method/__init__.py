"""Training methods: each computes a loss from the views of a batch.

The import list is the registry: a method is one file beside these and one line here.
"""

from model.method.byol import BYOL as BYOL
from model.method.dino import DINO as DINO
from model.method.joint_embedding import JointEmbedding as JointEmbedding
from model.method.method import MemoryRequest as MemoryRequest
from model.method.method import Method as Method
from model.method.method import Output as Output
from model.method.moco import MoCo as MoCo
from model.method.qk_iteration import QKIteration as QKIteration
from model.method.simsiam import SimSiam as SimSiam
from model.method.swav import SwAV as SwAV
