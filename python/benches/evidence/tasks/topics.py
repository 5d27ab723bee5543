"""MiniLM learns the archive section of a package from its one-line description. CNTLORA_MINILM and CNTLORA_SECTIONS name the data."""

import functools
import json
import pathlib

import torch

import prepared
from measures import loss, loss_and_score
from prepared import from_environment
from schedule import steps_of

TITLE = "MiniLM, topics of packages"
MEASURE, BETTER = "score", "higher"
RATES = (1e-3, 3.16e-3, 1e-2, 3.16e-2)

# Tokens behind the twelfth are cut off.
STEPS, BATCH, LONGEST = 40, 16, 12
# Steps after which the test texts are measured.
MEASURED = (10, 20, 30, 40)
TEST, TEST_BATCH = 320, 32
KEPT = 64
# Batches for starts that need data.
LOADED = 16
EMBEDDINGS = f"topics/embeddings-{KEPT}-{LONGEST}.pt"
DESCRIPTION = (
    "MiniLM (all-MiniLM-L6-v2, 6 layers of width 384), trained for sentence embeddings, learns which of 20 sections a package belongs to "
    f"from its one-line description (at most {LONGEST} tokens). "
    f"LoRA of rank 8 on the 36 linear layers of the encoder and a new head, {STEPS} steps of {BATCH} texts; the score is accuracy on {TEST} "
    f"texts. Kept is the mean cosine similarity of the mean-pooled embeddings of {KEPT} descriptions from other sections with the base's."
)


def model_folder():
    return from_environment("CNTLORA_MINILM", "a folder with MiniLM in `model`") / "model"


@functools.cache
def sections():
    """Returns the texts: lists `train` and `test` of pairs of a text and a label, `source` of texts, and `labels`."""
    return json.loads(from_environment("CNTLORA_SECTIONS", "the file sections.json").read_text(encoding="utf-8"))


@functools.cache
def tokenizer():
    import transformers

    return transformers.AutoTokenizer.from_pretrained(model_folder())


def batch_of(texts, labels=None):
    batch = dict(tokenizer()(texts, return_tensors="pt", padding=True, truncation=True, max_length=LONGEST))
    if labels is not None:
        batch["labels"] = torch.tensor(labels)
    return batch


def labelled(pairs, size):
    """Returns batches of pairs of a text and a label, in their order."""
    parts = (pairs[first : first + size] for first in range(0, len(pairs), size))
    return [batch_of([text for text, _ in part], [label for _, label in part]) for part in parts]


def by_length(pairs):
    """Returns pairs of a text and a label, sorted by the number of tokens so that batches have little padding."""
    return sorted(pairs, key=lambda pair: len(tokenizer()(pair[0])["input_ids"]))


def training_batches(seed):
    """Returns the batches of one run: texts drawn by the seed, grouped by length, in an order drawn by the seed."""
    drawn = torch.Generator().manual_seed(seed)
    pairs = sections()["train"]
    texts = torch.randperm(len(pairs), generator=drawn)[: STEPS * BATCH].tolist()
    batches = labelled(by_length(pairs[index] for index in texts), BATCH)
    return [batches[index] for index in torch.randperm(STEPS, generator=drawn).tolist()]


@functools.cache
def test_batches():
    """Returns the first test texts."""
    return labelled(by_length(sections()["test"][:TEST]), TEST_BATCH)


def kept_batch():
    """Returns texts of other sections, behind those of `source()`."""
    return batch_of(sections()["source"][-KEPT:])


def embeddings(model, batch):
    """Returns the mean of the last hidden states of each text."""
    model.eval()
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states[-1]
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1)


def prepare(folder):
    """Writes the base's embeddings of the texts that measure forgetting."""
    path = pathlib.Path(folder) / EMBEDDINGS
    if not path.exists():
        prepared.save(embeddings(make_model(0), kept_batch()), path)


@functools.cache
def base_embeddings():
    return torch.load(prepared.folder() / EMBEDDINGS, weights_only=True)


def make_model(seed):
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(seed)
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        model_folder(), num_labels=len(sections()["labels"]), dtype=torch.float32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def config():
    from peft import LoraConfig

    # The pooler, which the head reads, is not part of the encoder.
    targets = r".*\.encoder\.layer\..*\.(query|key|value|dense)"
    return LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=8, target_modules=targets)


def loader():
    return labelled(sections()["train"][: LOADED * BATCH], BATCH)


def source():
    texts = sections()["source"]
    return [batch_of(texts[first : first + BATCH]) for first in range(0, LOADED * BATCH, BATCH)]


def kept(model):
    """Returns how similar the embeddings of texts of other sections are to those of the base: 1 if they are the same."""
    return float(torch.nn.functional.cosine_similarity(embeddings(model, kept_batch()), base_embeddings()).mean())


def train(model, groups, seed):
    batches = training_batches(seed)
    yield dict(step=0, **loss_and_score(model, test_batches()), kept=kept(model))
    for step in steps_of(model, groups, batches, loss):
        if step in MEASURED:
            yield dict(step=step, **loss_and_score(model, test_batches()), **(dict(kept=kept(model)) if step == STEPS else {}))
