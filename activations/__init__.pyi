from .basics.errors import DefectionError
from .basics.frames import Table
from .basics.tables import read_table
from .models.load import load_model
from .models.model import Model, ModelIdentity
from .models.wrap import ModelLike, wrap
from .prompts.loading import PromptLike, PromptsLike, load_prompts
from .prompts.positions import Position, parse_position
from .prompts.prompts import Message, Prompt, user_prompt
from .reading.bridge import as_activation_cache, from_bridge
from .reading.capture import capture
from .reading.exported import load_states
from .reading.forward import Reading
from .reading.residuals import Residuals, load_residuals
from .stores.batches import Vectors
from .stores.caching import cache, repair
from .stores.estimate import Estimate, estimate
from .stores.store import Store, open_store
from .stores.views import View, concatenate

__all__ = [
    "DefectionError",
    "Estimate",
    "Message",
    "Model",
    "ModelIdentity",
    "ModelLike",
    "Position",
    "Prompt",
    "PromptLike",
    "PromptsLike",
    "Reading",
    "Residuals",
    "Store",
    "Table",
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
    "load_residuals",
    "load_states",
    "open_store",
    "parse_position",
    "read_table",
    "repair",
    "user_prompt",
    "wrap",
]
