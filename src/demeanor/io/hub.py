"""The Hub: names of what lies there, and whatever goes wrong with it told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..progress import say

FILES = (".safetensors", ".pt", ".json", ".yaml", ".gguf")  # endings of what is a file here


class HubName(NamedTuple):
    """`owner/name`, or `owner/name@revision`."""

    repo: str
    revision: str | None

    @classmethod
    def of(cls, text: str) -> HubName:
        repo, _, revision = text.partition("@")
        return cls(repo, revision or None)


def hub_name(name: str) -> HubName | None:
    """A name on the Hub; None for what can only be a file or folder here."""
    repo, revision = HubName.of(name)
    local = name.startswith((".", "/", "~")) or any(mark in name for mark in ":\\") or Path(name).suffix in FILES
    if local or repo.count("/") != 1 or not all(repo.split("/")) or "/" in (revision or ""):
        return None
    return HubName(repo, revision)


@contextmanager
def told(what: str, then: str = "") -> Iterator[None]:
    """DataError, in one sentence, for what a network and the Hub can refuse: what could not be done, why, and what to do then."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError

    of_network: Any = HfHubHTTPError.__bases__[0]  # the root of all errors of the library's client, which differs from version to version
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise DataError(f"{what}: nobody is logged in; run `hf auth login`, or set HF_TOKEN.") from error
    except LocalEntryNotFoundError as error:
        raise DataError(f"{what}: it is not in the cache, and the Hub cannot be reached; try again with a network.") from error
    except (of_network, HFValidationError, RuntimeError, ValueError, OSError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        said = (" ".join(str(cause).split()) or type(cause).__name__)[:200].rstrip(".")
        raise DataError(f"{what}: {said}{then}.") from error


def from_hub(name: HubName, file: str) -> Path:
    """A file of a repository on the Hub, in the Hub's cache. DataError where it cannot be had."""
    from huggingface_hub import hf_hub_download

    say(f"{name.repo} is no file or folder here; it is asked for on the Hub.")
    with told(f"There is no {name.repo} here, and its {file} could not be fetched from the Hub"):
        return Path(hf_hub_download(name.repo, file, revision=name.revision))
