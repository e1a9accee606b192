"""One page about runs: what they learned, from which views, and what they still confuse."""
