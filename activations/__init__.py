"""Everything that runs a model to read it: models, prompts, capture of residual streams, the on-disk store."""

from .caching import cache, repair
from .capture import capture
from .errors import DefectionError
from .estimate import Estimate, estimate
from .lens import as_activation_cache, from_bridge
from .models import Model, ModelIdentity, load_model, wrap
from .positions import Position, parse_position
from .prompts import Message, Prompt, load_prompts, user_prompt
from .reading import Reading
from .residuals import Residuals
from .store import Store, Vectors, open_store
from .views import View, concatenate

__all__ = [
    "DefectionError",
    "Estimate",
    "Message",
    "Model",
    "ModelIdentity",
    "Position",
    "Prompt",
    "Reading",
    "Residuals",
    "Store",
    "Vectors",
    "View",
    "as_activation_cache",
    "cache",
    "capture",
    "concatenate",
    "estimate",
    "from_bridge",
    "load_model",
    "load_prompts",
    "open_store",
    "parse_position",
    "repair",
    "user_prompt",
    "wrap",
]
