"""The command `cntlora record`: runs a model on text or data, and records the inputs of its layers."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from .errors import EXIT_CODES, Error, error, quoted

DESCRIPTION = """\
Runs a model on your fine-tuning data, and records the inputs of its layers: as moments, which need the same space for any number of
tokens, or as activations with --rows. Padding does not count, and layers with the same input share one site.

  cntlora record MODEL --text examples.txt --target q_proj,v_proj --out task.moments.safetensors
  cntlora init MODEL --moments task.moments.safetensors --out adapter
"""


class Parser(argparse.ArgumentParser):
    """Reports errors in the words of the tool."""

    def error(self, message: str) -> NoReturn:
        raise error("usage", message, "see `cntlora record --help`")


def parser() -> Parser:
    made = Parser(
        prog="cntlora record", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("model", metavar="MODEL", help="folder of a model of transformers or diffusers, or its name on the Hub")
    inputs = made.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--text", metavar="FILE", help="text file with one example per line")
    inputs.add_argument(
        "--dataset", metavar="FILE.jsonl", help="lines of JSON with text, with messages, or with prompt and completion"
    )
    inputs.add_argument(
        "--inputs", metavar="FILE.safetensors", help="tensors that are the arguments of the model, such as input_ids or pixel_values"
    )
    made.add_argument("--out", required=True, metavar="PATH", help="moments file, or folder of activations with --rows")
    made.add_argument("--force", action="store_true", help="replace the output if it exists")
    made.add_argument(
        "--target",
        metavar="NAMES",
        help="names of layers or their last parts, separated by commas [default: all but heads and embeddings; all-linear stands for them beside other names]",
    )
    made.add_argument(
        "--dtype", choices=["auto", "f32", "f16", "bf16"], default="f32", help="number format of the model; auto: as stored [default: f32]"
    )
    made.add_argument("--device", default="cpu", help="device, or auto to divide the model among all devices [default: cpu]")
    made.add_argument("--model-class", metavar="CLASS", help="class of transformers or diffusers [default: as config.json says]")
    made.add_argument("--chat-template", metavar="FILE", help="template for messages [default: that of the tokenizer]")
    made.add_argument("--length", type=positive, default=512, metavar="TOKENS", help="longest example; longer ones are cut [default: 512]")
    made.add_argument("--tokens", type=positive, metavar="COUNT", help="end after the batch with which this number of tokens is reached")
    made.add_argument("--batch-size", type=positive, default=8, metavar="EXAMPLES", help="examples of a forward pass [default: 8]")
    made.add_argument("--rows", action="store_true", help="write the activations themselves, in bf16, in place of moments")
    made.add_argument(
        "--precision", choices=["f32", "bf16"], default="f32", help="precision of the sums, as in `cntlora moments` [default: f32]"
    )
    made.add_argument(
        "--nonfinite", choices=["refuse", "skip-rows"], default="refuse", help="what to do with rows of NaN or infinity [default: refuse]"
    )
    made.add_argument("--per-expert", action="store_true", help="a site for each fused expert, with the rows that reach it")
    made.add_argument("--max-memory", metavar="BYTES", help="memory of the moments, such as 4GB; reads the data several times if needed")
    made.add_argument("--threads", type=positive, metavar="COUNT", help="threads of the model and of the sums [default: all cores]")
    return made


def positive(text: str) -> int:
    """Returns a whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text}")
    return int(text)


def main(arguments: list[str]) -> int:
    """Runs the command, and returns the exit code of the tool."""
    try:
        run(parser().parse_args(arguments))
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except Error as problem:
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_CODES[problem.category]
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return EXIT_CODES["interrupted"]
    return 0


def run(args: argparse.Namespace) -> None:
    """Records as the arguments say."""
    out = pathlib.Path(args.out)
    check_options(args, out)
    if args.threads is not None:
        # The sums read it when they begin.
        os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    try:
        import torch
        import transformers
    except ImportError as problem:
        raise error("io", f"cntlora record needs torch and transformers: {problem}", "pip install torch transformers") from None
    from .bar import Bar
    from .recorder import Recorder, run as record
    from .sinks import Files

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loader = batches(args)
    model = load_model(args)
    targets = None if args.target is None else [name for name in args.target.split(",") if name]
    recorder = Recorder(
        model,
        targets,
        precision=args.precision,
        nonfinite=args.nonfinite,
        per_expert=args.per_expert,
        max_memory=args.max_memory,
    )
    bar = Bar()
    with staged(out) as place:
        files = Files(place) if args.rows else None
        try:
            with computing():
                record(recorder, model, loader, tokens=args.tokens, progress=bar, sink=files)
        finally:
            bar.close()
        if files is not None:
            files.write()
            sites = {name: len(modules) for name, modules in files.modules.items()}
            rows = files.counts
        else:
            recorder.save(place)
            found = recorder.statistics.sites()
            sites = {name: len(site.modules) for name, site in found.items()}
            rows = {name: site.rows for name, site in found.items()}
    for reason in sorted(set(recorder.left_out.values())):
        names = [name for name, other in recorder.left_out.items() if other == reason]
        others = f" and {len(names) - 3} others" if len(names) > 3 else ""
        print(f"left out: {quoted(names[:3])}{others}: {reason}", file=sys.stderr)
    print(f"{sum(sites.values())} layers at {len(sites)} sites, at most {max(rows.values(), default=0)} rows, in {out}")


