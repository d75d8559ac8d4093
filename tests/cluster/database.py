"""The MariaDB behind the accounting: made in a second, without a port, without passwords, and not durable."""

from __future__ import annotations

import getpass
from pathlib import Path

_SQL = Path("/usr/share/mysql")
_SYSTEM_TABLES = ("mysql_system_tables.sql", "mysql_performance_tables.sql")


def options(folder: Path) -> list[str]:
    """Options of mariadbd. Nobody but this user may enter the folder of its socket, so nobody need give a password."""
    return [
        "--no-defaults",
        f"--user={getpass.getuser()}",
        f"--datadir={folder}",
        f"--socket={folder / 'socket'}",
        f"--pid-file={folder / 'pid'}",
        f"--tmpdir={folder}",
        "--skip-networking",
        "--skip-grant-tables",
        "--innodb-buffer-pool-size=128M",
        "--innodb-log-file-size=32M",
        "--innodb-lock-wait-timeout=900",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
    ]


def system_tables() -> bytes:
    """SQL that makes MariaDB's own tables; `mariadb-install-db` would need its client, too, and fill its manual in."""
    tables = "".join((_SQL / name).read_text(encoding="utf-8") for name in _SYSTEM_TABLES)
    return f"CREATE DATABASE mysql;\nUSE mysql;\n{tables}".encode()
