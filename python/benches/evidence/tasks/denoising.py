"""A small diffusion model of printed characters learns handwritten digits on textures."""

import dataclasses
import functools
import pathlib

import diffusers
import torch

import handwriting
import prepared
from measures import loss, mean_loss
from schedule import one_thread, order, steps_of

TITLE = "Diffusion model, handwriting on textures"
MEASURE, BETTER = "loss", "lower"
RATES = (1e-3, 3.16e-3, 1e-2, 3.16e-2)

SIZE, TIMES = 16, 1000
SHAPE = dict(
    sample_size=SIZE, in_channels=1, out_channels=1, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
    attention_head_dim=16, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
# The training of the base.
BASE_STEPS, BASE_BATCH, BASE_RATE = 800, 64, 2e-3
# The fine-tuning.
STEPS, BATCH, RANK = 28, 16, 4
# Linear layers of attention and of the time, and convolutions. Those at both ends have one channel, which needs no adapter.
TARGETS = r".*\.(to_[qkv]|to_out\.0|time_emb_proj|linear_[12]|conv[12]?|conv_shortcut)"
# Steps after which the test images are measured.
MEASURED = (3, 6, 10, 15, 21, STEPS)
# Images that measure the loss, and how many are run at once.
TEST, TEST_BATCH = 96, 48
# Batches for starts that need data.
LOADED = 8
DESCRIPTION = (
    "A U-Net of convolutions and attention (diffusers' UNet2DModel with {channels} channels), trained to predict the noise of printed "
    "characters of {size} × {size} pixels, learns handwritten digits on textures. LoRA of rank {rank} on 23 convolutions and 26 linear "
    "layers, which are all but the convolutions at both ends, {steps} steps of {batch} of the {training} training digits; the loss is the "
    "mean squared error of the predicted noise on {test} other digits, with the same noise and times in all runs. Kept is the loss on "
    "printed characters of fonts that the base has not seen."
).format(
    channels=" and ".join(map(str, SHAPE["block_out_channels"])), size=SIZE, rank=RANK, steps=STEPS, batch=BATCH,
    training=handwriting.TRAINING, test=TEST,
)  # fmt: skip


@dataclasses.dataclass
class Denoised:
    """The predicted noise, and its mean squared error."""

    sample: torch.Tensor
    loss: torch.Tensor | None


class Denoiser(diffusers.UNet2DModel):
    """The U-Net, which also returns the loss if it is given the true noise."""

    def forward(self, sample, timestep, noise=None):
        predicted = super().forward(sample, timestep).sample
        return Denoised(predicted, None if noise is None else torch.nn.functional.mse_loss(predicted, noise))


def small(images):
    """Returns images (values from 0 to 1) with `SIZE` pixels a side and values from -1 to 1, as [images, 1, SIZE, SIZE]."""
    sized = torch.nn.functional.interpolate(images.unsqueeze(1), size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return 2 * sized.clamp(0, 1) - 1


@functools.cache
def diffusion():
    return diffusers.DDPMScheduler(num_train_timesteps=TIMES, beta_schedule="squaredcos_cap_v2")


def noisy(images, drawn, size):
    """Returns batches of small images with noise. The times of a batch are spread evenly, so that batches differ little in difficulty."""
    batches = []
    for part in images.split(size):
        count = len(part)
        places = (torch.randperm(count, generator=drawn) + torch.rand(count, generator=drawn)) / count
        times = (places * TIMES).long().clamp(max=TIMES - 1)
        noise = torch.randn(part.shape, generator=drawn)
        batches.append(dict(sample=diffusion().add_noise(part, noise, times), timestep=times, noise=noise))
    return batches


def prepare(folder):
    """Gets the characters and the digits, and trains the base on the characters."""
    handwriting.prepare_images(folder)
    place = pathlib.Path(folder) / "denoising"
    if (place / "base").exists():
        return
    drawings, _ = torch.load(pathlib.Path(folder) / "handwriting" / "glyphs.pt", weights_only=True)["seen"]
    prepared.save_base(trained_base(drawings), place / "base")


@one_thread()
def trained_base(drawings):
    """Returns the U-Net, trained on printed characters, each time moved and with noise in another way."""
    torch.manual_seed(0)
    model = Denoiser(**SHAPE)
    drawn = handwriting.seeded(0)
    chosen = torch.randint(len(drawings), (BASE_STEPS * BASE_BATCH,), generator=drawn)
    images = torch.cat([small(handwriting.moved(drawings[part], drawn)) for part in chosen.split(BASE_BATCH)])
    groups = [dict(params=list(model.parameters()), lr=BASE_RATE)]
    for _ in steps_of(model, groups, noisy(images, drawn, BASE_BATCH), loss):
        pass
    return model.eval()


def make_model(seed):
    """Returns the base. It has no new head, so the seed changes nothing."""
    return Denoiser.from_pretrained(prepared.folder() / "denoising" / "base")


def config():
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS)


@functools.cache
def digits():
    """Returns the small images of handwritten digits: those for training and, behind them, those for the test."""
    return small(handwriting.written(True)[0])


def loader():
    return noisy(digits()[: LOADED * BATCH], handwriting.seeded(1), BATCH)


def source():
    images, _ = handwriting.some_printed("seen", LOADED * BATCH, 2)
    return noisy(small(images), handwriting.seeded(2), BATCH)


@functools.cache
def test_batches():
    return noisy(digits()[handwriting.TRAINING :][:TEST], handwriting.seeded(3), TEST_BATCH)


@functools.cache
def kept_batches():
    images, _ = handwriting.some_printed("unseen", TEST, 4)
    return noisy(small(images), handwriting.seeded(4), TEST_BATCH)


def training_batches(seed):
    """Returns the batches of one run: training digits, their noise and times, which the seed decides."""
    drawn = handwriting.seeded(seed)
    return noisy(digits()[order(handwriting.TRAINING, STEPS * BATCH, drawn)], drawn, BATCH)


def train(model, groups, seed):
    def point(step):
        kept = dict(kept=mean_loss(model, kept_batches())) if step in (0, STEPS) else {}
        return dict(step=step, loss=mean_loss(model, test_batches()), **kept)

    yield point(0)
    for step in steps_of(model, groups, training_batches(seed), loss):
        if step in MEASURED:
            yield point(step)
