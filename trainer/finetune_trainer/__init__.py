"""The trainer: from a checked spec and rows of chat to checkpoints, on Ray Train."""

import logging

# peft imports bitsandbytes, which on some CPUs remarks that it could fetch a kernel for inference from a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
