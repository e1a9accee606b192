"""One file or package a command; `python -m tools` lists them."""

import training.installed
