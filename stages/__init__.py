"""The rooms of the pipeline: one per DVC stage, and ``common`` for what several of them share."""

import os

# Read by OpenMP when torch loads, so it is set before any stage can import it. By default a thread that
# waits for another spins on its core: beside any other busy process a step then takes several times as
# long, and what is measured is the neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
