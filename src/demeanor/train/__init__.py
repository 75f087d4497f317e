"""Training: heal after an edit, fine-tune, detoxify, reward from automatic feedback. On TRL and PEFT (the extra `train`)."""

from .heal import heal
from .plans import Detox, Heal, Prefix, Rlaf, Sft, Training
from .prefix import prefix
from .result import Trained
from .rlaf import rlaf
from .sft import detox, sft

__all__ = ["Detox", "Heal", "Prefix", "Rlaf", "Sft", "Trained", "Training", "detox", "heal", "prefix", "rlaf", "sft"]
