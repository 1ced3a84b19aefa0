"""A run of curation: measured shard by shard, judged as a whole, and written shard by shard.

Both parts by shard are spread over processes or machines; in between, one process applies the rules and seeks
near-duplicates over all of them. Every step leaves its results in files, so a stopped run goes on where it was, and one
with other thresholds measures nothing again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from reverie.errors import ReverieError
from reverie.files import lock_folder, write_text
from reverie.progress import Progress
from reverie.similarity.curation.measure import Measuring, Scoring, load_scoring, read_measured
from reverie.similarity.curation.report import HISTOGRAMS, Curated, Histogram, write_report
from reverie.similarity.curation.rules import DUPLICATE, Measurement, Rules, reason_to_drop
from reverie.similarity.curation.samples import Message, Sample, Spread, find_shards, here, read_samples, write_samples

BLOCK = 2048  # rows compared at once: 32 MB of cosines a pair of blocks


def near_duplicates(vectors: Float[np.ndarray, "n d"], threshold: float) -> Bool[np.ndarray, " n"]:
    """Tell of each normalised row whether an earlier row that is kept has a cosine of `threshold` or more with it.

    So of every group of like pictures the first stays, and each that goes has one that stays: a chain of small changes
    is not drawn together into one group. Compares all with all, n²d/2 multiplications, in blocks.
    """
    dropped = np.zeros(len(vectors), bool)
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK])
        for earlier in range(0, start, BLOCK):
            kept = vectors[earlier : earlier + BLOCK][~dropped[earlier : earlier + BLOCK]]
            dropped[start : start + BLOCK] |= (block @ kept.T >= threshold).any(1) if len(kept) else False
        alike = block @ block.T >= threshold
        for row in range(len(block)):
            if not dropped[start + row]:
                dropped[start + row + 1 : start + BLOCK] |= alike[row, row + 1 :]
    return dropped


# A word is a run of letters; Chinese, Japanese and Korean have no spaces between words, so there each sign counts.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


@dataclass(frozen=True)
class Keeping:
    """Write what is kept of a shard: call it with the shard's path. It goes to other processes as it is."""

    folder: Path
    """Where NAME.jsonl has a line for each sample, in order, and NAME.tar goes."""

    def __call__(self, shard: str) -> Message:
        """Copy the samples whose line names no reason, if that is not done; return the counts of both sorts' words.

        A shard of which nothing is kept is not written: readers of webdataset take an empty one for damaged.
        """
        path = Path(shard)
        listed = (self.folder / f"{path.stem}.jsonl").read_bytes()
        stat = path.stat()
        state = hashlib.sha256(b"%d %d " % (stat.st_size, stat.st_mtime_ns) + listed).hexdigest()
        stats = self.folder / f"{path.stem}_stats.json"
        target = self.folder / f"{path.stem}.tar"
        lines = [json.loads(line) for line in listed.splitlines()]
        kept = [line for line in lines if not line["reason"]]
        if _state(stats) != state or (bool(kept) and not target.is_file()):
            stats.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            if kept:
                write_samples(target, _kept_samples(path, lines))
            summary = {"count": len(lines), "successes": len(kept), "source": path.name, "state": state}
            write_text(stats, json.dumps(summary, indent=1))
        return {"shard": shard, "kept": len(kept), "words_kept": _words(kept), "words_all": _words(lines)}


def _kept_samples(shard: Path, lines: list[Message]) -> Iterator[Sample]:
    """Read again the samples that are kept; the part of a damaged shard that was not measured is left out."""
    left = iter(lines)
    samples = read_samples(shard)
    for line in left:
        sample = next(samples, None)
        if sample is None or sample.key != line["key"]:
            raise ReverieError(f"the shard '{shard}' changed while it was read; run it again")
        if not line["reason"]:
            yield sample


def words(text: str) -> Iterator[str]:
    """Give the words of a text, in lower case."""
    return (found.group().lower() for found in WORD.finditer(text))


def _words(lines: list[Message]) -> dict[str, int]:
    return dict(sorted(Counter(word for line in lines for word in words(line["text"] or "")).items()))


