"""The denoising task of the evidence: its images, noise, batches, model and run. Nothing is downloaded and no base is needed."""

import pathlib
import sys
import types

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benches" / "evidence"))

import handwriting  # noqa: E402
from tasks import denoising  # noqa: E402


def test_small_images_keep_the_mean_and_the_range():
    """White becomes 1 and black -1, and an image is averaged, not sampled."""
    images = torch.rand(3, 28, 28, generator=handwriting.seeded(0))
    images[0], images[1] = 1, 0
    small = denoising.small(images)
    assert small.shape == (3, 1, 16, 16)
    assert small[0].min() == pytest.approx(1) and small[1].max() == -1
    assert (small[2].mean() + 1) / 2 == pytest.approx(images[2].mean().item(), abs=0.02)
    assert small[2].std() / 2 < 0.75 * images[2].std()


def test_noise_is_added_as_its_time_says():
    """The sample is a mix of the image and the given noise, with the share of the schedule: nearly the image at first, noise at last."""
    images = torch.full((40, 1, 16, 16), 0.5)
    batch = denoising.noisy(images, handwriting.seeded(5), 40)[0]
    times, noise = batch["timestep"], batch["noise"]
    # The cosine schedule: the image's share is proportional to cos²((t + .008) / 1.008 · π/2), up to the last steps, whose size is limited.
    part = torch.cat([times.double() + 1, torch.zeros(1)]) / 1000
    share = torch.cos((part + 0.008) / 1.008 * torch.pi / 2) ** 2
    share = (share[:-1] / share[-1]).view(-1, 1, 1, 1)
    wanted = share.sqrt() * 0.5 + (1 - share).sqrt() * noise
    inside = times < 990
    assert torch.allclose(batch["sample"][inside].double(), wanted[inside], atol=1e-4)
    assert abs(noise.mean()) < 0.03 and noise.std() == pytest.approx(1, abs=0.03)


