"""Training methods: what a step computes from the views of a batch.

The import list is the registry: a method is one file beside these and one line here.
"""

from model.method.joint_embedding import JointEmbedding as JointEmbedding
from model.method.method import Method as Method
from model.method.method import Output as Output
