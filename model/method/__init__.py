"""Training methods: what a step computes from the views of a batch.

The import list is the registry: a method is one file beside these and one line here.
"""

from .joint_embedding import JointEmbedding as JointEmbedding
from .method import MemoryRequest as MemoryRequest
from .method import Method as Method
from .method import Output as Output
from .qk_iteration import QKIteration as QKIteration
