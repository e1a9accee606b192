"""One file per data set. What is imported here is what `tools.shard` offers."""

from .coco import COCO as COCO
from .copies import Copies as Copies
from .folder import Folder as Folder
from .huggingface import HuggingFace as HuggingFace
from .sample import Generated as Generated
from .source import Sample as Sample
from .source import Source as Source
from .stl10 import STL10 as STL10
from .table import Table as Table
from .webdataset import WebDataset as WebDataset
