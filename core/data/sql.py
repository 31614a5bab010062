"""Rows of any database that SQLAlchemy reaches, through a server-side cursor: bounded memory, one query, read only.

Messages name host and database, never user or password.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy
from sqlalchemy.engine import URL

from core.data.readers import Raw, text_table
from core.data.schema import Schema
from core.errors import DataError


def database_name(uri: str) -> str:
    """The URL without user, password and options. Raises DataError where it is none."""
    url = _url(uri)
    bare = URL.create(url.drivername, host=url.host, port=url.port, database=url.database)
    return bare.render_as_string(hide_password=True)


def read_sql(uri: str, statement: str, schema: Schema, *, is_table: bool, rows: int = 65_536) -> Iterator[Raw]:
    """Chunks of text columns.

    Args:
        uri: SQLAlchemy URL, as in `postgresql+psycopg://user@host/database`.
        statement: a table (`name` or `schema.name`) or a query.

    Raises:
        DataError: what the database or its driver refuses, without credentials.
    """
    url, name = _url(uri), database_name(uri)
    source = f"{name}::{statement if is_table else 'query'}"
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, hide_parameters=True)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise DataError(
            f"{name}: {_reason(error, url)}; install the driver, or name another as in postgresql+psycopg://"
        ) from None
    if is_table:
        space, _, table = statement.rpartition(".")
        query: sqlalchemy.Executable = sqlalchemy.select(sqlalchemy.text("*")).select_from(
            sqlalchemy.table(table, schema=space or None)
        )
    else:
        query = sqlalchemy.text(statement)
    try:
        with engine.connect() as connection:
            read_only = {"postgresql_readonly": True} if url.get_backend_name() == "postgresql" else {}
            connection = connection.execution_options(stream_results=True, yield_per=rows, **read_only)
            result = connection.execute(query)
            headers = list(result.keys())
            schema.check_headers(headers, source)
            done = 0
            for partition in result.partitions(rows):
                records = [dict(zip(headers, row, strict=True)) for row in partition]
                yield Raw(text_table(records, schema.columns or schema.wanted(headers), f"{source}: row", done + 1))
                done += len(records)
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise DataError(f"{source}: {_reason(error, url)}") from None
    finally:
        engine.dispose()


def _url(uri: str) -> URL:
    try:
        return sqlalchemy.make_url(uri)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise DataError(
            "the database URL cannot be read; allowed is dialect+driver://user@host:port/database, with special characters of the password percent-encoded"
        ) from None


def _reason(error: BaseException, url: URL) -> str:
    """The driver's first line, with everything secret of the URL taken out."""
    cause = getattr(error, "orig", None) or error
    text = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    options = [text for value in url.query.values() for text in ([value] if isinstance(value, str) else value)]
    for secret in [url.password, *options]:
        text = text.replace(str(secret), "***") if secret else text
    return text[:300]
