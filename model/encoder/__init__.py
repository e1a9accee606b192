"""Encoders, which are kept after training: networks of torchvision and timm without classifiers.

The imports below are the registry: a class that is named here is a choice of
`--method.encoder`.
"""

from model.encoder.encoder import Encoder as Encoder
from model.encoder.resnet import ResNet as ResNet
from model.encoder.small_resnet import SmallResNet as SmallResNet
from model.encoder.timm import Timm as Timm