def check_options(args: argparse.Namespace, out: pathlib.Path) -> None:
    """Refuses options that do not fit together, and an output that exists."""
    if args.rows and args.max_memory is not None:
        raise error("usage", "--max-memory limits moments, but --rows writes activations", "remove one of the two")
    if args.rows and (args.precision, args.nonfinite) != ("f32", "refuse"):
        raise error("usage", "--precision and --nonfinite are for moments, but --rows writes activations", "give them to `cntlora init`")
    if args.chat_template is not None and args.dataset is None:
        raise error("usage", "--chat-template is for the messages of --dataset", "remove it")
    if args.target is not None and not [name for name in args.target.split(",") if name]:
        raise error("usage", "--target: no name was given", "give names of layers, separated by commas")
    if not args.rows and not out.name.endswith(".safetensors"):
        raise error("usage", f"{out}: expected the name of a moments file", f"give --out {out}.moments.safetensors, or --rows for a folder")
    if not out.parent.is_dir():
        raise error("io", f"{out}: its folder does not exist", "make the folder first")
    if out.exists() and not args.force:
        raise error("usage", f"{out}: the output exists", "give --force to replace it, or another --out")
    if out.exists() and args.force and out.is_dir() != args.rows:
        raise error("usage", f"{out}: --force replaces a {'folder' if args.rows else 'file'}, found a {'file' if args.rows else 'folder'}")


@contextlib.contextmanager
def staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a place beside the output, and moves it to the output at the end. After an error, nothing is left of it."""
    place = out.with_name(f".{out.name}.{os.getpid()}.safetensors")
    try:
        yield place
        try:
            if out.is_dir():
                remove(out)
            place.replace(out)
        except OSError as problem:
            raise error("io", f"{out}: {problem.strerror or problem}") from None
    finally:
        remove(place)


def remove(place: pathlib.Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def batches(args: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """Returns the batches of the input, which can be read several times."""
    from . import texts

    if args.inputs is not None:
        return texts.Tensors(args.inputs, args.batch_size)
    # A mistake in the file is found before the model is loaded.
    found = texts.lines(args.text) if args.text is not None else None
    template = None if args.chat_template is None else texts.read(args.chat_template)
    import transformers

    with readable(args.model):
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    if found is None:
        found = texts.examples(args.dataset, tokenizer, template)
    return texts.Texts(found, tokenizer, args.batch_size, args.length)


def load_model(args: argparse.Namespace) -> Any:
    """Loads the model, as the class from which its checkpoint was saved or as --model-class."""
    import torch

    dtype = {"auto": "auto", "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[args.dtype]
    try:
        device = None if args.device == "auto" else torch.device(args.device)
    except RuntimeError:
        raise error("usage", f"--device: expected a device such as cpu, cuda:1 or auto, found {args.device}") from None
    with readable(args.model):
        made = model_class(args)
        is_diffusers = made.__module__.startswith("diffusers.")
        options = {"torch_dtype" if is_diffusers else "dtype": dtype}
        if is_diffusers and dtype == "auto":
            del options["torch_dtype"]
        if device is None:
            options["device_map"] = "auto"
        model = made.from_pretrained(args.model, **options)
    try:
        return (model if device is None else model.to(device)).eval()
    except (RuntimeError, AssertionError) as problem:
        raise error("io", f"--device {args.device}: {problem}") from None


def model_class(args: argparse.Namespace) -> Any:
    """Returns the class of the model."""
    import transformers

    config = pathlib.Path(args.model, "config.json")
    name = args.model_class
    if name is None and config.is_file():
        name = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    if name is None:
        name = (transformers.AutoConfig.from_pretrained(args.model).architectures or ["AutoModel"])[0]
    places = [transformers]
    with contextlib.suppress(ImportError):
        import diffusers

        places.append(diffusers)
    made = next((getattr(place, name) for place in places if hasattr(place, name)), None)
    if not hasattr(made, "from_pretrained"):
        where = " or ".join(place.__name__ for place in places)
        raise error("usage", f"{where} has no model of the class {name}", "give another class with --model-class")
    return made


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Reports warnings, and a forward pass that fails, in the words of the tool."""
    try:
        with warnings.catch_warnings():
            # An error follows.
            warnings.filterwarnings("ignore", "a forward pass failed")
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            yield
    except MemoryError:
        raise error("io", "not enough memory for a forward pass", "use a smaller --batch-size or --length") from None
    except (RuntimeError, TypeError, ValueError, LookupError) as problem:
        is_memory = "out of memory" in str(problem) or "allocate memory" in str(problem)
        what = f"the model fails on its inputs: {first_line(problem)}"
        help = "use a smaller --batch-size or --length" if is_memory else "check that the inputs are those of the model"
        raise error("io" if is_memory else "data", what, help) from None


def first_line(problem: Exception) -> str:
    """Returns the first line of an error of another package."""
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__


@contextlib.contextmanager
def readable(model: str) -> Iterator[None]:
    """Reports a model that cannot be read, in one line."""
    try:
        yield
    except Error:
        raise
    except (OSError, ValueError, KeyError) as problem:
        help = "give the folder of a model, with its tokenizer for texts"
        raise error("io", f"{model}: the model cannot be read: {first_line(problem)}", help) from None
