"""Shards of an edited model: what is untouched goes over as the file system does it best, what is edited is written once.

A shard without an edited tensor becomes another name of the same file (a hard link), or shares its blocks. In others, edited
tensors are written as they become, by several threads, and the bytes between them are copied. A shard has its name only when
it is whole and on the disk, so that a bake that was killed goes on after the last of them. The disk works while the rest is made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..io.atomic import STATE
from ..io.checkpoint import Checkpoint, Stored, read_header
from ..io.kernel_copy import begin_writing, cloned, copy_range, linked, read_at, write_at
from ..progress import Bar
from ..runtime.blas import blas_in_one_thread
from .changes import Change
from .patch import NotFinite, PutBack, patched, tasks

THREADS = 4
PIECE = 1 << 20  # bytes that are read, looked at and written at a time
MB = 10**6
TASK = 8 << 20  # bytes that one task copies
HANDED = 32 << 20  # bytes that are made before the disk is told to begin with them
PARTIAL = ".partial"
# A float is no number where its bits, as a whole number with or without a sign, are above these: the infinities.
INFINITIES = {"F16": (np.int16, 0x7C00, 0xFC00), "BF16": (np.int16, 0x7F80, 0xFF80), "F32": (np.int32, 0x7F800000, 0xFF800000)}


@dataclass
class Written:
    """What became of a model's shards: how many are other names of the source's own files, and what rounding did, by tensor."""

    links: int = 0
    put_back: dict[str, PutBack] = field(default_factory=dict)


class Unusable(Exception):
    """A tensor holds what is no number: `key` of the files, in the source or once it is edited."""

    def __init__(self, key: str, in_source: bool) -> None:
        super().__init__(key)
        self.key, self.in_source = key, in_source


def write_shards(source: Checkpoint, changes: Mapping[str, Change], work: Path, names: Mapping[str, str], copy: bool) -> Written:
    """Write every shard of a model, changed, into the folder `work`, under the names that `names` gives them.

    copy: shards without a change are copied, not linked. Raises Unusable where a tensor holds what is no number; shards that are
    linked are not looked at.
    """
    written = Written()
    by_shard: dict[str, list[str]] = {shard: [] for shard in source.shards}
    for key, stored in source.tensors.items():
        by_shard[stored.shard].append(key)
    total = sum((source.folder / shard).stat().st_size for shard in source.shards)
    done = 0
    threads = min(THREADS, os.cpu_count() or 1)
    flush: Future[None] | None = None  # of the shard before, while the next one is made
    with closing(Bar("Editing (MB)", total // MB)) as bar, _in_own_threads(changes), ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as flushing:
        for shard, keys in by_shard.items():
            edited = {key: changes[key] for key in keys if key in changes}
            place, target = source.folder / shard, work / names[shard]
            size = place.stat().st_size
            if target.exists() and (recalled := _recalled(work, shard, edited)) is not None:  # whole, by a command that was killed
                written.put_back |= recalled
                written.links += target.stat().st_nlink > 1
            elif not edited and not copy and linked(place, target):
                written.links += 1
            else:
                file, put_back = _write(pool, source, place, target, keys, edited, lambda count, start=done: bar.to((start + count) // MB))  # type: ignore[misc]
                written.put_back |= put_back
                before, flush = flush, flushing.submit(_named, file, work, shard, target, put_back)
                if before is not None:
                    before.result()
            done += size
            bar.to(done // MB)
        if flush is not None:
            flush.result()
    return written


@contextmanager
def _in_own_threads(changes: Mapping[str, Change]) -> Iterator[None]:
    """Libraries compute in the threads that are here, and in no more: numpy, and torch where weights in few bits are changed."""
    with ExitStack() as stack:
        stack.enter_context(blas_in_one_thread())
        if any(change.packed is not None for change in changes.values()):
            from ..runtime.runner import one_thread

            stack.enter_context(one_thread())
        yield


def edit_alone(path: Path, key: str, change: Change) -> PutBack:
    """Change a tensor of a file that is written already, in its place. Raises Unusable where something of it is no number."""
    with path.open("r+b") as file, blas_in_one_thread():
        stored = read_header(path)[key]
        try:
            return sum((patched(file.fileno(), file.fileno(), stored, change, task) for task in tasks(stored, change)), PutBack())
        except NotFinite as error:
            raise Unusable(key, error.in_source) from error


def bytes_to_write(source: Checkpoint, changed: Mapping[str, Change], target: Path, copy: bool) -> int:
    """How much of a disk the shards take at most: those that can be linked take nothing."""
    same_disk = not copy and target.stat().st_dev == source.folder.stat().st_dev
    touched = {source.tensors[key].shard for key in changed if key in source.tensors}
    return sum((source.folder / shard).stat().st_size for shard in source.shards if shard in touched or not same_disk)


def refuse_full(folder: Path, needed: int, out: Path) -> None:
    """Raises DataError where the disk of a folder has less room than what is going to be written."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{out} could not be written: it takes {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; make room, or name a folder on another disk."
        )


