"""The LoRA layers of a model: their names, factors, ranks and scales."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding, MultiheadAttention, ParamWrapper, _ConvNd

# Initializations of PEFT that change the weights of the model, or freeze a factor.
CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")

# Variants of LoRA whose factors have the meaning and the shapes of plain LoRA.
PLAIN_VARIANTS = ("Dora", "ALora", "MiCA")


@dataclass
class Layer:
    """One adapted weight.

    `name` is the name that the recorder and the tool use; `key` is the name that PEFT compares with the patterns of a configuration.
    They differ only for single parameters of linear layers. `parameter` names the parameter that `target_parameters` adapts.
    """

    name: str
    key: str
    module: LoraLayer
    adapter: str
    parameter: str | None = None

    @property
    def base(self) -> torch.nn.Module:
        """The layer without its adapters."""
        return self.module.get_base_layer()

    @property
    def weight(self) -> torch.Tensor | None:
        """The weight as the model stores it. None if the weight is not one tensor, as in quantized layers."""
        return getattr(self.base, self.parameter or "weight", None)

    @property
    def is_embedding(self) -> bool:
        return isinstance(self.module, Embedding)

    @property
    def is_convolution(self) -> bool:
        return isinstance(self.module, _ConvNd)

    @property
    def is_experts(self) -> bool:
        """True if the weight has a matrix for each expert."""
        return self.parameter is not None and self.module._param_ndim == 3

    @property
    def rank(self) -> int:
        return self.module.r[self.adapter]

    @property
    def scale(self) -> float:
        """The factor of the product B A."""
        return self.module.scaling[self.adapter]

    @property
    def alpha(self) -> float:
        return self.module.lora_alpha[self.adapter]

    @property
    def inputs(self) -> int:
        """Numbers in a row that the layer reads; of a convolution, the numbers of a patch; of an embedding, the tokens."""
        if self.is_convolution:
            return self.base.in_channels * math.prod(self.base.kernel_size)
        return self.module.in_features

    @property
    def outputs(self) -> int:
        return self.module.out_features

    @property
    def parts(self) -> int:
        """The number of groups of a convolution, which divide its rank."""
        return self.base.groups if self.is_convolution else 1

    def factors(self) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
        """Returns the parameters A and B."""
        if self.is_embedding:
            return self.module.lora_embedding_A[self.adapter], self.module.lora_embedding_B[self.adapter]
        return self.module.lora_A[self.adapter].weight, self.module.lora_B[self.adapter].weight

    @property
    def is_without_numbers(self) -> bool:
        """True if the factors are on the meta device, as `get_peft_model` leaves them with `low_cpu_mem_usage`."""
        return self.factors()[0].device.type == "meta"

    def _allocate(self) -> None:
        """Gives an adapter without numbers memory where the weight is. The numbers are not set."""
        if not self.is_without_numbers:
            return
        device = next(tensor.device for tensor in itertools.chain(self.base.parameters(), self.base.buffers()))
        for name in self.module.adapter_layer_names:
            held = getattr(self.module, name, None)
            if isinstance(held, torch.nn.ModuleDict) and self.adapter in held:
                held[self.adapter].to_empty(device=device)
            elif isinstance(held, torch.nn.ParameterDict) and self.adapter in held:
                old = held[self.adapter]
                held[self.adapter] = torch.nn.Parameter(torch.empty_like(old, device=device), requires_grad=old.requires_grad)

    def start_as_peft(self) -> None:
        """Gives the factors of an adapter without numbers PEFT's own initialization."""
        self._allocate()
        self.module.reset_lora_parameters(self.adapter, True)

    def set_factors(self, a: torch.Tensor, b: torch.Tensor, rank: int, scale: float) -> None:
        """Writes the factors, and changes the rank and the scale of the layer if they differ.

        A parameter keeps its identity, number format and device while its shape stays the same.
        """
        self._allocate()
        old_a, old_b = self.factors()
        module = self.module
        if a.shape == old_a.shape and b.shape == old_b.shape:
            old_a.data.copy_(a)
            old_b.data.copy_(b)
        else:
            new_a, new_b = _like(a, old_a), _like(b, old_b)
            if self.is_embedding:
                module.lora_embedding_A[self.adapter], module.lora_embedding_B[self.adapter] = new_a, new_b
            else:
                down, up = module.lora_A[self.adapter], module.lora_B[self.adapter]
                down.weight, up.weight = new_a, new_b
                if self.is_convolution:
                    down.out_channels = up.in_channels = rank
                else:
                    down.out_features = up.in_features = a.shape[0]
        if not self.is_embedding and module.lora_B[self.adapter].bias is not None:
            module.lora_B[self.adapter].bias.data.zero_()
        self.set_scale(rank, scale)

    def padded(self, a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns factors of the rank of the layer from factors of a smaller rank: with PEFT's own rows in A, and zeros in B."""
        count = self.module.num_experts if self.is_experts else 1
        if self.is_without_numbers:
            self.start_as_peft()
        own_a, own_b = (factor.detach().cpu().float().clone() for factor in self.factors())
        # The rows of A are ordered by experts, the columns of B by units of rank.
        own_a.unflatten(0, (count, self.rank))[:, :rank] = a.unflatten(0, (count, rank))
        own_b.zero_()
        own_b.unflatten(1, (self.rank, count))[:, :rank] = b.unflatten(1, (rank, count))
        return own_a, own_b

    def set_scale(self, rank: int, scale: float) -> None:
        """Sets the rank and the scale, with the alpha that belongs to them."""
        module, adapter = self.module, self.adapter
        if rank == self.rank and scale == self.scale:
            return
        alpha = scale * (math.sqrt(rank) if module.use_rslora[adapter] else rank)
        alpha = int(alpha) if alpha == int(alpha) else alpha
        module.r[adapter] = rank
        module.lora_alpha[adapter] = alpha
        module.scaling[adapter] = alpha / (math.sqrt(rank) if module.use_rslora[adapter] else rank)

    def needs_magnitudes(self) -> bool:
        """True if the layer has the magnitudes of DoRA."""
        return self.adapter in self.module.lora_magnitude_vector

    def set_magnitudes(self, config: LoraConfig) -> None:
        """Computes the magnitudes of DoRA from the weight and the factors."""
        old = self.module.lora_magnitude_vector[self.adapter].weight
        self.module.lora_variant[self.adapter].init(self.module, adapter_name=self.adapter, config=config)
        new = self.module.lora_magnitude_vector[self.adapter]
        new.weight = _like(new.weight.data, old)


def _like(tensor: torch.Tensor, old: torch.nn.Parameter) -> torch.nn.Parameter:
    data = tensor.to(old.device, old.dtype).contiguous()
    return torch.nn.Parameter(data, requires_grad=old.requires_grad)


def root_of(model: torch.nn.Module) -> torch.nn.Module:
    """Returns the module from which the names of layers start: the base model of a PEFT model.

    Raises TypeError if the model has no LoRA layers that can be initialized.
    """
    advice = "give the model that get_peft_model or add_adapter returned or changed, with a LoraConfig"
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"expected a PEFT model, found {type(model).__name__}: {advice}")
    if hasattr(model, "_orig_mod"):
        raise TypeError("the model is compiled: initialize it before torch.compile")
    if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        raise TypeError(f"the model is wrapped in {type(model).__name__}: initialize it before it is wrapped, or give model.module")
    if type(model).__name__ in ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"):
        raise TypeError(f"the model is wrapped in {type(model).__name__}: initialize it before it is sharded")
    if not getattr(model, "peft_config", None):
        raise TypeError(f"expected a PEFT model, found {type(model).__name__} without an adapter: {advice}")
    tuner = getattr(model, "base_model", None)
    return tuner.model if hasattr(tuner, "tuner_layer_cls") else model


