"""Training: heal after an edit, fine-tune, detoxify, reward from automatic feedback. On TRL and PEFT (the extra `train`)."""

from .feedback import rlaf
from .fine_tuning import detox, sft
from .healing import heal
from .plans import Detox, Heal, Prefix, Rlaf, Sft, Training
from .prefixes import prefix
from .result import Trained

__all__ = ["Detox", "Heal", "Prefix", "Rlaf", "Sft", "Trained", "Training", "detox", "heal", "prefix", "rlaf", "sft"]
