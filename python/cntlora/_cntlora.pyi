"""The Rust half of the package: statistics of layers, factors computed from them, and the command-line tool.

All functions release the lock of the interpreter while they compute. Problems raise `Error`.
"""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Literal, Protocol, final

__all__ = ["Error", "Site", "Statistics", "Weight", "initialize", "main", "report_html", "report_text"]

class Error(Exception):
    """Why inputs or options were refused, or a computation could not finish. `str(error)` is the text of the tool, with its help."""

    category: Literal["data", "usage", "io", "interrupted", "bug"]
    """The kind of the problem. The tool has an exit code for each: 1, 2, 3, 130 and 4."""

@final
class Site:
    """The input that one or more modules read, as it was when `Statistics.sites` was called."""

    @property
    def name(self) -> str: ...
    @property
    def modules(self) -> list[str]:
        """The modules that read it, sorted."""
    @property
    def width(self) -> int:
        """Numbers per row, or tokens of the vocabulary."""
    @property
    def rows(self) -> int:
        """Number of rows, without skipped ones, or of counted tokens."""
    @property
    def skipped(self) -> int:
        """Number of rows that were skipped because of NaN or infinity."""
    @property
    def tokens(self) -> bool:
        """True for the input of an embedding, whose tokens are counted."""

@final
class Statistics:
    """The sums of the inputs of layers, in memory: their size depends on the widths, not on the number of rows.

    The sums of a site have the bits of the file that `cntlora moments` writes for one tensor with the same rows in the same number
    format, for any number of threads and any sizes of the pieces in which rows arrive. A change of the number format between two calls
    begins a new block of rows, as a new tensor does in a file.

    Can be pickled. Several threads can add rows; a thread that adds rows while another one computes factors from the same statistics
    gets an `Error`.
    """

    def __new__(cls, *, precision: str = "f32", nonfinite: str = "refuse") -> Statistics:
        """Returns statistics without sites.

        precision: "f32", or "bf16" to multiply bf16 rows as bf16, in the fastest way of the processor; the bits then depend on it.
        nonfinite: "refuse" raises for rows with NaN or infinity and names site, row and column; "skip-rows" skips and counts them.
        """
    def declare(self, site: str, modules: Sequence[str], width: int, *, tokens: bool = False) -> None:
        """Adds a site, or further modules to a site. No memory is used before its first row.

        width: numbers per row; with `tokens`, the number of tokens of the vocabulary.

        The site of a convolution has rows of patches, `[channels, kernel...]` in C order, with zeros as padding and the channels of all
        groups. This is the order of `torch.nn.functional.unfold`: each column of its result is a row. Convolutions with a dilation
        cannot be adapted. The site of one expert of a fused parameter has the module `<parameter>.<number>`.
        """
    def add_rows(
        self,
        site: str,
        address: int,
        shape: tuple[int, int],
        strides: tuple[int, int],
        dtype: str,
        selection: tuple[int, int] | None = None,
    ) -> None:
        """Adds the rows of a matrix in CPU memory. They are copied, and multiplied when there are many, or by `multiply`.

        address: `tensor.data_ptr()`. The tensor must exist during the call, and no thread may write to it. It is not used afterwards.
        shape, strides: `tensor.shape` and `tensor.stride()`, which count numbers.
        dtype: "F64", "F32", "F16" or "BF16".
        selection: address and number of contiguous int64 row numbers; only these rows are added, in their order.

        After a row was refused, the sums can contain a part of the rows before it. Every later use raises the same error.
        """
    def multiply(self) -> None:
        """Multiplies the rows that wait, those of many sites side by side. Results do not depend on it, but it saves time.

        A recorder calls it after each forward pass.
        """
    def add_tokens(self, site: str, address: int, count: int) -> None:
        """Counts contiguous int64 token ids in CPU memory. Ids outside of the vocabulary raise, and then no id is counted."""
    def sites(self) -> dict[str, Site]:
        """Returns the sites by name, sorted, also those without rows."""
    def remove(self, site: str) -> None:
        """Removes a site and its sums."""
    def split(self, site: str, modules: list[str], new: str) -> None:
        """Gives some modules of a site a new site with a copy of its sums. With all of its modules, the site gets the new name."""
    def merge(self, other: Statistics) -> None:
        """Adds the sums of other statistics, in the bits of `cntlora merge`. Raises for rows that both count."""
    def memory(self) -> int:
        """Returns the bytes of all sites when they have rows, also of sites that have none yet."""
    def save(self, path: str | PathLike[str], source: str) -> None:
        """Writes a moments file for `cntlora init --moments`, `merge` and `inspect`. Sites without rows are left out.

        source: where the rows came from, for the record of the adapter.

        The identity of the rows comes from their sums: `merge` refuses two files with the same rows.
        """
    @staticmethod
    def load(paths: Sequence[str | PathLike[str]]) -> Statistics:
        """Returns the sums of moments files, and of such files in folders."""
    def to_bytes(self) -> bytes:
        """Returns the bytes of a moments file."""
    @staticmethod
    def from_bytes(data: bytes) -> Statistics:
        """Returns the statistics of the bytes of a moments file."""
    def __reduce__(self) -> tuple[Any, ...]: ...

