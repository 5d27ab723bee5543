"""The optimizer, the learning rates and the order of data that all tasks share."""

import contextlib

import torch

# Part of the steps in which the rate rises.
WARM_UP = 0.05


def share(step, steps):
    """Returns the part of the full rate that step `step` (0, 1, …) of `steps` has: it rises linearly, then falls linearly towards zero."""
    rising = max(1, round(WARM_UP * steps))
    return (step + 1) / rising if step < rising else (steps - step) / (steps - rising + 1)


def steps_of(model, groups, batches, loss):
    """Trains with AdamW on the batches, one step each, and yields the number of steps after each one."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, len(batches)))
    for step, batch in enumerate(batches, 1):
        model.train()
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        yield step


def order(length, count, drawn=None):
    """Returns `count` indices below `length`: all of them again and again, each time in another order."""
    rounds = -(-count // length)
    return torch.cat([torch.randperm(length, generator=drawn) for _ in range(rounds)])[:count]


@contextlib.contextmanager
def one_thread():
    """Lets torch use one thread, as the number of threads can change sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
