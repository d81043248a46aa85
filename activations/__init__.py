"""Everything that runs a model to read it: models, prompts, capture of residual streams, the on-disk store."""

from .capture import Residuals, capture
from .errors import DefectionError
from .models import Model, ModelIdentity, load_model
from .prompts import Message, Prompt, load_prompts, user_prompt

__all__ = [
    "DefectionError",
    "Message",
    "Model",
    "ModelIdentity",
    "Prompt",
    "Residuals",
    "capture",
    "load_model",
    "load_prompts",
    "user_prompt",
]