def is_mica(config: LoraConfig) -> bool:
    """True if PEFT keeps B as it is during training."""
    return isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower() == "mica"


def config_of(model: torch.nn.Module, adapter: str, method: str) -> LoraConfig:
    """Returns the configuration of an adapter. Raises an error if the adapter is not a LoRA adapter that the method can initialize."""
    configs = model.peft_config
    if adapter not in configs:
        raise ValueError(f"the model has no adapter {adapter!r}; it has {', '.join(map(repr, configs))}")
    config = configs[adapter]
    if not isinstance(config, LoraConfig):
        raise TypeError(f"the adapter {adapter!r} is of the type {config.peft_type}, but only LoRA can be initialized")
    start = config.init_lora_weights
    if method == "mica":
        if not is_mica(config):
            raise ValueError(
                f"the method 'mica' trains A alone, but PEFT would also train B of the adapter {adapter!r}: "
                "load the model again and make the adapter with init_lora_weights='mica'"
            )
        return config
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_MODEL):
        raise ValueError(
            f"the adapter {adapter!r} was made with init_lora_weights={start!r}, which changes the model or freezes a factor: "
            "load the model again and make the adapter with init_lora_weights=True"
        )
    return config


def check_numbers(layers: dict[str, Layer], config: LoraConfig) -> None:
    """Raises ValueError if factors are on the meta device together with parts of the adapter that need their numbers."""
    others = [name for name in ("ensure_weight_tying", "trainable_token_indices") if getattr(config, name, None)]
    if others and any(layer.is_without_numbers for layer in layers.values()):
        raise ValueError(
            f"the adapter is on the meta device, and {others[0]} needs its numbers: make the adapter without low_cpu_mem_usage"
        )


