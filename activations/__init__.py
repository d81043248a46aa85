"""Everything that runs a model to read it: models, prompts, capture of residual streams, the on-disk store."""

from .capture import capture
from .errors import DefectionError
from .models import Model, ModelIdentity, load_model
from .positions import Position, parse_position
from .prompts import Message, Prompt, load_prompts, user_prompt
from .reading import Reading
from .residuals import Residuals

__all__ = [
    "DefectionError",
    "Message",
    "Model",
    "ModelIdentity",
    "Position",
    "Prompt",
    "Reading",
    "Residuals",
    "capture",
    "load_model",
    "load_prompts",
    "parse_position",
    "user_prompt",
]
