"""Writes src/plan/renames.json: the renames that transformers makes when it loads a checkpoint, by model type or class of the model.

    python3 renames.py > ../../src/plan/renames.json

Needs torch and transformers (written with 5.24). A rule is a list: a regular expression, its replacement, and, in some rules, a
second expression. Names that match the second one stay as they are: it replaces assertions about the surrounding text, which the
regular expressions of Rust do not have. Splits and joins of tensors are not renames; they are in stored.rs.
"""
import json
import re
import sys

from transformers import conversion_mapping
from transformers.core_model_loading import GroupWeightRename, WeightRenaming

ASSERTION = re.compile(r"\(\?<?!((?:[^()\\]|\\.|\([^()]*\)|\(\?:[^()]*\))*)\)")


def rule(source, target):
    source = source.replace("*.", r".*\.")
    if re.search(r"[a-zA-Z0-9]$", source):
        source += r"\b"
    asserted = list(ASSERTION.finditer(source))
    plain = ASSERTION.sub("", source).replace("(?:)", "")
    unless = []
    for one in asserted:
        text = source[: one.start()] + f"(?:{one[1]})" + source[one.end():]
        unless.append(ASSERTION.sub("", text))
    replacement = re.sub(r"\\(\d)", r"${\1}", re.sub(r"\\\.", ".", target))
    return [plain, replacement] + (["|".join(unless)] if unless else [])


def rules(transforms):
    for transform in transforms:
        if type(transform).__name__ not in {"WeightRenaming", "PrefixChange", "GroupWeightRename"}:
            continue
        pairs = zip(transform.source_patterns, transform.target_patterns)
        if not isinstance(transform, GroupWeightRename):
            pairs = ((source, transform.target_patterns[0]) for source in transform.source_patterns)
        yield from (rule(source, target) for source, target in pairs)


assert issubclass(GroupWeightRename, WeightRenaming)
mapping = conversion_mapping._build_checkpoint_conversion_mapping()
found = {key: list(rules(transforms)) for key, transforms in mapping.items() if key != "legacy"}
by_rules = {}
for key, of_key in sorted(found.items()):
    if of_key:
        by_rules.setdefault(json.dumps(of_key), []).append(key)
sys.stdout.write("[\n")
sys.stdout.write(",\n".join(json.dumps([keys, json.loads(of_keys)], separators=(",", ":"))
                            for of_keys, keys in by_rules.items()))
sys.stdout.write("\n]\n")
