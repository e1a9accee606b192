"""The random augmentations of a view and the policies made of them.

The import list is the registry: an augmentation is one file beside these and one line here; it is
then offered by `--help`, in recipes and to the tests that every augmentation must pass.
"""

from pipeline.augment.augment import Augment as Augment
from pipeline.augment.augment import Draw as Draw
from pipeline.augment.blur import Blur as Blur
from pipeline.augment.color import Color as Color
from pipeline.augment.crop import Crop as Crop
from pipeline.augment.policy import BYOL as BYOL
from pipeline.augment.policy import DINO as DINO
from pipeline.augment.policy import S2R2 as S2R2
from pipeline.augment.policy import GroCo as GroCo
from pipeline.augment.policy import MoCoV2 as MoCoV2
from pipeline.augment.policy import Policy as Policy
from pipeline.augment.policy import SimCLR as SimCLR
from pipeline.augment.policy import SwAV as SwAV
from pipeline.augment.solarize import Solarize as Solarize
