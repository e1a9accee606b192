"""One file per data set. What is imported here is what `tools.shard` offers."""

from shards.source.coco import COCO as COCO
from shards.source.copies import Copies as Copies
from shards.source.folder import ImageFolder as ImageFolder
from shards.source.generated.generated import Generated as Generated
from shards.source.huggingface import HuggingFace as HuggingFace
from shards.source.source import Sample as Sample
from shards.source.source import Source as Source
from shards.source.stl10 import STL10 as STL10
from shards.source.table import Table as Table
from shards.source.voc import VOC as VOC
from shards.source.webdataset import WebDataset as WebDataset
