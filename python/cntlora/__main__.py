"""The command `cntlora`: the tool itself, and `cntlora record`."""

from __future__ import annotations

import signal
import sys

# Without torch and transformers, which take seconds to import: only `record` needs them.
from . import _cntlora

INTERRUPTED = 130


def main() -> int:
    """Runs the command line, and returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["record"]:
            from .record_command import main as record

            return record(arguments[1:])
        return _cntlora.main(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