def layers_of(model: torch.nn.Module, adapter: str) -> tuple[dict[str, Layer], list[tuple[Layer, str]]]:
    """Returns the layers that have the adapter by name, and those that cannot be initialized with the reason."""
    found: dict[str, Layer] = {}
    left_out: list[tuple[Layer, str]] = []
    owners: dict[int, str] = {}
    for path, module in root_of(model).named_modules():
        if not isinstance(module, LoraLayer) or adapter not in module.r:
            continue
        name = key = re.sub(r"\.base_layer(?=\.|$)", "", path)
        parameter = getattr(module, "parameter_name", None)
        if parameter is not None:
            key = f"{name}.{parameter}"
            if module._param_ndim == 3 or parameter != "weight":
                name = key
        layer = Layer(name, key, module, adapter, parameter)
        if reason := _reason_against(layer) or _shares_factors(layer, owners):
            left_out.append((layer, reason))
        else:
            found[name] = layer
    if not found and not left_out:
        raise TypeError(f"the model has no LoRA layers of the adapter {adapter!r}")
    return found, left_out


def _reason_against(layer: Layer) -> str | None:
    module = layer.module
    if module.merged:
        raise ValueError(f"the adapter of {layer.name} is merged into its weight: call unmerge_adapter() first")
    if isinstance(module, MultiheadAttention):
        return "PEFT adapts torch.nn.MultiheadAttention with a wrapper whose factors cannot be initialized"
    variant = module.lora_variant.get(layer.adapter)
    if variant is not None and not type(variant).__name__.startswith(PLAIN_VARIANTS):
        return f"its adapter is of the variant {type(variant).__name__.removesuffix('LinearVariant')}"
    if layer.is_convolution and any(number != 1 for number in layer.base.dilation):
        return "PEFT ignores the dilation of a convolution, and would adapt a different layer"
    if isinstance(module, ParamWrapper) and module._param_ndim == 2 and not isinstance(layer.base, torch.nn.Linear):
        return "it is a single matrix of a module that is not linear"
    return None


def _shares_factors(layer: Layer, owners: dict[int, str]) -> str | None:
    """Returns a reason if PEFT tied the factors of the layer to those of an earlier one."""
    for factor in layer.factors():
        if factor.device.type != "meta":
            owner = owners.setdefault(factor.untyped_storage().data_ptr(), layer.name)
            if owner != layer.name:
                return f"PEFT tied its factors to those of {owner}"
    return None


def remove(model: torch.nn.Module, layer: Layer) -> None:
    """Takes the adapter off a layer. If it was the only adapter, the layer is again the one without adapters."""
    layer.module.delete_adapter(layer.adapter)
    if not layer.module.r:
        for parent in model.modules():
            for name, child in parent.named_children():
                if child is layer.module:
                    setattr(parent, name, layer.module.base_layer)


def write_config(config: LoraConfig, layers: list[Layer], removed: list[Layer]) -> None:
    """Changes the configuration to the ranks and scales of the layers, so that saving and loading gives the same model."""
    if layers:
        ranks, alphas = [layer.rank for layer in layers], [layer.alpha for layer in layers]
        # PEFT warns of patterns for parameters, although it applies them.
        parameters = [layer for layer in layers if layer.parameter]
        usual = parameters or layers
        config.r = max((layer.rank for layer in usual), key=ranks.count)
        config.lora_alpha = max((layer.alpha for layer in usual), key=alphas.count)
        config.rank_pattern = {_pattern(layer): layer.rank for layer in layers if layer.rank != config.r}
        config.alpha_pattern = {_pattern(layer): layer.alpha for layer in layers if layer.alpha != config.lora_alpha}
    parameters = {layer.key for layer in removed if layer.parameter}
    if parameters:
        config.target_parameters = [layer.key for layer in layers if layer.parameter] or None
    modules = [re.escape(layer.key) for layer in removed if not layer.parameter]
    if modules:
        earlier = config.exclude_modules or []
        if not isinstance(earlier, str):
            modules += [rf"(?:.*\.)?{re.escape(name)}" for name in sorted(earlier)]
        else:
            modules.append(earlier)
        config.exclude_modules = "|".join(f"(?:{module})" for module in modules)


def _pattern(layer: Layer) -> str:
    return f"^{re.escape(layer.key)}"
