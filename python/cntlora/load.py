"""Loads an adapter folder into a model, and checks that every layer of the adapter was found."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from .factors import module_of

TENSORS, RECORD, ANCHOR = "adapter_model.safetensors", "cntlora.json", "anchor"


def load_adapter(
    model: torch.nn.Module,
    folder: str | pathlib.Path,
    *,
    adapter_name: str = "default",
    is_trainable: bool = True,
    **changes: Any,
) -> PeftModel:
    """Loads an adapter folder into a model, in place, and returns the PEFT model.

    Every layer of the adapter must exist in the model, and every LoRA layer of the model must get its factors. `changes` are fields of
    the LoraConfig to change, such as `modules_to_save=["classifier"]`, `task_type="SEQ_CLS"` or `lora_dropout=0.1`. Heads that the
    folder does not hold keep the numbers of the model.

    An adapter with a residual start needs its own base: load the model from the folder `base`. If the folder has an anchor, it is
    loaded as a second, frozen adapter, and both are active.

    Raises FileNotFoundError if the folder has no adapter, and ValueError if the adapter does not fit the model. The model then stays as
    it is.
    """
    folder = pathlib.Path(folder)
    if not (folder / "adapter_config.json").is_file() or not (folder / TENSORS).is_file():
        raise FileNotFoundError(f"{folder} has no adapter: expected adapter_config.json and {TENSORS}")
    config = PeftConfig.from_pretrained(str(folder))
    for name, value in changes.items():
        if not hasattr(config, name):
            raise TypeError(f"a {type(config).__name__} has no field {name!r}")
        setattr(config, name, value)
    config.inference_mode = not is_trainable
    record = _read(folder / RECORD)
    _check_layers(model, folder, config)
    if record.get("method", {}).get("start") == "residual" and record.get("residual") != ANCHOR:
        _check_base(model, folder, config, record)
    loaded = _add(model, folder, config, adapter_name)
    if (folder / ANCHOR / TENSORS).is_file() and adapter_name != ANCHOR:
        _add_anchor(loaded, folder / ANCHOR, adapter_name)
    if not is_trainable:
        loaded.eval()
    return loaded


def _add(model: torch.nn.Module, folder: pathlib.Path, config: PeftConfig, adapter: str) -> PeftModel:
    """Adds the adapter and its tensors. Takes the adapter off again if its layers are not those of the folder."""
    is_first = not isinstance(model, PeftModel)
    if is_first:
        # PEFT replaces the name of the base with the path of the model, and warns if they differ.
        name, config.base_model_name_or_path = config.base_model_name_or_path, None
        model = get_peft_model(model, config, adapter_name=adapter)
        config.base_model_name_or_path = name or config.base_model_name_or_path
    elif adapter in model.peft_config:
        raise ValueError(f"the model already has an adapter {adapter!r}: give another adapter_name")
    else:
        model.add_adapter(adapter, config)
    try:
        present = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
        tensors = load_file(folder / TENSORS)
        without = sorted(key for key in present.keys() - tensors.keys() if module_of(key))
        if without:
            raise ValueError(
                f"{folder} has no factors for layers that its configuration adapts in {_class_of(model)}: {_listed(map(module_of, without))}"
            )
        wrong = [key for key, tensor in present.items() if key in tensors and tensors[key].shape != tensor.shape]
        if wrong:
            raise ValueError(f"tensors of {folder} have another shape than in {_class_of(model)}: {_listed(wrong)}")
        result = set_peft_model_state_dict(model, {**present, **tensors}, adapter_name=adapter)
        if result.unexpected_keys:
            raise ValueError(f"{_class_of(model)} has no place for tensors of {folder}: {_listed(result.unexpected_keys)}")
    except BaseException:
        if is_first:
            model.unload()
        else:
            model.delete_adapter(adapter)
        raise
    if not is_first:
        model.set_adapter(adapter, inference_mode=config.inference_mode)
    return model


def _add_anchor(model: PeftModel, folder: pathlib.Path, adapter: str) -> None:
    """Adds the frozen adapter that takes the update away, beside the first one."""
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    _add(model, folder, config, ANCHOR)
    model.base_model.set_adapter([adapter, ANCHOR])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trainable


def _check_layers(model: torch.nn.Module, folder: pathlib.Path, config: PeftConfig) -> None:
    """Raises ValueError if the adapter has layers that the model does not have."""
    root = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = {re.sub(r"\.base_layer(?=\.|$)", "", name) for name, _ in root.named_modules()}
    with safe_open(folder / TENSORS, framework="pt") as file:
        wanted = {module for key in file.keys() if (module := module_of(key))}
    missing = sorted(wanted - modules)
    if not missing:
        return
    made_for, found = _class_of_adapter(folder, config), _class_of(model)
    prefix = next((name.removesuffix(missing[0]) for name in sorted(modules) if name.endswith("." + missing[0])), None)
    shorter = next((name for name in sorted(modules) if name and missing[0].endswith("." + name)), None)
    if prefix:
        hint = f". In {found}, their names begin with {prefix!r}"
    elif shorter:
        hint = f". In {found}, their names do not begin with {missing[0].removesuffix(shorter)!r}"
    else:
        hint = ""
    raise ValueError(
        f"{len(missing)} of {len(wanted)} layers of the adapter in {folder}, made for {made_for}, are not in the model, a {found}: "
        f"{_listed(missing)}{hint}. Load the adapter into the class that it was made for, or compute it for this class with "
        "initialize_lora_weights"
    )


def _class_of(model: torch.nn.Module) -> str:
    return type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__


def _class_of_adapter(folder: pathlib.Path, config: PeftConfig) -> str:
    """Returns the class of the model that an adapter was made for, as far as its folder tells."""
    if (named := (config.auto_mapping or {}).get("base_model_class")) is not None:
        return named
    for base in (folder / "base", pathlib.Path(config.base_model_name_or_path or "")):
        if architectures := _read(base / "config.json").get("architectures"):
            return architectures[0]
    return "a class that its folder does not name"


def _check_base(model: torch.nn.Module, folder: pathlib.Path, config: PeftConfig, record: dict[str, Any]) -> None:
    """Raises ValueError if the weights of the model are not those of the base that belongs to a residual start."""
    named = pathlib.Path(config.base_model_name_or_path or "")
    base = folder / "base" if (folder / "base").is_dir() else named
    root = model.get_base_model() if isinstance(model, PeftModel) else model
    path = getattr(getattr(root, "config", None), "_name_or_path", "") or ""
    if path and base.is_dir() and pathlib.Path(path).resolve() == base.resolve():
        return
    if _has_weights_of(root, base, record):
        return
    raise ValueError(
        f"the adapter in {folder} has a residual start: it works only with the weights in {base}, but the model was loaded from "
        f"{path or 'another place'}. Load the model from {base}, or make an adapter for the original weights with `cntlora convert`"
    )


def _has_weights_of(model: torch.nn.Module, base: pathlib.Path, record: dict[str, Any]) -> bool:
    """True if the first adapted weight of the model is that of a folder."""
    modules = dict(model.named_modules())
    for layer in record.get("layers", []):
        module = modules.get(layer["module"])
        for file in sorted(base.glob("*.safetensors")):
            with safe_open(file, framework="pt") as weights:
                if module is not None and layer["tensor"] in weights.keys():
                    found = getattr(module, "base_layer", module).weight.detach().cpu()
                    # The minor components of a weight can be small, so only equal numbers count.
                    return torch.equal(found, weights.get_tensor(layer["tensor"]).to(found.dtype))
    return False


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a JSON file, or an empty object if there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def _listed(names: Any) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
