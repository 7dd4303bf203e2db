"""A transformers model whose parameters have shapes and no memory, until it borrows some."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from edgezo_export.quiet import quiet
from edgezo_runtime.errors import InputError

#: A seventh fewer nodes than scaled_dot_product_attention's export, and up to 5 % faster.
ATTENTION = "eager"


def shell(
    config: PretrainedConfig, auto: Any = AutoModelForCausalLM, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Returns the model that `auto` makes of `config`; tied parameters are one, buffers real."""
    with init_empty_weights(include_buffers=False), quiet():
        model = auto.from_config(config, torch_dtype=dtype, attn_implementation=ATTENTION)
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, GPT2Attention):
            # GPT-2 hides the future twice, with the mask that it is given and with a slice of its
            # own; the slice nests each layer's sizes in those below, and export takes for ever.
            module.is_cross_attention = True
    # One number, repeated with stride 0: the exporter needs shapes on the CPU.
    _replace_parameters(model, lambda _, old: torch.zeros((), dtype=dtype).expand(old.shape))
    return model.eval()


def shell_of_folder(
    source: Path, auto: Any = AutoModelForCausalLM, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Returns the shell of the checkpoint in `source`, or raises InputError with the reason."""
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                source, local_files_only=True, trust_remote_code=False
            )
        return shell(config, auto, dtype)
    except Exception as error:  # whatever a wrong setting makes transformers and torch raise
        known = isinstance(error, (ValueError, OSError, RuntimeError))  # others say a word or two
        reason = ((str(error) if known else repr(error)).strip().splitlines() or [repr(error)])[0]
        raise InputError(f"transformers cannot make the model of {source}: {reason}") from error


def lend_weights(model: PreTrainedModel, weights: Mapping[str, np.ndarray]) -> None:
    """Lets `model` compute with the arrays of `weights`, by parameter name, without a copy.

    Arrays of uint16 are the bits of bfloat16.
    """

    def borrowed(name: str, _: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(weights[name])
        return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor

    _replace_parameters(model, borrowed)


def _replace_parameters(model: PreTrainedModel, new: Callable[[str, Tensor], Tensor]) -> None:
    """Replaces each parameter; tied ones by one, made for their first name."""
    made: dict[int, nn.Parameter] = {}
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        if id(old) not in made:
            made[id(old)] = nn.Parameter(new(name, old), requires_grad=False)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, made[id(old)])
