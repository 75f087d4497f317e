"""Heretic's own command line, where two packages that it imports and does not use here are not installed.

It imports bitsandbytes for models in 4 bits and lm-eval for an entry of its menu. While it is imported, empty modules stand in their
place, and nothing asks for them later. Runs in Heretic's environment, with its arguments:

    python benchmarks/peers/start_heretic.py --model MODEL
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

UNUSED = {"bitsandbytes": {}, "lm_eval": {}, "lm_eval.models": {}, "lm_eval.models.huggingface": {"HFLM": None}}


def main() -> None:
    import peft.import_utils
    import transformers.utils

    peft.import_utils.is_bnb_available()  # asked once and kept: it is to be told the truth
    transformers.utils.is_bitsandbytes_available()
    absent = {name for name in ("bitsandbytes", "lm_eval") if importlib.util.find_spec(name) is None}
    empty = {name: names for name, names in UNUSED.items() if name.partition(".")[0] in absent}
    for name, names in empty.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(names)
    from heretic.main import main as heretic

    for name in empty:
        del sys.modules[name]
    heretic()


if __name__ == "__main__":
    main()
