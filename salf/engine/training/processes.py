"""Several processes that train one model: each computes its share of a batch, gradients are added up.

The group is accelerate's. Weights are not sent: all processes start from the same file and take the same steps with
the same gradients. The main process alone draws progress and writes files.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor
from torch import distributed as dist

from salf.errors import BAD_INPUT, INTERRUPTED, UserError

# A process that is lost is noticed by its closed connection, and one may have to wait for another's long work.
_PATIENCE: Final = timedelta(days=7)
_SECONDS_TO_BE_ENDED: Final = 15.0

_CPU: Final = torch.device("cpu")

Item = TypeVar("Item")


class ProcessLostError(Exception):
    """Another process of the group is gone."""


@dataclass(frozen=True)
class Processes:
    """One's place among the processes that train together.

    What they send to each other raises :class:`ProcessLostError` where one of them is gone.
    """

    rank: int = 0  # of this one, from 0; 0 is the main process
    count: int = 1  # how many there are
    device: torch.device = _CPU  # of the tensors that they exchange

    @property
    def main(self) -> bool:
        """Whether this process writes files and draws progress."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this process: every ``count``-th."""
        return items[self.rank :: self.count]

    def add_up(self, tensor: Tensor) -> Tensor:
        """Replace the values of ``tensor`` by their sum over all processes: the same bits in each of them."""
        if self.count > 1:
            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:
                raise ProcessLostError(str(error)) from error
        return tensor

    def total(self, number: int) -> int:
        """The sum of what each process holds."""
        return sum(self._all(number))

    def agree(self, number: int, what: str) -> None:
        """Make sure that all processes hold the same number; a ``UserError`` says that they do not."""
        found = self._all(number)
        if len(set(found)) > 1:
            raise UserError(f"the processes do not see the same files: {what}: {found}; give them one folder")

    def _all(self, number: int) -> list[int]:
        numbers = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        numbers[self.rank] = number
        return self.add_up(numbers).tolist()


ALONE: Final = Processes()


def are_several() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(kind: str) -> Iterator[Processes]:
    """The processes of this training, while the block runs; ``kind`` is ``device.kind`` of the parameters.

    A fault in one ends all of them, and the first to meet it speaks for all; the others exit. A ``UserError`` says that
    there are fewer GPUs than processes, or that the others are gone without a word.
    """
    if not are_several():
        yield ALONE
        return
    cpu = kind == "cpu" or not torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if not cpu and local > torch.cuda.device_count():
        raise UserError(f"{local} processes need as many GPUs: lower finetune.processes, or set device.kind to cpu")
    state = PartialState(cpu=cpu, timeout=_PATIENCE)
    try:
        with ExitStack() as stack:
            if not state.is_main_process:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield Processes(state.process_index, state.num_processes, state.device)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None  # the launcher says so
    except ProcessLostError as error:
        time.sleep(_SECONDS_TO_BE_ENDED)  # the launcher ends us before that, and the one at fault has spoken
        reason = " ".join(str(error).split())
        raise UserError(f"lost touch with the other processes ({reason[:200]}); run again to resume") from None
    except Exception:
        if _first_at_fault():
            raise
        time.sleep(_SECONDS_TO_BE_ENDED)
        raise SystemExit(BAD_INPUT) from None
    state.destroy_process_group()


def _first_at_fault() -> bool:
    try:
        return dist.distributed_c10d._get_default_store().add("salf-fault", 1) == 1
    except RuntimeError:  # nobody answers: then nobody else speaks
        return True
