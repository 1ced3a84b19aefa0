"""The store: jobs in SQLite, written before they are acknowledged, so that what was queued outlives the process."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reverie.errors import ReverieError
from reverie.server.shelf import describe_files
from reverie.server.submissions import Submission

State = Literal["queued", "running", "done", "failed", "cancelled"]
FINAL = ("done", "failed", "cancelled")
VERSION = 1
SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, client TEXT NOT NULL, kind TEXT NOT NULL, prompt TEXT NOT NULL,
    submission TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL, created REAL NOT NULL, started REAL,
    finished REAL, error TEXT, field TEXT, status INTEGER, notes TEXT NOT NULL, files TEXT NOT NULL, result TEXT
);
CREATE INDEX by_state ON jobs (state, number);
"""


@dataclass(eq=False)
class JobRecord:
    """A job as the server knows it: what was asked, by whom, and how far it is. Times are seconds since 1970."""

    id: str
    client: str
    submission: Submission
    state: State = "queued"
    attempts: int = 0
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    result: dict[str, Any] | None = None
    number: int = 0
    progress: dict[str, Any] | None = None
    preview: str | None = None
    field: str | None = None
    status: int | None = None  # of HTTP, which an error means

    @classmethod
    def new(cls, submission: Submission, client: str, id: str | None = None) -> JobRecord:
        """Return a queued job; where nothing names an id, with one that cannot be guessed."""
        return cls(id or secrets.token_hex(12), client, submission)

    @property
    def is_over(self) -> bool:
        """Tell whether nothing will change any more."""
        return self.state in FINAL

    def describe(self, outputs: Path, position: int | None = None) -> dict[str, Any]:
        """Return what clients are told of it."""
        fields = {name: getattr(self, name) for name in ("id", "client", "state", "created", "started", "finished")}
        fields |= {name: getattr(self, name) for name in ("progress", "notes", "error", "field", "result")}
        files = describe_files(outputs / name for name in self.files)
        return fields | {"position": position, "files": files} | self.submission.model_dump(mode="json")


class JobStore:
    """The jobs in a SQLite file, and those in memory alone that are not kept."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=5000;")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
        except sqlite3.Error as error:
            raise ReverieError(f"cannot keep jobs in '{path.name}': {error}") from error
        if version > VERSION:
            raise ReverieError(f"'{path.name}' is of a later version of reverie; update it, or give another `home`")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, record: JobRecord) -> None:
        """Write a new job, so that it outlives a power cut; what changes of it outlives the process."""
        self._db.execute("PRAGMA synchronous=FULL")
        record.number = self._write(record, "INSERT INTO jobs ({names}) VALUES ({marks})") or 0
        self._db.execute("PRAGMA synchronous=NORMAL")

    def update(self, record: JobRecord) -> None:
        """Write what has changed of a job."""
        self._write(record, "REPLACE INTO jobs ({names}) VALUES ({marks})")

    def _write(self, record: JobRecord, statement: str) -> int | None:
        submission = record.submission
        row = {name: getattr(record, name) for name in ("id", "client", "state", "attempts", "created", "started")}
        row |= {name: getattr(record, name) for name in ("finished", "error", "field", "status")}
        row |= {name: json.dumps(getattr(record, name)) for name in ("notes", "files", "result")}
        row |= {"kind": submission.kind, "prompt": _prompt(submission.request), "number": record.number or None}
        row |= {"submission": submission.model_dump_json()}
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        with closing(self._db.execute(statement.format(names=names, marks=marks), list(row.values()))) as cursor:
            return cursor.lastrowid

    def get(self, id: str) -> JobRecord | None:
        """Return a job."""
        return next(self._select("id = ?", [id]), None)

    def pending(self) -> list[JobRecord]:
        """Return the jobs that were queued or running, in order."""
        return list(self._select("state IN ('queued', 'running') ORDER BY number", []))

    def page(
        self, filters: Mapping[str, str | None], query: str = "", before: int | None = None, limit: int = 50
    ) -> list[JobRecord]:
        """Return jobs, the newest first: of a state, kind or client, with a text in their prompt, before a number."""
        given = {name: value for name, value in filters.items() if value}
        terms = [*(f"{name} = ?" for name in given), "prompt LIKE ? ESCAPE '\\'", "number < ?"]
        pattern = "".join(f"\\{letter}" if letter in "%_\\" else letter for letter in query)
        values = [*given.values(), f"%{pattern}%", before or 1 << 62, limit]
        return list(self._select(f"{' AND '.join(terms)} ORDER BY number DESC LIMIT ?", values))

    def delete(self, id: str) -> None:
        """Remove a job."""
        self._db.execute("DELETE FROM jobs WHERE id = ?", [id])

    def names(self, file: str) -> bool:
        """Tell whether a job names an upload."""
        return self._db.execute("SELECT 1 FROM jobs WHERE instr(submission, ?) LIMIT 1", [file]).fetchone() is not None

    def _select(self, where: str, values: list[Any]) -> Iterator[JobRecord]:
        with closing(self._db.execute(f"SELECT * FROM jobs WHERE {where}", values)) as rows:
            for row in rows.fetchall():
                fields = dict(row)
                del fields["kind"], fields["prompt"]
                fields |= {name: json.loads(fields[name]) for name in ("notes", "files", "result")}
                yield JobRecord(**fields | {"submission": Submission.of(json.loads(fields["submission"]))})


def _prompt(request: Mapping[str, Any]) -> str:
    """Return the words of a request, to look for."""
    keyframes = request.get("keyframes") or [request.get("prompt", "")]
    said = [one.get("prompt", "") if isinstance(one, dict) else one for one in keyframes]
    return " | ".join(str(one) for one in said if one)