def test_times_of_every_batch_are_spread():
    """Each batch has one time in each part of equal length, in random order, and the last batch is smaller."""
    batches = denoising.noisy(torch.zeros(50, 1, 16, 16), handwriting.seeded(5), 20)
    assert [len(batch["timestep"]) for batch in batches] == [20, 20, 10]
    for batch in batches:
        width = denoising.TIMES // len(batch["timestep"])
        assert (batch["timestep"].sort().values // width).tolist() == list(range(len(batch["timestep"])))
    assert batches[0]["timestep"].tolist() != batches[0]["timestep"].sort().values.tolist()
    assert not torch.equal(batches[0]["timestep"], batches[1]["timestep"])


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Writes squares of one shade without textures, and characters in the font that pillow carries, in place of the real ones."""
    from PIL import ImageFont

    monkeypatch.setattr(handwriting, "on_backgrounds", lambda images, generator: images)
    monkeypatch.setenv("CNTLORA_EVIDENCE", str(tmp_path))
    (tmp_path / "handwriting").mkdir()
    count = handwriting.TRAINING + handwriting.TEST
    digits = torch.arange(count).view(-1, 1, 1).expand(-1, 28, 28) / count
    torch.save(dict(images=digits, labels=torch.arange(count)), tmp_path / "handwriting" / "digits.pt")
    drawings = torch.stack([handwriting.glyph(ImageFont.load_default(40), character) for character in "0123456789"] * 40)
    glyphs = drawings, torch.arange(10).repeat(40)
    torch.save(dict(seen=glyphs, unseen=glyphs), tmp_path / "handwriting" / "glyphs.pt")
    caches = handwriting.written, handwriting.printed, denoising.digits, denoising.test_batches, denoising.kept_batches
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def clean(batch):
    """Returns the number of the digit in each row of a batch, from the sample and its noise."""
    share = denoising.diffusion().alphas_cumprod[batch["timestep"]].view(-1, 1, 1, 1)
    images = (batch["sample"] - (1 - share).sqrt() * batch["noise"]) / share.sqrt()
    certain = batch["timestep"] < 900
    numbers = ((images.mean((1, 2, 3)) + 1) / 2 * (handwriting.TRAINING + handwriting.TEST)).round().long()
    return numbers[certain].tolist()


def test_batches_depend_on_the_seed_only(images):
    """Training digits never occur in the test, and the noise differs from step to step."""
    drawn = denoising.training_batches(3)
    assert len(drawn) == denoising.STEPS and all(len(batch["sample"]) == denoising.BATCH for batch in drawn)
    same = denoising.training_batches(3)
    assert all(torch.equal(one[name], other[name]) for one, other in zip(drawn, same) for name in one)
    assert not torch.equal(drawn[0]["noise"], denoising.training_batches(4)[0]["noise"])
    assert not torch.equal(drawn[0]["noise"], drawn[1]["noise"])
    trained = {number for batch in drawn for number in clean(batch)}
    tested = {number for batch in denoising.test_batches() for number in clean(batch)}
    assert len(trained) > 350 and max(trained) < handwriting.TRAINING
    assert len(tested) > 80 and min(tested) >= handwriting.TRAINING and max(tested) < handwriting.TRAINING + denoising.TEST
    loaded = {number for batch in denoising.loader() for number in clean(batch)}
    assert max(loaded) < denoising.LOADED * denoising.BATCH
    for batches in (denoising.loader(), denoising.source()):
        assert [batch["sample"].shape for batch in batches] == [(denoising.BATCH, 1, 16, 16)] * denoising.LOADED


def test_the_base_is_trained_once_and_loaded(images, monkeypatch):
    """LoRA adapts convolutions and linear layers, and leaves out those at both ends. The loss is the error of the predicted noise."""
    import peft

    for name, value in dict(BASE_STEPS=2, BASE_BATCH=4).items():
        monkeypatch.setattr(denoising, name, value)
    monkeypatch.setitem(denoising.SHAPE, "block_out_channels", (8, 16))
    monkeypatch.setattr(handwriting, "npm_files", None)
    monkeypatch.setattr(handwriting, "pip_files", None)
    threads = torch.get_num_threads()
    denoising.prepare(images)
    torch.set_num_threads(threads)
    monkeypatch.setattr(denoising, "trained_base", None)
    denoising.prepare(images)
    model = denoising.make_model(0)
    batch = denoising.loader()[0]
    found = model(**batch)
    assert found.loss.item() == pytest.approx(((found.sample - batch["noise"]) ** 2).mean().item())
    assert torch.equal(found.sample, model(batch["sample"], batch["timestep"]).sample)
    adapted = peft.get_peft_model(model, denoising.config())
    shapes = [parameter.dim() for name, parameter in adapted.named_parameters() if "lora_A" in name]
    assert shapes.count(4) == 23 and shapes.count(2) == 26
    assert not any("lora" in name for name, _ in adapted.named_parameters() if name.startswith(("base_model.model.conv_",)))
    denoising.loss(adapted, batch).backward()


class Noted(torch.nn.Module):
    """A model whose loss is a weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, sample, timestep, noise):
        return types.SimpleNamespace(loss=self.weight.sum())


def test_a_run_measures_before_in_between_and_at_the_end(images):
    model = Noted()
    points = list(denoising.train(model, [dict(params=[model.weight], lr=0.01)], 1))
    assert [point["step"] for point in points] == [0, *denoising.MEASURED] and points[-1]["step"] == denoising.STEPS
    assert [point["step"] for point in points if "kept" in point] == [0, denoising.STEPS]
    losses = [point["loss"] for point in points]
    assert losses[0] == 1 and losses == sorted(losses, reverse=True) and points[-1]["kept"] == losses[-1]


def test_the_folder_must_be_named(monkeypatch):
    monkeypatch.delenv("CNTLORA_EVIDENCE", raising=False)
    with pytest.raises(RuntimeError, match="CNTLORA_EVIDENCE is not set; it names the folder of `prepare`"):
        denoising.make_model(0)
