"""The loss of a batch, and the measurements that tasks share."""

import torch


def loss(model, batch):
    """Returns the loss of a batch, which the model itself computes."""
    return model(**batch).loss


def mean_loss(model, batches):
    """Returns the mean loss on batches of one size."""
    model.eval()
    with torch.no_grad():
        losses = [float(loss(model, batch)) for batch in batches]
    return sum(losses) / len(losses)


def loss_and_score(model, batches):
    """Returns the mean loss and the accuracy on batches with labels."""
    model.eval()
    total, right, count = 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            found = model(**batch)
            total += float(found.loss) * len(batch["labels"])
            right += int((found.logits.argmax(-1) == batch["labels"]).sum())
            count += len(batch["labels"])
    return dict(loss=total / count, score=right / count)
