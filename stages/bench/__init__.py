"""The benchmark: this project compared with what people use, on one machine. It is no stage of the graph."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it remarks on missing kernels
