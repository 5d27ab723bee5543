"""Compares starts on the tasks of the evidence, and writes the page docs/evidence.md.

    python python/benches/evidence run TASK [--part peers|choices] [--only START …] [--processes 2]
    python python/benches/evidence curvature TASK
    python python/benches/evidence page

The first run of a task gets its data and trains its base. Runs are kept in python/benches/evidence/results; a run that is there is not
repeated. So with `--results FOLDER` everything is measured again. The task `topics` reads files that the project does not
carry: see docs/evidence.md.
"""

import argparse
import importlib
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
TASKS = sorted(path.stem for path in (HERE / "tasks").glob("[!_]*.py"))
# The seeds that choose rates, and those that are reported. Choices inside cntlora have other ones than the comparison with others.
SEEDS = {"peers": ((0, 1), (2, 3, 4, 5, 6)), "choices": ((10, 11), (12, 13, 14, 15, 16))}


def task_named(name, folder):
    """Returns the module of a task, with its base trained."""
    os.environ["CNTLORA_EVIDENCE"] = str(folder)
    task = importlib.import_module(f"tasks.{name}")
    task.prepare(folder)
    return task


def run(args):
    import cntlora
    import machine
    from starts import part

    try:
        starts, baseline = part(args.part, args.only)
    except ValueError as problem:
        sys.exit(str(problem))
    task = task_named(args.task, args.folder)
    tuning, reported = SEEDS[args.part]
    folder = args.results / args.task / args.part
    machine.note(folder / "machines.json")
    comparison = cntlora.compare(
        task.make_model, task.train, task.config(), loader=task.loader, source=task.source, loss=task.loss, starts=starts, rates=task.RATES,
        measure=task.MEASURE, better=task.BETTER, tuning_seeds=tuning, seeds=reported, baseline=baseline,
        folder=folder, processes=args.processes, threads=1, minutes=args.minutes,
    )
    print(comparison)


def measure_curvature(args):
    import curvature
    from starts import PEERS

    curvature.measure(task_named(args.task, args.folder), PEERS, args.results / args.task / "curvature.json")


def write_page(args):
    import page

    page.write(args.results, args.docs)


def main():
    parser = argparse.ArgumentParser(prog="evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results", help="folder of the runs")
    parser.add_argument("--folder", type=pathlib.Path, default=cache / "cntlora" / "evidence", help="folder of data and trained bases")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("run", help="compare starts on a task")
    one.add_argument("task", choices=TASKS)
    one.add_argument("--part", choices=SEEDS, default="peers", help="starts of the field, or choices inside cntlora")
    one.add_argument("--only", nargs="+", metavar="START", help="these starts, and the one that they are compared with")
    one.add_argument("--processes", type=int, default=os.cpu_count())
    one.add_argument("--minutes", type=float, help="start no run after this time; the next call continues")
    one.set_defaults(work=run)
    one = commands.add_parser("curvature", help="compute what is known of the curvature before training")
    one.add_argument("task", choices=TASKS)
    one.set_defaults(work=measure_curvature)
    one = commands.add_parser("page", help="write the page and its drawings from the runs")
    one.add_argument("--docs", type=pathlib.Path, default=HERE.parents[2] / "docs")
    one.set_defaults(work=write_page)
    args = parser.parse_args()
    args.work(args)


if __name__ == "__main__":
    main()
