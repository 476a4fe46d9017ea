"""Which training examples the signals are measured on."""

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from salf.engine.batches import Example, stream_examples
from salf.files import require
from stages.common.params import Signals

SPLIT: Final = "train"


def draw_sample(prepared: Path, params: Signals) -> list[Example]:
    """Draw ``signals.sample`` examples of the training split, in the order of the file.

    Raises:
        UserError: the split is missing.
    """
    count = pq.read_metadata(require(prepared / f"{SPLIT}.parquet", made_by="prepare")).num_rows
    drawn = np.random.default_rng(params.seed).permutation(count)[: params.sample]
    return list(stream_examples(prepared, SPLIT, np.sort(drawn)))
