"""The engine: a library of its own that fine-tunes with differential privacy, no server needed."""

import logging

# PEFT imports bitsandbytes wherever it is installed, and that warns everyone, whether anything is
# quantised or not, of a faster kernel that it has not found on the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
