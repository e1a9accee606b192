"""One file or package a command; `python -m tools` lists them."""

from training import installed
