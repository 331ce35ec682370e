"""The statements of the event log's SQLite file."""

# ruff: noqa: S608 -- every name in a statement is a topic's, and topics are named in code

import sys

from domain.ports import Topic


class LogTable:
    """The statements of one partition; a table each, so that every insert is at the end of a B-tree."""

    def __init__(self, topic: Topic, partition: int) -> None:
        name = f'"{topic.name}/{partition}"'
        self.retention_seconds = topic.retention_seconds
        self.create = (
            f"CREATE TABLE {name} (offset INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB, headers BLOB NOT NULL, "
            "appended_at REAL NOT NULL);"
        )
        if topic.compacted:
            self.create += f'CREATE INDEX "{topic.name}/{partition} by key" ON {name} (key);'
        self.insert = f"INSERT INTO {name} VALUES (?, ?, ?, ?, ?)"
        kept = "AND substr(headers, 1, 1) <> x'00' " if topic.compacted else ""
        self.select = (
            f"SELECT offset, key, value, headers FROM {name} WHERE offset >= ? AND offset < ? {kept}"
            "ORDER BY offset LIMIT ?"
        )
        # Overwritten in place, and not deleted: SQLite would merge pages, and leave copies of the records beside it
        # where no later erasure finds them.
        self.erase = (
            f"UPDATE {name} SET value = zeroblob(length(value)), headers = zeroblob(length(headers)) "
            f"WHERE offset IN (SELECT t.offset FROM json_each(?) AS e JOIN {name} AS t "
            f"ON t.key = e.value ->> 0 AND t.offset < e.value ->> 1 {kept})"
        )
        self.expire = (
            f"DELETE FROM {name} WHERE offset < coalesce((SELECT offset FROM {name} WHERE appended_at >= ? "
            f"ORDER BY offset LIMIT 1), {sys.maxsize})"
        )
