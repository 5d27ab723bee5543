"""Adds the statistics of several processes of torch.distributed."""

from __future__ import annotations

import torch

from ._cntlora import Statistics
from .errors import Error, error


def count() -> int:
    """Returns the number of processes of torch.distributed, 1 without it."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def added(own: Statistics) -> Statistics:
    """Returns the sums of all processes, the same on each of them. Every process has to call it. Changes `own`.

    Raises an `Error` on all processes if the sums of two of them cannot be added, such as those of the same rows.
    """
    make_sites_equal(own)
    distributed = torch.distributed
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    failure: str | None = None
    step = 1
    while step < processes:
        if rank % (2 * step) == step:
            send(own.to_bytes(), rank - step)
            break
        if rank + step < processes:
            try:
                own.merge(Statistics.from_bytes(receive(rank + step)))
            except Error as problem:
                # The other processes wait for this one, so it goes on until all of them know.
                failure = str(problem)
        step *= 2
    failures: list[str | None] = [None] * processes
    distributed.all_gather_object(failures, failure)
    if found := next(filter(None, failures), None):
        raise error("data", f"the sums of the processes cannot be added: {found}")
    data = own.to_bytes() if rank == 0 else b""
    data = broadcast(data)
    return own if rank == 0 else Statistics.from_bytes(data)


def make_sites_equal(own: Statistics) -> None:
    """Divides and names the sites of each process in the same way. Modules stay together if they share a site on every process."""
    sites = {site.name: list(site.modules) for site in own.sites().values()}
    gathered: list[dict[str, list[str]]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, sites)
    signature: dict[str, list[str | None]] = {}
    for number, of_process in enumerate(gathered):
        for site, modules in of_process.items():
            for module in modules:
                signature.setdefault(module, [None] * len(gathered))[number] = site
    together: dict[tuple[str | None, ...], list[str]] = {}
    for module, places in signature.items():
        together.setdefault(tuple(places), []).append(module)
    for site, modules in sites.items():
        parts = [part for part in together.values() if part[0] in modules]
        parts.sort(key=lambda part: site in part)
        for part in parts:
            if part[0] != site:
                own.split(site, part, part[0])


def device() -> torch.device:
    """Returns the device that the processes send from."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.distributed.get_backend() == "nccl" else torch.device("cpu")


def send(data: bytes, to: int) -> None:
    torch.distributed.send(torch.tensor([len(data)], device=device()), to)
    torch.distributed.send(torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device()), to)


def receive(sender: int) -> bytes:
    length = torch.zeros(1, dtype=torch.int64, device=device())
    torch.distributed.recv(length, sender)
    data = torch.empty(int(length), dtype=torch.uint8, device=device())
    torch.distributed.recv(data, sender)
    return data.cpu().numpy().tobytes()


def broadcast(data: bytes) -> bytes:
    """Returns the data of the first process."""
    length = torch.tensor([len(data)], device=device())
    torch.distributed.broadcast(length, 0)
    tensor = torch.empty(int(length), dtype=torch.uint8, device=device())
    if torch.distributed.get_rank() == 0:
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device())
    torch.distributed.broadcast(tensor, 0)
    return tensor.cpu().numpy().tobytes()
