"""The random augmentations of a view and the policies made of them.

The import list is the registry: an augmentation is one file beside these and one line here; it is
then offered by `--help`, in recipes and to the tests that every augmentation must pass.
"""

from .augment import Augment as Augment
from .augment import Draw as Draw
from .blur import Blur as Blur
from .color import Color as Color
from .crop import Crop as Crop
from .policy import BYOL as BYOL
from .policy import DINO as DINO
from .policy import S2R2 as S2R2
from .policy import GroCo as GroCo
from .policy import MoCoV2 as MoCoV2
from .policy import Policy as Policy
from .policy import SimCLR as SimCLR
from .policy import SwAV as SwAV
from .solarize import Solarize as Solarize
