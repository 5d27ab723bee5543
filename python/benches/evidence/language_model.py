"""A small language model that `prepare` trains on English documentation, and what the tasks that move it to other texts share."""

import functools
import pathlib

import torch

import prepared
import texts
from measures import loss, mean_loss
from packages import pip_files
from schedule import one_thread, order, steps_of

# Packages with the docstrings that the base learns.
ENGLISH = {"sympy": "1.14.0", "networkx": "3.6.1", "xarray": "2026.9.0", "dask": "2026.8.0", "django": "5.2.19"}
VOCABULARY, LENGTH = 1024, 96
SHAPE = dict(hidden_size=128, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4)
# The training of the base.
BASE_STEPS, BASE_BATCH, BASE_RATE = 1600, 16, 3e-3
# The fine-tuning.
STEPS, BATCH, RANK = 48, 8, 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Steps after which the test texts are measured.
MEASURED = (4, 8, 14, 24, 36, STEPS)
# Pieces of text that measure the loss, and how many are run at once.
TEST, TEST_BATCH = 48, 16
# Batches for starts that need data.
LOADED = 32
END = "<end>"
BASE = (
    f"A Llama-shaped model of {SHAPE['num_hidden_layers']} layers of width {SHAPE['hidden_size']} with {VOCABULARY} byte pairs, trained on "
    "the sentences of the docstrings of " + ", ".join(ENGLISH) + ". "
)
TUNING = (
    f"LoRA of rank {RANK} on all linear layers of the blocks, {STEPS} steps of {BATCH} pieces of {LENGTH} tokens; the loss is the mean "
    f"over {TEST * (LENGTH - 1)} tokens of other {{parts}}. Kept is the loss on docstrings of files that the base has not seen."
)


def english(folder):
    """Returns the English texts for training and for tests, one for each file. No paragraph occurs twice."""
    sets, seen = ([], []), set()
    for name, version in ENGLISH.items():
        root = pip_files(name, version, folder / "packages")
        for path in python_files(root):
            paragraphs = [paragraph for text in texts.docstrings(read(path)) for paragraph in texts.prose(text)]
            paragraphs = [paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph not in seen]
            seen.update(paragraphs)
            if paragraphs:
                sets[texts.is_held_out(f"{name}/{path.relative_to(root).as_posix()}")].append("\n".join(paragraphs))
    return sets


def python_files(root):
    """Returns the Python files of a package in a fixed order, without tests and migrations."""
    paths = (path for path in root.rglob("*.py") if not {"tests", "test", "migrations"} & set(path.relative_to(root).parts))
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def read(path):
    return path.read_text(encoding="utf-8", errors="replace")


def pieces(tokenizer, parts):
    """Returns the texts, each followed by the mark of the end, cut into rows of `LENGTH` tokens. The rest at the end is left out."""
    end = tokenizer.token_to_id(END)
    tokens = [token for encoding in tokenizer.encode_batch(parts) for token in (*encoding.ids, end)]
    count = len(tokens) // LENGTH
    return torch.tensor(tokens[: count * LENGTH], dtype=torch.int32).view(count, LENGTH)


def spread(rows, count):
    """Returns `count` rows at equal distances."""
    if len(rows) < count:
        raise RuntimeError(f"the texts have {len(rows)} pieces of {LENGTH} tokens; {count} are needed")
    return rows[torch.arange(count) * len(rows) // count]


def batches_of(rows, size):
    """Returns batches of rows in their order, as the model takes them."""
    parts = (part.long() for part in rows.split(size))
    return [dict(input_ids=part, attention_mask=torch.ones_like(part), labels=part) for part in parts]


def prepare(folder, name, sets):
    """Prepares the base, and the rows of a task. `sets` is a function of the folder that returns the texts for training and for tests."""
    folder = pathlib.Path(folder)
    prepare_base(folder)
    save_rows(folder, name, tokenizer_of(folder), sets)


def prepare_base(folder):
    """Trains the tokenizer and the base, and saves the base as a checkpoint. A second call finds them."""
    place = folder / "language"
    if (place / "base" / "config.json").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    trained, held_out = english(folder)
    if not (place / "tokenizer.json").exists():
        train_tokenizer(trained).save(str(place / "tokenizer.json"))
    save_rows(folder, "language", tokenizer_of(folder), lambda _: (trained, held_out))
    model = train_base(rows_of(folder, "language")["train"])
    prepared.save_base(model, place / "base")


def train_tokenizer(parts):
    """Returns a tokenizer of byte pairs, trained on texts."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(parts, trainer)
    return tokenizer


def tokenizer_of(folder):
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(folder / "language" / "tokenizer.json"))


@one_thread()
def train_base(rows):
    """Returns the model, trained on rows."""
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, max_position_embeddings=LENGTH, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, **SHAPE
        )
    )
    chosen = order(len(rows), BASE_STEPS * BASE_BATCH)
    for _ in steps_of(model, [dict(params=list(model.parameters()), lr=BASE_RATE)], batches_of(rows[chosen], BASE_BATCH), loss):
        pass
    return model


def save_rows(folder, name, tokenizer, sets):
    """Saves the rows of texts for training and for tests. A second call finds them."""
    path = folder / name / "rows.pt"
    if not path.exists():
        trained, held_out = sets(folder)
        prepared.save(dict(train=pieces(tokenizer, trained), test=spread(pieces(tokenizer, held_out), TEST)), path)


@functools.cache
def rows_of(folder, name):
    return torch.load(folder / name / "rows.pt", weights_only=True)


def make_model(seed):
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM.from_pretrained(prepared.folder() / "language" / "base", dtype=torch.float32)


def config():
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules=TARGETS)


def first_batches(name):
    """Returns the first batches of the training texts of a task, or of the base with the name `language`."""
    return batches_of(rows_of(prepared.folder(), name)["train"][: LOADED * BATCH], BATCH)


def source():
    """Returns the first batches of the texts of the base."""
    return first_batches("language")


def test_loss(model, name):
    """Returns the mean loss of a token of the test texts."""
    return mean_loss(model, batches_of(rows_of(prepared.folder(), name)["test"], TEST_BATCH))


def train(name, model, groups, seed):
    """Trains on the texts of a task in an order that depends on the seed only, and yields the measurements."""
    rows = rows_of(prepared.folder(), name)["train"]
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: STEPS * BATCH]
    yield dict(step=0, loss=test_loss(model, name), kept=test_loss(model, "language"))
    for step in steps_of(model, groups, batches_of(rows[chosen], BATCH), loss):
        if step in MEASURED:
            kept = dict(kept=test_loss(model, "language")) if step == STEPS else {}
            yield dict(step=step, loss=test_loss(model, name), **kept)
