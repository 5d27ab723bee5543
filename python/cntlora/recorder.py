"""Records the sums over the inputs of a model's layers while the model runs."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch

from . import experts, processes, sites
from ._cntlora import Statistics
from .convolutions import kind
from .errors import error, quoted
from .masks import Masks, argument_names
from .passes import Pass, memory_of, parse_memory
from .rows import flattened
from .running import again, call, evaluating, length, opened, tokens_of
from .sharing import Sharing
from .sinks import Nothing, Sink, Sums
from .sites import Layer


class Recorder:
    """Records the inputs of layers in the forward passes inside a `with` block, on any model of torch.

        with cntlora.Recorder(model, targets=["q_proj", "v_proj"]) as recorder:
            for batch in loader:
                model(**batch)
        recorder.save("task.moments.safetensors")

    Padding does not count: the recorder reads the attention masks in the arguments of the model and of its parts. Modules that read the
    same input are one site. The second forward pass of gradient checkpointing does not count.

    - `targets`: names of layers or their last parts, or a regular expression, as in PEFT. Without them, all layers except the output
      head; of a model with an adapter, the adapted layers. Embeddings are recorded only if they are named. Layers have the names of the
      base model.
    - `precision`, `nonfinite`: as in `cntlora moments`.
    - `label_mask`: counts only the positions whose label is not -100.
    - `per_expert`: each fused expert is a site of its own. Experts with less than `min_expert_rows` rows are left out.
    - `max_memory`: bytes of the statistics, also as text such as "4GB". If they need more, `passes` has several groups of layers, and the
      data is needed once for each: `for part in recorder.passes:` `with part:` …. The finished sums are in files then.

    Raises an `Error` if nothing can be recorded.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        targets: Sequence[str] | str | None = None,
        *,
        precision: str = "f32",
        nonfinite: str = "refuse",
        label_mask: bool = False,
        per_expert: bool = False,
        min_expert_rows: int = 1,
        max_memory: int | str | None = None,
    ) -> None:
        if min_expert_rows < 1:
            raise error("usage", f"min_expert_rows: expected a number from 1, found {min_expert_rows}")
        found = sites.find(model, targets)
        self.layers, self._reasons = found.layers, found.left_out
        self._model = sites.unwrapped(model)
        self._per_expert, self._min_expert_rows = per_expert, min_expert_rows
        self._new = functools.partial(Statistics, precision=precision, nonfinite=nonfinite)
        self._limit = parse_memory(max_memory)
        self._masks = Masks(self._model, label_mask)
        self._statistics = self._new()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: list[str] = []
        # A different name for each recorder, so that the files of several processes can be added.
        self._source = f"{type(self._model).__name__}, recorder {uuid.uuid4().hex[:12]}"
        self._reached: set[str] = set()
        self._finished = self._reduced = self._began = False
        self._sink: Sink | None = None
        self._sharing: Sharing | None = None
        self._failed = False
        # The parts of the model that run.
        self._entered: list[int] = []
        self._open: contextlib.ExitStack | None = None
        self._passes = self._planned([[name] for name in self.layers])

    # Passes over groups of layers

    @property
    def passes(self) -> list[Pass]:
        """The groups of layers whose statistics fit into `max_memory`. Each of them is a `with` block of its own."""
        return self._passes

    def _planned(self, units: list[list[str]]) -> list[Pass]:
        """Divides the layers into groups. The layers of a unit share one site."""
        if self._limit is None:
            return [Pass(self, list(self.layers), sum(self._memory(unit) for unit in units))]
        passes: list[Pass] = []
        for unit in units:
            needed = self._memory(unit)
            if needed > self._limit:
                raise error(
                    "usage",
                    f"max_memory: the statistics of {quoted(unit[0])} need {needed} bytes, more than {self._limit}",
                    "allow more memory",
                )
            if not passes or passes[-1].memory + needed > self._limit:
                passes.append(Pass(self, [], 0))
            passes[-1].names.extend(unit)
            passes[-1].memory += needed
        return passes

    def _memory(self, unit: list[str]) -> int:
        """Returns the bytes of the statistics of a site."""
        layer = self.layers[unit[0]]
        count = layer.module.num_experts if layer.kind == "experts" and self._per_expert else 1
        return count * memory_of(self._new, layer.width, layer.kind == "embedding")

    def __enter__(self) -> Recorder:
        if len(self._passes) > 1:
            raise error(
                "usage",
                f"max_memory: the statistics need {len(self._passes)} passes over the data",
                "write `for part in recorder.passes:` and `with part:` around the loop, or call cntlora.record",
            )
        self._begin(self._passes[0].names, Sums(self._statistics, self._limit))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        self._passes[0].is_done = True

    def learn(self, forward: Callable[[], object]) -> None:
        """Runs a forward pass that counts nothing, and plans `passes` again: layers that read the same input need one site only."""
        if self._open is not None or self._reached:
            raise error("usage", "the recorder has rows already", "call learn before the first pass")
        try:
            self._begin(list(self.layers), Nothing())
            try:
                forward()
            finally:
                self._end()
            groups = {group[0]: group for group in self._sharing.groups()}
            grouped = {name for group in groups.values() for name in group}
            self._passes = self._planned([groups.get(name, [name]) for name in self.layers if name in groups or name not in grouped])
        finally:
            self._sharing, self._reached, self._began = None, set(), False

    @contextlib.contextmanager
    def into(self, sink: Sink) -> Iterator[Recorder]:
        """Records into a sink, such as files of activations, in place of sums."""
        self._begin(list(self.layers), sink)
        try:
            yield self
        finally:
            self._end()

    def _begin(self, names: list[str], sink: Sink) -> None:
        """Adds the hooks of these layers."""
        if self._finished:
            raise error("usage", "this recorder is finished, because its statistics were read", "make a new one")
        if self._open is not None:
            raise error("usage", "this recorder is recording already", "end its `with` block first")
        layers = {name: self.layers[name] for name in names}
        self._sink = sink
        # The sites of the last `with` block stay, if its statistics did.
        if self._sharing is None:
            # In a cycle, the model and the sums would stay in memory after their last use.
            this = weakref.proxy(self)
            self._sharing = Sharing(
                lambda site, module: this._sink.declare(site, module, this.layers[module]),
                lambda site, modules, new: this._sink.split(site, modules, new),
            )
        self._masks.begin()
        self._entered = []
        modules = {id(layer.module) for layer in layers.values()}
        with contextlib.ExitStack() as stack:
            around: dict[int, torch.nn.Module] = {}
            for _, module, above in sites.named_modules(self._model):
                if id(module) in modules:
                    around.update((id(one), one) for one in above)
            for module in around.values():
                names_of = argument_names(module)
                if names_of is not None or module is self._model:
                    self._add_frame(stack, module, names_of or [])
            of_experts: dict[int, list[Layer]] = {}
            for layer in layers.values():
                if layer.kind == "experts":
                    of_experts.setdefault(id(layer.module), []).append(layer)
                else:
                    hook = functools.partial(self._read, layer)
                    stack.callback(layer.module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for several in of_experts.values():
                hook = functools.partial(self._read_experts, several)
                stack.callback(several[0].module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            self._open = stack.pop_all()
            self._began = True

    def _end(self) -> None:
        """Removes all hooks."""
        stack, self._open = self._open, None
        if stack is not None:
            stack.close()
        if self._masks.depth > 0 and self._sharing is not None:
            # An interruption leaves a forward pass without its last hooks.
            self._sharing.end(is_complete=False)
            self._failed = False
        if self._masks.unfit:
            (name, shapes), others = next(iter(self._masks.unfit.items())), len(self._masks.unfit) - 1
            warnings.warn(
                f"padding counts in the input of {quoted(name)}{f' and of {others} other layers' if others else ''}, because its positions "
                f"are not those of the attention mask: {shapes}",
                RuntimeWarning,
                stacklevel=3,
            )
            self._masks.unfit = {}
        if stack is not None:
            self._sink.wait()

    # Hooks

    def _add_frame(self, stack: contextlib.ExitStack, module: torch.nn.Module, names: list[str]) -> None:
        """Adds hooks that follow the masks into a part of the model and out of it."""

        def enter(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if is_backward():
                return
            if self._masks.depth == 0:
                self._masks.begin()
                self._failed = True
            # A part whose hooks fail before this one is left without being entered.
            self._entered.append(id(module))
            self._masks.enter(names, args, kwargs)

        def finish(_: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Not called if the part fails.
            if not is_backward() and self._masks.depth == 1:
                self._masks.end()
                self._failed = False

        def leave(_: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if is_backward() or not self._entered or self._entered[-1] != id(module):
                return
            self._entered.pop()
            self._masks.leave()
            if self._masks.depth == 0:
                self._end_forward()

        stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(finish).remove)
        stack.callback(module.register_forward_hook(leave, always_call=True).remove)

    def _end_forward(self) -> None:
        """Ends a forward pass of the model, or of the part of it that was called."""
        self._sharing.end(is_complete=not self._failed)
        if self._failed:
            self._sink.wait()
            warnings.warn("a forward pass failed: its rows count for the layers that it reached", RuntimeWarning, stacklevel=2)
            self._failed = False
        else:
            self._sink.end()

    def _input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        return args[0] if args else next(iter(kwargs.values()))

    def _read(self, layer: Layer, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes the input of a layer."""
        if is_backward():
            return
        tensor = self._input(args, kwargs).detach()
        sink, selection = self._sink, None
        if layer.kind == "convolution":
            layout: Any = (tuple(tensor.shape), tensor.stride(), kind(layer.module))

            def count(site: str) -> None:
                sink.add_images(site, layer, tensor)
        elif layer.kind == "embedding":
            selection = self._masks.selection(layer.name, tensor, tuple(tensor.shape))
            layout = layer.name

            def count(site: str) -> None:
                sink.add_tokens(site, layer, tensor, selection)
        else:
            selection = self._masks.selection(layer.name, tensor, tuple(tensor.shape[:-1]))
            rows = flattened(tensor)
            # Rows that had to be copied have a layout of their own. The rows of [batch, tokens, width] and of [rows, width] are the same.
            is_view = rows.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            same = rows if is_view else tensor
            layout = (tuple(same.shape), same.stride(), id(selection))

            def count(site: str) -> None:
                sink.add_rows(site, rows, selection)

        self._reached.add(layer.name)
        self._sharing.read(layer.name, self._input(args, kwargs), layout, count)
        if self._masks.depth == 0:
            self._end_forward()

    def _read_experts(self, layers: list[Layer], module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes the inputs of fused experts."""
        if is_backward():
            return
        hidden, chosen = experts.routed(module, args, kwargs)
        selection = self._masks.selection(layers[0].name, hidden, tuple(hidden.shape[:-1]))
        if selection is not None:
            hidden, chosen = hidden[selection.to(hidden.device)], chosen[selection.to(chosen.device)]
        with torch.no_grad():
            for expert in range(module.num_experts):
                rows = hidden[(chosen == expert).any(-1)]
                for layer in layers if len(rows) else ():
                    site = f"{layer.name}.{expert}" if self._per_expert else layer.name
                    if site not in self._reached:
                        self._reached.add(site)
                        self._sink.declare(site, site, layer)
                    self._sink.add_rows(site, experts.inputs(module, expert, rows, layer.parameter), None)
        if self._masks.depth == 0:
            self._end_forward()

    # Results

    @property
    def never_reached(self) -> list[str]:
        """The layers, and with `per_expert` the experts, that no forward pass reached."""
        expected: list[str] = []
        for layer in self.layers.values():
            by_number = layer.kind == "experts" and self._per_expert
            expected += [f"{layer.name}.{number}" for number in range(layer.module.num_experts)] if by_number else [layer.name]
        return [name for name in expected if name not in self._reached]

    @property
    def left_out(self) -> dict[str, str]:
        """The reason for each layer that is left out. Layers that were never reached are among them after the forward passes."""
        never = dict.fromkeys(self.never_reached, "no forward pass reached it") if self._began and self._open is None else {}
        return self._reasons | never

    @property
    def files(self) -> list[str]:
        """The moments files of finished passes, if `max_memory` needs several. They are removed with the recorder: see `save`."""
        return self._files

    @property
    def statistics(self) -> Statistics:
        """The sums, in memory. The recorder is finished then.

        Raises an `Error` if nothing was reached, and if several processes of torch.distributed run but `reduce` was not called.
        """
        if processes.count() > 1 and not self._reduced:
            raise error(
                "usage",
                "each process of torch.distributed has the sums of its own data",
                "call recorder.reduce() on every process, or save a file for each process and add them with `cntlora merge`",
            )
        self._finish()
        return self._statistics

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the moments file of the tool. In several processes without `reduce`, the file has the sums of this process."""
        self._finish()
        self._statistics.save(os.fspath(path), self._source)

    def _finish(self) -> None:
        """Ends the recording: leaves experts with too few rows out."""
        if self._open is not None:
            raise error("usage", "the recorder is still recording", "end its `with` block first")
        if not self._reached and not self._reduced:
            raise error("data", "no forward pass reached a layer that is recorded", "run the model inside the `with` block of the recorder")
        if self._finished:
            return
        if unmade := [part for part in self._passes if not part.is_done]:
            raise error("usage", f"{len(unmade)} of {len(self._passes)} passes over the data are missing", "run all of recorder.passes")
        self._finished = True
        if self._files:
            self._statistics = Statistics.load(self._files)
        for layer in self.layers.values():
            for number in range(layer.module.num_experts) if layer.kind == "experts" and self._per_expert else ():
                site = self._statistics.sites().get(f"{layer.name}.{number}")
                if site is not None and site.rows < self._min_expert_rows:
                    self._reasons[site.name] = f"{site.rows} rows reached it, fewer than {self._min_expert_rows}"
                    self._statistics.remove(site.name)

    def _store(self, statistics: Statistics) -> None:
        """Writes the sums of a finished pass to a file in a folder that is removed with the recorder."""
        if not statistics.sites():
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="cntlora-")
        path = os.path.join(self._folder.name, f"pass-{len(self._files):05}.moments.safetensors")
        statistics.save(path, self._source)
        self._files.append(path)

    def reduce(self) -> None:
        """Adds the sums of all processes of torch.distributed. Every process has to call it, and has all sums afterwards."""
        if self._open is not None:
            raise error("usage", "the recorder is still recording", "end its `with` block first")
        if self._reduced or processes.count() == 1:
            self._reduced = True
            return
        if self._files:
            self._statistics = Statistics.load(self._files)
            self._files = []
        self._statistics = processes.added(self._statistics)
        self._reached.update(name for site in self._statistics.sites().values() for name in site.modules)
        self._reduced = True


def is_backward() -> bool:
    """True during a backward pass: gradient checkpointing runs parts of the model again then."""
    return torch._C._current_graph_task_id() != -1


def record(
    model: torch.nn.Module,
    loader: Iterable[Any] | Callable[[], Iterable[Any]],
    targets: Sequence[str] | str | None = None,
    *,
    tokens: int | None = None,
    progress: Callable[[int, int | None, int], None] | None = None,
    left_out: dict[str, str] | None = None,
    **options: Any,
) -> Statistics:
    """Runs a model over the batches of a loader, and returns the statistics of its layers.

    The model runs without gradients, in evaluation mode, and with its adapter switched off. A batch is a dict of arguments, or a tensor
    or a tuple of them for the first arguments. The batches are moved to the device of the model. In several processes of
    torch.distributed, each has its own loader, and the result has the sums of all of them.

    - `loader`: a DataLoader or a list. If `max_memory` needs several passes, it is read once for each: then it must be possible to read
      it again. It may be a function that returns the batches.
    - `targets` and the other options: as for `Recorder`.
    - `tokens`: ends after the batch with which this number of tokens is reached.
    - `progress`: is called after each batch with the number of batches, the number of all batches if it is known, and the tokens.
    - `left_out`: a dict that receives the reason for each layer that is left out.
    """
    recorder = Recorder(model, targets, **options)
    run(recorder, model, loader, tokens=tokens, progress=progress)
    statistics = recorder.statistics
    if left_out is not None:
        left_out.update(recorder.left_out)
    return statistics


def run(
    recorder: Recorder,
    model: torch.nn.Module,
    loader: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    tokens: int | None = None,
    progress: Callable[[int, int | None, int], None] | None = None,
    sink: Sink | None = None,
) -> None:
    """Runs a model over a loader, once for each pass of the recorder, and adds the sums of all processes.

    With a sink, the rows go there in one pass, and not into sums.
    """
    if tokens is not None and tokens < 1:
        raise error("usage", f"tokens: expected a number from 1, found {tokens}")
    with evaluating(model), torch.no_grad():
        if sink is None and len(recorder.passes) > 1:
            for batch in again(loader):
                recorder.learn(functools.partial(call, model, batch))
                break
        passes = recorder.passes if sink is None else [recorder.into(sink)]
        finished = 0
        for number, part in enumerate(passes):
            batches = again(loader) if len(passes) > 1 else opened(loader)
            total = length(batches)
            done = counted = 0
            with part:
                for batch in batches:
                    call(model, batch)
                    done, counted = done + 1, counted + tokens_of(batch)
                    if progress is not None:
                        progress(finished + done, all_batches(total, done, tokens, counted, number, finished, len(passes)), counted)
                    if tokens is not None and counted >= tokens:
                        break
            finished += done
            # One of several processes may have no data.
            if done == 0 and processes.count() == 1:
                raise error("data", "the loader has no batches")
    if sink is None and processes.count() > 1:
        recorder.reduce()


def all_batches(total: int | None, done: int, tokens: int | None, counted: int, number: int, finished: int, passes: int) -> int | None:
    """Returns the number of batches of all passes, as far as it is known. A limit of tokens ends each pass earlier."""
    if total is None:
        return None
    if tokens is not None and counted > 0:
        total = min(total, max(done, -(-done * tokens // counted)))
    return finished + total * (passes - number)
