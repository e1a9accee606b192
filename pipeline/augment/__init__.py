"""The random augmentations of a view and the policies made of them.

The import list is the registry: an augmentation is one file beside these and one line here; it is
then offered by `--help`, in recipes and to the tests that every augmentation must pass.
"""

from pipeline.augment.augment import Augment as Augment
from pipeline.augment.augment import Draw as Draw
from pipeline.augment.augment import PixelAugment as PixelAugment
from pipeline.augment.blur import Blur as Blur
from pipeline.augment.color import Color as Color
from pipeline.augment.crop import Crop as Crop
from pipeline.augment.policy import BYOLViews as BYOLViews
from pipeline.augment.policy import DINOViews as DINOViews
from pipeline.augment.policy import GroCoViews as GroCoViews
from pipeline.augment.policy import MoCoV2Views as MoCoV2Views
from pipeline.augment.policy import Policy as Policy
from pipeline.augment.policy import S2R2Views as S2R2Views
from pipeline.augment.policy import SimCLRViews as SimCLRViews
from pipeline.augment.policy import SwAVViews as SwAVViews
from pipeline.augment.solarize import Solarize as Solarize
