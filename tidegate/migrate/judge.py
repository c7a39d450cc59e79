"""What a statement of a migration does to those who work on the database meanwhile.  (pure)

A migration runs while the previous release still writes. So each of its statements is one of

    safe         the previous release's statements go on unchanged, and no lock is held for longer than a moment
    long lock    writes or reads of the table wait for as long as the statement runs over its rows
    stop first   what the previous release writes may be refused, or its statements fail: stop it before
    destructive  values are gone afterwards

or several of the last three. The judgement is made from the statement's text and a few facts about the database, never by
running it. What is not understood is not called safe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum

from msgspec import Struct

from tidegate.columns import is_widened, type_name


class Hazard(StrEnum):
    """From the least to the worst."""

    LONG_LOCK = "takes a long lock"
    STOP_FIRST = "needs the previous release stopped"
    DESTRUCTIVE = "destructive"


SAFE = "safe under running workers"


class Finding(Struct, frozen=True):
    """One hazard of one statement, and why or what to do instead."""

    hazard: Hazard
    why: str


class Facts(Struct, frozen=True):
    """What is known of the database before the migration. Names are as in the statement, without quotes.

    rows     existing tables and about how many rows they have; a table that is not named here has no writer yet
    types    (table, column) → its type, as PostgreSQL says it
    uniques  names of unique indexes and constraints, by which an ON CONFLICT may find its row
    """

    rows: Mapping[str, int] = {}
    types: Mapping[tuple[str, str], str] = {}
    uniques: frozenset[str] = frozenset()


_FEW_ROWS = 10_000
"""Up to here a statement that reads or rewrites all rows is done in a moment."""

_NAME = r'((?:"[^"]+"|[\w$]+)(?:\.(?:"[^"]+"|[\w$]+))?)'
_MAYBE = r"(?:IF (?:NOT )?EXISTS )?"
_VOLATILE = re.compile(
    r"\b(GENERATED|\w*SERIAL|random|gen_random_uuid|uuid_generate_v4|clock_timestamp|nextval)\b", re.I
)
_TRIVIAL = re.compile(
    r"(SELECT|SET|RESET|COMMENT|GRANT|CREATE (TABLE|SCHEMA|SEQUENCE|TYPE|EXTENSION|POLICY|(OR REPLACE )?FUNCTION))\b",
    re.I,
)


def judge(statement: str, facts: Facts) -> tuple[Finding, ...]:
    """The hazards of one statement, worst first; none means safe."""
    text = " ".join(_without_comments(statement).split()).rstrip("; ")
    found = _judged(text, facts) if text else iter(())
    return tuple(sorted(found, key=lambda finding: -list(Hazard).index(finding.hazard)))


def _without_comments(statement: str) -> str:
    return re.sub(r"--[^\n]*|/\*.*?\*/", " ", statement, flags=re.S)


def _judged(text: str, facts: Facts) -> Iterator[Finding]:
    # A name or a text may hold anything, also a semicolon; what is still there without them separates statements.
    if ";" in re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|\$(\w*)\$.*?\$\1\$", "", text):
        yield Finding(
            Hazard.STOP_FIRST, "several statements in one cannot be judged; give each an op.execute of its own"
        )
        return
    for pattern, rule in _RULES:
        if match := pattern.match(text):
            yield from rule(match, text, facts)
            return
    if not _TRIVIAL.match(text):
        yield Finding(Hazard.STOP_FIRST, "tidegate cannot judge this statement: read it")


def _plain(name: str) -> str:
    return name.replace('"', "").removeprefix("public.")


def _is_large(table: str, facts: Facts) -> bool:
    # A negative estimate: never counted.
    rows = facts.rows.get(table, 0)
    return rows < 0 or rows > _FEW_ROWS


def _create_index(match: re.Match[str], text: str, facts: Facts) -> Iterator[Finding]:
    unique, concurrently, table = match[1], match[2], _plain(match[3])
    if table not in facts.rows:
        return
    if unique:
        yield Finding(Hazard.STOP_FIRST, f"the previous release may write to {table} what is not unique")
    if not concurrently and _is_large(table, facts):
        yield Finding(
            Hazard.LONG_LOCK,
            f"writes to {table} wait while the index is built; postgresql_concurrently=True builds beside",
        )


def _drop_index(match: re.Match[str], text: str, facts: Facts) -> Iterator[Finding]:
    name = _plain(match[1])
    if name.rpartition(".")[2] in facts.uniques:
        yield Finding(Hazard.STOP_FIRST, f"an ON CONFLICT of the previous release may need {name}")


def _drop_table(match: re.Match[str], text: str, facts: Facts) -> Iterator[Finding]:
    if (table := _plain(match[1])) in facts.rows:
        yield Finding(Hazard.DESTRUCTIVE, f"the rows of {table} are gone")
        yield Finding(Hazard.STOP_FIRST, f"the previous release writes to {table}")


def _delete(match: re.Match[str], text: str, facts: Facts) -> Iterator[Finding]:
    if (table := _plain(match[1])) in facts.rows:
        yield Finding(Hazard.DESTRUCTIVE, f"rows of {table} are gone")


def _update(match: re.Match[str], text: str, facts: Facts) -> Iterator[Finding]:
    if _is_large(table := _plain(match[1]), facts):
        yield Finding(Hazard.LONG_LOCK, f"changes many rows of {table} in one transaction; who writes to them waits")


def _destructive(match: re.Match[str], text: str, facts: Facts) -> Iterator[Finding]:
    yield Finding(Hazard.DESTRUCTIVE, "what it holds is gone")
    yield Finding(Hazard.STOP_FIRST, "the previous release may need it")


def _alter_table(match: re.Match[str], text: str, facts: Facts) -> Iterator[Finding]:
    table = _plain(match[1])
    if table not in facts.rows:
        return
    for action in _actions(match[2]):
        yield from _altered(table, action, facts)


def _actions(text: str) -> Iterator[str]:
    """The actions of one ALTER TABLE, at the commas outside of brackets and texts."""
    depth, quoted, begin = 0, "", 0
    for place, letter in enumerate(text):
        if quoted:
            quoted = "" if letter == quoted else quoted
        elif letter in "'\"":
            quoted = letter
        elif letter == "," and depth == 0:
            yield text[begin:place].strip()
            begin = place + 1
        else:
            depth += (letter == "(") - (letter == ")")
    yield text[begin:].strip()


def _altered(table: str, action: str, facts: Facts) -> Iterator[Finding]:
    for pattern, rule in _ACTIONS:
        if match := pattern.match(action):
            yield from rule(table, match, facts)
            return
    yield Finding(Hazard.STOP_FIRST, f"tidegate cannot judge {action[:60]!r}: read it")


def _add_column(table: str, match: re.Match[str], facts: Facts) -> Iterator[Finding]:
    column, rest = _plain(match[1]), match[2]
    has_default = re.search(r"\b(DEFAULT|GENERATED|\w*SERIAL)\b", rest, re.I)
    if re.search(r"\b(NOT NULL|PRIMARY KEY)\b", rest, re.I) and not has_default:
        yield Finding(
            Hazard.STOP_FIRST,
            f"{table}.{column} must be given, and the previous release does not: make it nullable or default",
        )
    if re.search(r"\b(UNIQUE|PRIMARY KEY|CHECK|REFERENCES)\b", rest, re.I):
        yield Finding(Hazard.STOP_FIRST, f"what the previous release writes to {table} may be refused")
    if _VOLATILE.search(rest) and _is_large(table, facts):
        yield Finding(Hazard.LONG_LOCK, f"each row of {table} gets a value of its own, so the table is rewritten")


def _drop_column(table: str, match: re.Match[str], facts: Facts) -> Iterator[Finding]:
    column = _plain(match[1])
    yield Finding(Hazard.DESTRUCTIVE, f"the values of {table}.{column} are gone")
    yield Finding(Hazard.STOP_FIRST, f"the previous release writes {table}.{column}")


def _add_constraint(table: str, match: re.Match[str], facts: Facts) -> Iterator[Finding]:
    name, rest = _plain(match[1]), match[2].upper()
    yield Finding(Hazard.STOP_FIRST, f"{name} may refuse what the previous release writes to {table}")
    if rest.startswith(("UNIQUE", "PRIMARY", "EXCLUDE")):
        if "USING INDEX" not in rest and _is_large(table, facts):
            yield Finding(
                Hazard.LONG_LOCK, f"{table} is closed while {name} is built; build an index beside, then USING INDEX"
            )
    elif not rest.endswith("NOT VALID") and _is_large(table, facts):
        yield Finding(Hazard.LONG_LOCK, f"all rows of {table} are checked; add {name} NOT VALID, then VALIDATE it")


def _drop_constraint(table: str, match: re.Match[str], facts: Facts) -> Iterator[Finding]:
    name = _plain(match[1])
    if name in facts.uniques:
        yield Finding(Hazard.STOP_FIRST, f"an ON CONFLICT of the previous release may need {name}")


def _set_not_null(table: str, match: re.Match[str], facts: Facts) -> Iterator[Finding]:
    column = _plain(match[1])
    yield Finding(Hazard.STOP_FIRST, f"the previous release may leave {table}.{column} out")
    if _is_large(table, facts):
        yield Finding(
            Hazard.LONG_LOCK,
            f"all rows of {table} are read, unless a CHECK ({column} IS NOT NULL) was validated before",
        )


def _change_type(table: str, match: re.Match[str], facts: Facts) -> Iterator[Finding]:
    column, wanted = _plain(match[1]), type_name(match[2])
    before = type_name(facts.types.get((table, column), "unknown"))
    if before == wanted:
        return
    if _is_large(table, facts):
        yield Finding(
            Hazard.LONG_LOCK, f"{table} is rewritten and nobody can read it meanwhile; a new column does without"
        )
    if not is_widened(before, wanted):
        yield Finding(
            Hazard.DESTRUCTIVE, f"{table}.{column} from {before} to {wanted}: values may change or be refused"
        )
        yield Finding(Hazard.STOP_FIRST, f"the previous release writes {before}")


def _drop_default(table: str, match: re.Match[str], facts: Facts) -> Iterator[Finding]:
    yield Finding(Hazard.STOP_FIRST, f"the previous release may leave {table}.{_plain(match[1])} to its default")


def _rename(table: str, match: re.Match[str], facts: Facts) -> Iterator[Finding]:
    yield Finding(
        Hazard.STOP_FIRST, f"the previous release knows the old name: add a new column beside it in {table} instead"
    )


def _harmless(table: str, match: re.Match[str], facts: Facts) -> Iterator[Finding]:
    yield from ()


def _rule(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace("NAME", _NAME).replace("MAYBE ", _MAYBE), re.I)


_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], str, Facts], Iterator[Finding]]], ...] = (
    (_rule(r"CREATE (UNIQUE )?INDEX (CONCURRENTLY )?MAYBE (?:(?!ON )\S+ )?ON (?:ONLY )?NAME"), _create_index),
    (_rule(r"DROP INDEX (?:CONCURRENTLY )?MAYBE NAME"), _drop_index),
    (_rule(r"DROP TABLE MAYBE NAME"), _drop_table),
    (_rule(r"(?:DELETE FROM|TRUNCATE(?: TABLE)?) (?:ONLY )?NAME"), _delete),
    (_rule(r"UPDATE (?:ONLY )?NAME"), _update),
    (_rule(r"INSERT INTO NAME"), lambda match, text, facts: iter(())),
    (_rule(r"WITH\b"), lambda match, text, facts: _with(text)),
    (_rule(r"DROP\b"), _destructive),
    (_rule(r"ALTER TABLE MAYBE (?:ONLY )?NAME (.+)$"), _alter_table),
)


def _with(text: str) -> Iterator[Finding]:
    if re.search(r"\b(UPDATE|DELETE|INSERT)\b", text, re.I):
        yield Finding(Hazard.STOP_FIRST, "tidegate cannot judge a WITH that writes: read it")


_ACTIONS: tuple[tuple[re.Pattern[str], Callable[[str, re.Match[str], Facts], Iterator[Finding]]], ...] = (
    (_rule(r"ADD CONSTRAINT NAME (.+)$"), _add_constraint),
    (_rule(r"ADD ()((?:CHECK|UNIQUE|PRIMARY KEY|FOREIGN KEY|EXCLUDE)\b.*)$"), _add_constraint),
    (_rule(r"ADD (?:COLUMN )?MAYBE NAME (.+)$"), _add_column),
    (_rule(r"DROP CONSTRAINT MAYBE NAME"), _drop_constraint),
    (_rule(r"DROP (?:COLUMN )?MAYBE NAME"), _drop_column),
    (_rule(r"VALIDATE CONSTRAINT\b"), _harmless),
    (_rule(r"ALTER (?:COLUMN )?NAME SET NOT NULL$"), _set_not_null),
    (_rule(r"ALTER (?:COLUMN )?NAME (?:SET DATA )?TYPE (.+)$"), _change_type),
    (_rule(r"ALTER (?:COLUMN )?NAME DROP DEFAULT$"), _drop_default),
    (_rule(r"ALTER (?:COLUMN )?NAME (?:DROP NOT NULL|SET DEFAULT\b|SET STATISTICS\b)"), _harmless),
    (_rule(r"RENAME\b"), _rename),
    (_rule(r"(?:ENABLE|FORCE) ROW LEVEL SECURITY|OWNER TO\b"), _harmless),
)
