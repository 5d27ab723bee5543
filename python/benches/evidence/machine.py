"""The machine and the versions that runs were made with."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform

PACKAGES = ("cntlora", "torch", "peft", "transformers", "diffusers")
# Instruction sets that change the speed of the kernels.
FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX", "asimd": "NEON"}


def processor(text):
    """Returns the name of the processor and its instruction sets, from the text of /proc/cpuinfo."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    found = [shown for flag, shown in FEATURES.items() if flag in flags]
    return (fields.get("model name") or platform.machine()) + (f" ({', '.join(found)})" if found else "")


def described():
    """Returns the processor, the number of its cores, versions and the date."""
    info = pathlib.Path("/proc/cpuinfo")
    return {
        "processor": processor(info.read_text(encoding="utf-8") if info.exists() else ""),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.date.today().isoformat(),
    }


def note(path):
    """Adds the description of this machine to a file of descriptions, if it does not have it yet."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if (now := described()) not in known:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([*known, now], indent=1) + "\n", encoding="utf-8")