class Weight(Protocol):
    """A weight for `initialize`: any object with these attributes. The module has no class of this name."""

    @property
    def name(self) -> str:
        """The name of the tensor: `<module>.weight`, or the name of a parameter of fused experts."""
    @property
    def dtype(self) -> str:
        """The number format in safetensors: "F64", "F32", "F16" or "BF16"."""
    @property
    def shape(self) -> Sequence[int]:
        """`[outputs, inputs]`; `[outputs, channels / groups, kernel...]` for convolutions, `[tokens, outputs]` for embeddings."""
    @property
    def address(self) -> int | None:
        """The address of contiguous numbers in CPU memory, which must exist during the call."""
    @property
    def load(self) -> Callable[[], Any] | None:
        """In place of an address: returns a tensor with `data_ptr()` and `nbytes`, contiguous and on the CPU, of this format and shape.

        It is called on the thread of `initialize` when the weight is needed, perhaps more than once. One such tensor is held at a time.
        """

def initialize(
    options: Sequence[str],
    weights: Sequence[Weight],
    out: str | PathLike[str],
    *,
    statistics: Statistics | None = None,
    source: Statistics | None = None,
    moments: Sequence[str | PathLike[str]] = (),
    source_moments: Sequence[str | PathLike[str]] = (),
    config: str | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> str:
    """Computes an adapter, writes it to a new folder in PEFT's format, and returns the report as JSON.

    The factors are those of `cntlora init` on files with the same weights and moments.

    options: words of `cntlora init`, such as `["--rank", "8"]`, without inputs and output.
    weights: the weights of all modules that can get an adapter, which stay as they are. With `--start residual`, the caller has to
        subtract scale · B A from them.
    out: the folder to write to. It must not contain an adapter.
    statistics, moments: the fine-tuning activations, in memory or in moments files. For methods that read no activations, only the
        names in them count, and sites need no rows; without them the option `--target` names the modules.
    source, source_moments: the pre-training activations. The method lora-null takes them in place of fine-tuning activations.
    config: the `config.json` of the model as text. `model_type` tells the layout of fused experts.
    progress: is called as `progress(layer, done, total)` after each layer, on this thread.

    Warnings are shown with `warnings.warn`. An exception in `progress`, in a weight's `load` or from a signal handler, such as
    KeyboardInterrupt, stops the computation after the current layers, and is raised then.
    """

def methods() -> dict[str, tuple[bool, list[str], str]]:
    """Returns for each method whether it reads activations, its starts, the default first, and its use of pre-training activations: "none",
    "optional", "needed", or "alone" if it uses no others."""

def report_text(report: str) -> str:
    """Returns a report as the tool prints it."""

def report_html(report: str) -> str:
    """Returns a report as a self-contained HTML page."""

def main(arguments: Sequence[str]) -> int:
    """Runs the tool `cntlora` with these arguments in this process, and returns its exit code.

    It writes to the stdout and stderr of the process, not to `sys.stdout`. After KeyboardInterrupt, a command that saves its progress
    does so and returns 130. Other commands, and a second interrupt, raise it at once: then the process should end, because the command
    still runs on another thread. A script that should react to SIGTERM in the same way installs `signal.default_int_handler` for it.
    """
