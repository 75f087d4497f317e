"""Writing a control into a model's files, shard by shard, without loading the model. algorithms.md, sections 5 and 6.

Only edited tensors are computed, a block of rows at a time, in float32; all else goes over as the file system does it best and stays
byte for byte the same. What is written equals what the run-time control does. The result is made in a folder beside the target and
renamed when complete; a bake that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..arrays import in_numpy
from ..controls import Control
from ..controls.files import digest
from ..errors import ControlError, ModelError
from ..io.atomic import in_one_sentence, new_folder, resumed_folder
from ..io.checkpoint import Checkpoint, open_checkpoint
from ..io.claims import claimed
from ..models import Loading
from ..models.naming import base_of, same_model, weights_of
from ..progress import say, warn
from ..runtime.control_like import as_control
from ..structure.layout import same_weights
from ..structure.stored_names import StoredNames
from ..version import __version__
from .card import write_card
from .changes import changes
from .copying import bytes_to_copy, copy_model
from .folders import whole_folder
from .names import FileTensors
from .patch import share_of, worst_of
from .shards import Unusable, bytes_to_write, refuse_full, write_shards
from .untying import bytes_apart, edit_apart, untie, unties, write_apart
from .verify import Verified, has_room
from .verify import verify as compared


@dataclass(frozen=True, kw_only=True)
class Baked:
    """What was written: the folder, how many tensors were edited of how many, and which files were left out.

    left: the share of what the edit takes out (or moves) along its directions that rounding put back, 0 to 1, over all tensors; None
    where nothing is rounded. worst: the tensor with most of it, and how much. linked: shards that are other names of the source's own.
    verified: what came of loading what was written, None where it was not. unused: tensors that are no part of the model as it is loaded,
    as far as the framework was asked for its names.
    """

    folder: Path
    edited: int
    tensors: int
    untied: bool
    left_out: tuple[str, ...]
    left: float | None = None
    worst: tuple[str, float] | None = None
    linked: int = 0
    verified: Verified | None = None
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.edited} of {self.tensors} tensors edited, the others byte for byte as before."]
        if self.left is not None and self.worst is not None:
            lines.append(f"Left of r after rounding: {self.left:.4%} (most in {self.worst[0]}: {self.worst[1]:.4%}).")
        if self.linked:
            lines.append(
                f"{self.linked} shards without an edited tensor are hard links to the model's own files, and take no room; --copy makes copies."
            )
        if self.untied:
            lines.append(
                "The output head was tied to the embedding and is now a tensor of its own; converters that drop it for this family (GGUF) would undo the edit there."
            )
        if self.unused:
            lines.append(
                f"{len(self.unused)} tensors ({self.unused[0]} first) are no part of the model as it is loaded (heads for drafts or several tokens at once, say) and stay as they were: what reads them does without the edit."
            )
        if self.verified is not None:
            lines.append(str(self.verified))
        if self.left_out:
            lines.append(f"Left out, because they hold unedited weights or are no files: {', '.join(self.left_out)}.")
        return "\n".join(lines)


def bake(
    model: str | Path, control: Control, out: str | Path, trust_remote_code: bool = False, copy: bool = False, verify: Loading | None = None,
    keep_norms: bool = False,
) -> Baked:
    """Write `model` with `control` in its weights to the new folder `out`.

    trust_remote_code: run code that comes with a model whose adapter has to be merged first.
    copy: shards without an edited tensor are copied; else they are hard links to the model's own files, where the file system can.
    verify: how what is written is loaded, to be compared with the control at run time where memory allows (CheckFailed where it is
    another). The names of all parameters are then compared with those of the files too. None: the framework is not asked for anything
    that the files and the control tell by themselves, so that it need not be imported.
    keep_norms: every column of an edited weight is scaled back to the length it had, so what an ablation takes out is out and the rest is
    more than the control leaves at run time. Biases are as without it.
    Raises ControlError when weights cannot do exactly what the control does, or when the control was made
    for another structure; ModelError for damaged files; DataError where the disk is too small. Nothing is left behind on failure.
    A bake that was killed goes on after the last shard that was complete.
    """
    reason = as_control(control).bakeable()
    if reason:
        raise ControlError(f"This control cannot be baked: {reason}.")
    out, control = Path(out), control.converted(in_numpy)
    if control.adapters:
        same = same_weights(control.weights, weights_of(str(model)))
        refuse_other(str(model), control.model_name, "The adapter", same)
    with claimed(out, "folder", replaces=False), in_one_sentence(out), whole_folder(str(model), out, trust_remote_code) as folder:
        source = open_checkpoint(folder)
        files = FileTensors(source, control, by_framework=verify is not None)  # refuses what does not fit before anything is copied
        if keep_norms and files.packed:
            raise ControlError(f"{model} is stored in few bits, whose scales stay as they are, so lengths cannot be kept; leave --keep-norms out.")
        if keep_norms and control.adapters:
            warn("Lengths are kept of what an adapter changes too, which may undo it or do more of it; compare with a bake without --keep-norms.")
        edits = changes(control, files, keep_norms)
        untied = unties(source, files, edits)
        with resumed_folder(out, _key(source, control, copy, keep_norms)) as work:
            twice = bytes_apart(source, [files.key(control.layout.tied[0])] if untied and control.layout.tied else [])
            refuse_full(work, bytes_to_write(source, edits, work, copy) + twice + bytes_to_copy(source), out)
            left_out = copy_model(source, work)
            apart = untie(source, files, work) if untied else {}
            _refuse_incomplete(files, apart, work, str(model))
            names = {shard: shard for shard in source.shards} | write_apart(source, apart, work)
            with _told(source, apart, str(model)):
                written = write_shards(source, edits, work, names, copy)
                more, put_back = edit_apart(files, edits, apart, work)
            all_of_it = {**written.put_back, **put_back}
            write_card(source, control, str(model), work, keep_norms)
            verified = _verified(str(model), control, work, files, verify, keep_norms)
    return Baked(
        folder=out, edited=len(edits) + more, tensors=len(source.tensors) + len(apart), untied=untied, left_out=left_out,
        linked=written.links, verified=verified, unused=files.unused(), left=share_of(all_of_it), worst=worst_of(all_of_it),
    )  # fmt: skip


def _refuse_incomplete(files: FileTensors, apart: Mapping[str, str], work: Path, name: str) -> None:
    """ModelError where the model that is written would be loaded with a parameter that none of its files holds, and so at random."""
    if not isinstance(files.stored, StoredNames):
        return
    tensors = {**files.source.tensors, **{new: files.source.tensors[key] for new, key in apart.items()}}
    written = StoredNames(replace(files.source, folder=work, tensors=tensors)) if apart else files.stored
    missing = written.missing()
    if missing:
        raise ModelError(
            f"What would be written of {name} holds no tensor for {len(missing)} parameters ({missing[0]} first), which would be made up when it is loaded, so nothing was written; download the model again, or use the control at run time."
        )


def _verified(
    model: str, control: Control, work: Path, files: FileTensors, loading: Loading | None, keep_norms: bool
) -> Verified | None:
    """What came of loading what was written; None where that was not asked for or cannot be, which is said."""
    if loading is None or not has_room(files.source):
        return None
    if files.packed:
        form = next(iter(files.packed.values())).form
        say(f"{model} is stored in few bits ({form}), so what was written was not loaded and compared; what is left of r was read from what is stored.")
        return None
    return compared(model, control, work, loading, keep_norms)


def _key(source: Checkpoint, control: Control, *how: bool) -> str:
    """What a bake writes: from which files, by which control, how."""
    shards = [(shard, stat.st_size, stat.st_mtime_ns) for shard in source.shards for stat in [(source.folder / shard).stat()]]
    told = [__version__, str(source.folder.resolve()), shards, source.fingerprint, digest(control), how]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


@contextmanager
def _told(source: Checkpoint, apart: Mapping[str, str], model: str) -> Iterator[None]:
    """An error tells which tensor of the model `model` holds what is no number. apart: tensors that are copies of the source's, by their new names."""
    try:
        yield
    except Unusable as error:
        if error.in_source:
            raise ModelError(f"The model {model} holds values that are not finite in {error.key}; download it again.") from error
        raise ControlError(
            f"The edit makes values in {error.key} that are too large for its dtype ({source.tensors[apart.get(error.key, error.key)].dtype}), so nothing was written; use a smaller dose, or a copy of the model in a wider dtype."
        ) from error


def merge(model: str | Path, adapter: str | Path, out: str | Path, trust_remote_code: bool = False) -> Path:
    """Write an adapter into the weights of the model it was made for, as the new folder `out`.

    Raises ControlError when it was made for another model, ModelError when it cannot be merged.
    """
    from ..models.loading import save_whole

    base, out = base_of(Path(adapter)), Path(out)
    refuse_other(str(model), base, f"The adapter {adapter}", same=None)
    with new_folder(out) as work:
        save_whole(str(adapter), work, trust_remote_code)
        card = Path(adapter) / "README.md"
        if card.is_file():
            shutil.copyfile(card, work / card.name)
    return out


def refuse_other(model: str, base: str, what: str, same: bool | None) -> None:
    """Raises ControlError where an adapter would be added to other weights than those it was trained beside; `same` says whether they
    are those, None where that is told by the names of both alone."""
    if not (same_model(model, base) if same is None else same):
        raise ControlError(f"{what} was made for {base}, and this is {model}; name the model it was made for.")
