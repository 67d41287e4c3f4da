"""How a run behaves towards what lies around it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .harness import Harness


@dataclass(frozen=True)
class RunOptions:
    """How a run behaves towards files, devices, other processes and the screen; none of it changes a row.

    device_map (auto, balanced, sequential), max_memory, offload_folder: of transformers, for a model that does not fit
    one device: it is spread over GPUs, main memory and a disk.

    wait_lock: wait for another process that works on the experiment. on_conflict: stop, new-suffix or archive, where
    rows of another configuration lie under the same name. rebuild: take rows that the journal has lost from the JSON.
    harness: tasks of lm-evaluation-harness that probe every cell.
    """

    output_dir: str | os.PathLike = "results"
    device: str | None = None
    device_map: str | None = None
    max_memory: Mapping[int | str, str] | None = None
    offload_folder: str | None = None
    trust_remote_code: bool = False
    force_fp16: bool = False
    wait_lock: bool = False
    on_conflict: str = "stop"
    rebuild: bool = False
    progress: bool = True
    harness: Harness | None = None