def _state(stats: Path) -> str:
    try:
        return json.loads(stats.read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


MEASURED = "measured"
COMMONEST = 1000  # words that the report keeps


@dataclass(frozen=True)
class CurationStep(Progress):
    """How far a step is, in shards; the last event has the outcome."""

    step: str
    outcome: Curated | None = field(repr=False, default=None)


def curate(
    source: str | Path,
    folder: str | Path,
    rules: Rules = Rules(),
    *,
    scoring: Scoring = Scoring(),
    spread: Spread = here,
) -> Iterator[CurationStep]:
    """Write what is worth keeping of a folder of shards into another folder, with a report of what went and why.

    Each sample is measured as `scoring` says, by `spread`: here, in processes or by Ray, and judged by `rules`.
    `folder` gets NAME.tar with the samples kept, as they were, NAME.jsonl with a line on every sample, and report.html
    and report.json. Raises ReverieError where the source holds no shards or `folder` holds something else.
    """
    if rules.min_aesthetic is not None and scoring.aesthetic is None:
        raise ReverieError("min_aesthetic needs the weights of an aesthetic head; give them with `aesthetic`")
    shards = [str(path.resolve()) for path in find_shards(source)]
    folder = Path(folder).resolve()
    _check(folder, Path(source), {Path(shard).stem for shard in shards})
    scored = replace(scoring) if rules.need_clip or scoring.aesthetic else None
    identity = load_scoring(scored).identity if scored else ""
    with lock_folder(folder), lock_folder(folder / MEASURED):
        yield from _steps(folder, shards, rules, scored, identity, spread)


def _steps(
    folder: Path, shards: Sequence[str], rules: Rules, scored: Scoring | None, identity: str, spread: Spread
) -> Iterator[CurationStep]:
    """Measure, judge and write."""
    measuring = Measuring(folder / MEASURED, scored and replace(scored), identity)  # without the loaded weights
    damaged: dict[str, str] = {}
    yield CurationStep(0, len(shards), "shards", "measuring")
    for done, message in enumerate(spread(measuring, shards), 1):
        if message["damage"]:
            damaged[Path(message["shard"]).name] = message["damage"]
        yield CurationStep(done, len(shards), "shards", "measuring")
    outcome = replace(_judge(folder, shards, rules), damaged=dict(sorted(damaged.items())), model=identity)
    words: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    yield CurationStep(0, len(shards), "shards", "writing")
    for done, message in enumerate(spread(Keeping(folder), shards), 1):
        words[0].update(message["words_all"])
        words[1].update(message["words_kept"])
        yield CurationStep(done, len(shards), "shards", "writing")
    outcome = replace(
        outcome,
        distinct_words=(len(words[0]), len(words[1])),
        words=tuple((word, count, words[1][word]) for word, count in _commonest(words[0])),
    )
    write_report(folder, outcome)
    yield CurationStep(len(shards), len(shards), "shards", "done", outcome)


def _judge(folder: Path, shards: Sequence[str], rules: Rules) -> Curated:
    """Find a reason to drop for each sample, and write it beside what was measured."""
    measured = {shard: _read_measurements(folder, shard) for shard in shards}
    reasons = {shard: [reason_to_drop(it, rules) for it in samples] for shard, samples in measured.items()}
    if rules.duplicates is not None:
        _mark_duplicates(folder, reasons, rules.duplicates)
    for shard, samples in measured.items():
        lines = [asdict(it) | {"reason": reason} for it, reason in zip(samples, reasons[shard], strict=True)]
        write_text(folder / f"{Path(shard).stem}.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    flat = [pair for shard in shards for pair in zip(measured[shard], reasons[shard], strict=True)]
    dropped = Counter(reason for _, reason in flat if reason)
    histograms = {}
    for name, value in HISTOGRAMS.items():
        values = [(value(it), not reason) for it, reason in flat]
        histograms[name] = Histogram.of([(v, kept) for v, kept in values if v is not None])
    return Curated(
        rules=rules,
        seen=len(flat),
        dropped=dict(dropped.most_common()),
        histograms={name: histogram for name, histogram in histograms.items() if histogram.edges},
    )


def _mark_duplicates(folder: Path, reasons: Mapping[str, list[str]], threshold: float) -> None:
    """Compare all that is still kept, in the order of the shards."""
    left = [(shard, row) for shard, found in reasons.items() for row, reason in enumerate(found) if not reason]
    parts = []
    for shard, found in reasons.items():
        vectors = np.load(_file(folder, shard).with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        parts.append(vectors[[row for row, reason in enumerate(found) if not reason]])
    for (shard, row), duplicate in zip(left, near_duplicates(np.concatenate(parts), threshold), strict=True):
        if duplicate:
            reasons[shard][row] = DUPLICATE


def _read_measurements(folder: Path, shard: str) -> list[Measurement]:
    found = read_measured(_file(folder, shard))
    if found is None:
        raise ReverieError(f"the measurements of '{shard}' are gone from '{folder}'; run it again")
    return [Measurement(**sample) for sample in found["samples"]]


def _file(folder: Path, shard: str) -> Path:
    return folder / MEASURED / f"{Path(shard).stem}.json"


def _commonest(counts: Counter[str]) -> list[tuple[str, int]]:
    """Order words by how often they come, equals by name, so that it matters not who counted first."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:COMMONEST]


def _check(folder: Path, source: Path, names: set[str]) -> None:
    """Raise ReverieError where the output would overwrite what is not its own, or stand beside what is another's."""
    if folder == (source if source.is_dir() else source.parent).resolve():
        raise ReverieError(f"'{folder}' holds the shards themselves; give another folder with `output`")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MEASURED).is_dir())):
        raise ReverieError(f"'{folder}' holds something else; give a new or empty folder with `output`")
    others = sorted({file.stem for file in (folder / MEASURED).glob("*.json")} - names)
    if others:
        raise ReverieError(f"'{folder}' holds '{others[0]}', no shard of '{source}'; give another folder with `output`")
