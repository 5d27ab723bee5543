"""Inputs that several layers read count once, and layers never share a site if their inputs differ."""

import numpy as np
import pytest
import torch

import oracle
from cntlora.errors import Error
from cntlora.recorder import Recorder
from recording import Shared, hooks, run, sums


def test_layers_with_one_input_share_a_site(tmp_path):
    model, x = Shared(), torch.randn(4, 5)
    recorder = run(model, dict(x=x))
    assert {name: site.modules for name, site in recorder.statistics.sites().items()} == {"a": ["a", "b"], "c": ["c"]}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_input_that_changes_in_place_is_not_shared(mode, tmp_path):
    """The memory is the same, but not the content. In inference mode, torch does not count changes."""
    model = Shared()

    def step(model, x):
        x = x * 1
        model.a(x)
        x.add_(1)
        model.b(x)
        return model.c(x)

    model.step = step
    x = torch.randn(4, 5)
    with Recorder(model) as recorder, mode():
        model(x)
    found = sums(recorder, tmp_path)
    assert set(found) == {"a", "b"}
    oracle.check(found["a"], x.double().numpy(), "a")
    oracle.check(found["b"], (x + 1).double().numpy(), "b")


def test_memory_that_is_used_again_is_not_shared(tmp_path):
    """The second input may get the memory of the first one."""
    model = Shared()
    inputs = [torch.randn(4, 5) for _ in range(3)]

    def step(model, x):
        for layer, one in zip((model.a, model.b, model.c), inputs):
            layer(one.clone())

    model.step = step
    found = sums(run(model, dict(x=torch.zeros(1))), tmp_path)
    for name, rows in zip("abc", inputs):
        oracle.check(found[name], rows.double().numpy(), name)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_layers_that_read_different_inputs_later_are_separated(mode, tmp_path):
    """Layers share a site in the first batches, and not in a later one: the sums of both are exact."""
    model = Shared()
    batches = [torch.randn(4, 5) for _ in range(3)]

    def apart(model, x):
        model.a(x)
        model.b(2 * x)
        model.c(x)

    with Recorder(model) as recorder, mode():
        model(batches[0])
        model(batches[1])
        model.step = apart
        model(batches[2])
    found = sums(recorder, tmp_path)
    rows = [batch.double().numpy() for batch in batches]
    assert set(found) == {"a", "b", "c"}
    oracle.check(found["a"], np.concatenate(rows), "a")
    oracle.check(found["b"], np.concatenate([*rows[:2], 2 * rows[2]]), "b")
    oracle.check(found["c"], np.concatenate([rows[0] + 1, rows[1] + 1, rows[2]]), "c")


def test_a_layer_that_is_not_called_later_is_separated(tmp_path):
    model = Shared()
    batches = [torch.randn(4, 5) for _ in range(3)]
    with Recorder(model) as recorder, torch.no_grad():
        model(batches[0])
        model.step = lambda model, x: model.b(x)
        model(batches[1])
        model.step = lambda model, x: model.a(x)
        model(batches[2])
    found, rows = sums(recorder, tmp_path), [batch.double().numpy() for batch in batches]
    oracle.check(found["a"], np.concatenate([rows[0], rows[2]]), "a")
    oracle.check(found["b"], np.concatenate(rows[:2]), "b")


def test_a_layer_that_is_called_later_for_the_first_time_has_its_own_site(tmp_path):
    """Its earlier rows are not those of the layer with the same input."""
    model = Shared()
    batches = [torch.randn(4, 5) for _ in range(2)]
    with Recorder(model) as recorder, torch.no_grad():
        model.step = lambda model, x: model.a(x)
        model(batches[0])
        model.step = lambda model, x: (model.a(x), model.b(x))
        model(batches[1])
    found, rows = sums(recorder, tmp_path), [batch.double().numpy() for batch in batches]
    oracle.check(found["a"], np.concatenate(rows), "a")
    oracle.check(found["b"], rows[1], "b")
    assert recorder.left_out == {"c": "no forward pass reached it"}


