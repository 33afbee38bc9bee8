"""Ways to spoil a good checkpoint. Each must be refused in one line, and leave no output behind.

`HOSTILE` maps a name to a function that spoils the folder of a good tiny checkpoint (see `checkpoints.write_tiny`) and
returns a piece of text that the refusal must contain: the file or key it is about.
"""

from hostile_checkpoints import config, shards, tokenizer, weights
from hostile_checkpoints.spoil import HOSTILE

__all__ = ["HOSTILE", "config", "shards", "tokenizer", "weights"]
