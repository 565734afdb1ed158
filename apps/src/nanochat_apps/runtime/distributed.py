"""The ranks that torchrun starts: joins their process group and says which device is this one's."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from nanochat_train import ProcessGroup

from nanochat_apps.runtime import device as devices
from nanochat_apps.runtime.flags.common import DeviceType


@contextmanager
def joined(device_type: DeviceType) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """This rank's place and device: NCCL on CUDA (one device per rank), Gloo elsewhere; one process without torchrun.

    Afterwards the process group and its threads are gone.
    """
    device = devices.choose_device(device_type)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Its functions have the default group as a default argument, bound at import. Imported later, as torch.compile does, they
    # would keep the group alive after `destroy_process_group`, and its threads with it: one that releases a tensor while
    # the interpreter finalizes asks for the GIL, is unwound through noexcept frames, and the process aborts.
    importlib.import_module("torch.distributed.nn.functional")
    # Numbers of the host are summed on the host, which waits for no device.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup.current(), device
    finally:
        dist.destroy_process_group()