def test_a_layer_that_is_called_several_times_counts_each_of_them(tmp_path):
    """Weights that are shared by several layers of a model."""
    model, x = Shared(), torch.randn(4, 5)

    def step(model, x):
        for y in (x, x, 3 * x):
            model.a(y)
            model.b(y)
            model.c(y.view(2, 2, 5))

    model.step = step
    found = sums(run(model, dict(x=x)), tmp_path)
    rows = np.concatenate([x.double().numpy()] * 2 + [(3 * x).double().numpy()])
    for name in found:
        oracle.check(found[name], rows, name)
    assert set(found) == {"a"}


def test_an_input_that_changes_before_its_last_reader_is_an_error():
    """The rows of the first reader are gone by the time that the site turns out to differ."""
    model = Shared()

    def changes(model, x):
        x = x * 1
        model.a(x)
        x.add_(1)
        model.b(x)

    with pytest.raises(Error, match='the input of "a" was changed in place'):
        with Recorder(model), torch.no_grad():
            model(torch.randn(4, 5))
            model.step = changes
            model(torch.randn(4, 5))
    assert hooks(model) == 0


def test_convolutions_with_one_input_and_different_kernels_have_different_sites(tmp_path):
    class Convolutions(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Conv2d(4, 4, 3, padding=1)
            self.b = torch.nn.Conv2d(4, 2, 3, padding=1)
            self.c = torch.nn.Conv2d(4, 4, (3, 1), stride=2, padding=(0, 2), groups=2)
            self.d = torch.nn.Conv2d(4, 4, 3, dilation=2)
            self.e = torch.nn.Conv2d(4, 4, 3, padding="same")

        def forward(self, x):
            return self.a(x), self.b(x), self.c(x), self.d(x), self.e(x)

    model, x = Convolutions(), torch.randn(3, 4, 9, 7)
    recorder = run(model, dict(x=x))
    assert [site.modules for site in recorder.statistics.sites().values()] == [["a", "b"], ["c"]]
    assert recorder.left_out == {
        "d": "PEFT ignores the dilation of a convolution",
        "e": "only a number of zeros is understood as the padding of a convolution",
    }
    found = sums(recorder, tmp_path)
    oracle.check(found["a"], oracle.patches([x.double().numpy()], (3, 3), (1, 1), (1, 1)), "a")
    oracle.check(found["c"], oracle.patches([x.double().numpy()], (3, 1), (2, 2), (0, 2)), "c")


@pytest.mark.parametrize("block", [1, 40, 500, 1 << 22])
def test_patches_do_not_depend_on_the_size_of_blocks(block, monkeypatch):
    """Blocks of whole images, of lines of places, and the order of the rows."""
    from cntlora import convolutions

    monkeypatch.setattr(convolutions, "BLOCK", block)
    for layer, shape in [
        (torch.nn.Conv1d(2, 3, 3, stride=2, padding=1), (3, 2, 8)), (torch.nn.Conv2d(2, 4, (3, 2), groups=2), (3, 2, 6, 5)),
        (torch.nn.Conv3d(1, 2, 2, padding=1), (2, 1, 3, 4, 2)), (torch.nn.Conv2d(2, 3, 1), (2, 5, 5)),
    ]:
        x = torch.randn(shape)
        found = torch.cat(list(convolutions.patches(layer, x)))
        batched = x if x.dim() == len(layer.kernel_size) + 2 else x[None]
        expected = oracle.patches([batched.numpy()], layer.kernel_size, layer.stride, layer.padding)
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_rows_are_copied_in_blocks(block, monkeypatch):
    """Selected rows, rows in a format that has to be converted, and rows that are used where they are."""
    from cntlora import rows

    monkeypatch.setattr(rows, "BLOCK", block)
    x = torch.randn(7, 5)
    selection = torch.tensor([0, 2, 3, 6])
    assert torch.equal(torch.cat(list(rows.blocks(x, selection))), x[selection])
    small = x.to(torch.float8_e4m3fn)
    assert torch.equal(torch.cat(list(rows.blocks(small, None))), small.float())
    (whole,) = rows.blocks(x.T, None)
    assert whole.data_ptr() == x.data_ptr() and whole.stride() == (1, 5)
    assert list(rows.blocks(x[:0], None)) == []
    with pytest.raises(Error, match="expected an input of floating-point numbers, found torch.int64"):
        list(rows.blocks(torch.ones(2, 2, dtype=torch.int64), None))