def _write(
    pool: ThreadPoolExecutor, files: Checkpoint, place: Path, target: Path, keys: list[str], edited: Mapping[str, Change], told: Callable[[int], None]
) -> tuple[int, dict[str, PutBack]]:
    """Write one shard, all but its last name; returns the open file, and what rounding did to each edited tensor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    held = {key: files.tensors[key] for key in keys}
    with ExitStack() as always, ExitStack() as unless_whole:
        source = os.open(place, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        always.callback(os.close, source)
        copy = os.open(target.with_name(target.name + PARTIAL), flags, 0o666)
        unless_whole.callback(os.close, copy)
        shared = cloned(source, copy)
        size = place.stat().st_size
        os.truncate(copy, size)
        jobs: list[tuple[str | None, int, Callable[[], PutBack]]] = [
            (key, (held[key].end - held[key].start) // len(parts), job)
            for key, change in edited.items()
            for parts in [_patches(source, copy, files, key, change)]
            for job in parts
        ]
        jobs += [(None, end - start, partial(_copied, source, copy, start, end, spans, shared)) for start, end, spans in _rest(held, edited, size)]
        jobs.sort(key=lambda job: (job[0] is None, -job[1]))  # what takes long first, so that no thread is left with it at the end
        put_back = _all(pool, jobs, _handing(copy, told))
        unless_whole.pop_all()
    return copy, {key: put_back.get(key, PutBack()) for key in edited}


def _handing(copy: int, told: Callable[[int], None]) -> Callable[[int], None]:
    """The same as `told`, which hands what was made to the disk from time to time: it has less to do at the end."""
    handed = 0

    def tell(done: int) -> None:
        nonlocal handed
        if done - handed >= HANDED:
            handed = done
            begin_writing(copy)
        told(done)

    return tell


def _named(copy: int, work: Path, shard: str, target: Path, put_back: Mapping[str, PutBack]) -> None:
    """Give a shard its name, once it is on the disk and what rounding did to it is kept."""
    try:
        os.fsync(copy)
    finally:
        os.close(copy)
    _keep(work, shard, put_back)
    os.replace(target.with_name(target.name + PARTIAL), target)


def _patches(source: int, copy: int, files: Checkpoint, key: str, change: Change) -> list[Callable[[], PutBack]]:
    """The change of a tensor from one open file into another, as jobs that do not need each other."""
    if change.packed is not None:
        from . import packed

        parts = packed.tasks(change.packed, packed.outputs_are_rows(change.packed, change.axis))
        return [partial(packed.patched, source, copy, files, change, part) for part in parts]
    return [partial(patched, source, copy, files.tensors[key], change, part) for part in tasks(files.tensors[key], change)]


def _all(pool: ThreadPoolExecutor, jobs: list[tuple[str | None, int, Callable[[], PutBack]]], told: Callable[[int], None]) -> dict[str, PutBack]:
    """Run jobs, and sum up what they say by tensor; the first error ends them all."""
    futures = {pool.submit(job): (key, size) for key, size, job in jobs}
    sums: dict[str, PutBack] = {}
    done = 0
    try:
        for future in as_completed(futures):
            key, size = futures[future]
            try:
                put_back = future.result()
            except NotFinite as error:
                assert key is not None
                raise Unusable(key, error.in_source) from error
            if key is not None:
                sums[key] = sums.get(key, PutBack()) + put_back
            done += size
            told(done)
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
    return sums


def _rest(held: Mapping[str, Stored], edited: Mapping[str, Change], size: int) -> Iterator[tuple[int, int, list[tuple[str, Stored]]]]:
    """The bytes that stay, as ranges with the tensors in them: from one edited tensor to the next, none much longer than a task."""
    start = 0
    spans: list[tuple[str, Stored]] = []
    for key, stored in sorted(held.items(), key=lambda item: item[1].start):
        if key in edited:
            if start < stored.start:
                yield start, stored.start, spans
            start, spans = stored.end, []
            continue
        spans.append((key, stored))
        if stored.end - start >= TASK:
            yield start, stored.end, spans
            start, spans = stored.end, []
    if start < size:
        yield start, size, spans


def _copied(source: int, target: int, start: int, end: int, spans: list[tuple[str, Stored]], shared: bool) -> PutBack:
    """Copy a range of a file and look at the numbers in it; where the files share their blocks, only the latter."""
    buffer = np.empty(PIECE, dtype=np.uint8)
    for key, stored in spans:
        if stored.dtype not in INFINITIES:
            continue
        if not shared and start < stored.start:
            copy_range(source, target, start, stored.start)
        for place in range(stored.start, stored.end, PIECE):
            piece = buffer[: min(PIECE, stored.end - place)]
            read_at(source, memoryview(piece), place)
            if _damaged(piece, stored.dtype):
                raise Unusable(key, in_source=True)
            if not shared:
                write_at(target, memoryview(piece), place)
        start = stored.end
    if not shared and start < end:
        copy_range(source, target, start, end)
    return PutBack()


def _damaged(piece: np.ndarray, dtype: str) -> bool:
    """Whether a float in these bytes is no number. Infinities are: a mask may be made of them."""
    signed, positive, negative = INFINITIES[dtype]
    bits = piece.view(signed)
    return bool(bits.max() > positive) or bool(bits.view(f"u{bits.itemsize}").max() > negative)


def _keep(work: Path, shard: str, put_back: Mapping[str, PutBack]) -> None:
    with (work / STATE / f"{shard}.json").open("w", encoding="utf-8") as file:
        file.write(json.dumps({key: asdict(one) for key, one in put_back.items()}))
        file.flush()
        os.fsync(file.fileno())


def _recalled(work: Path, shard: str, edited: Mapping[str, Change]) -> dict[str, PutBack] | None:
    """What rounding did to the edited tensors of a shard that is there already; None where that is not known of all, so that it is to be written again."""
    if not edited:
        return {}
    try:
        kept = json.loads((work / STATE / f"{shard}.json").read_text(encoding="utf-8"))
        return {key: PutBack(**kept[key]) for key in edited}
    except (OSError, ValueError, KeyError, TypeError):
        return None
