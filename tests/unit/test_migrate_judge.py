"""What each statement of a migration is judged to do to running workers, and tables compared with entities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.columns import OWN, TYPES, Column, faults, is_widened
from tidegate.entity import EVERYONE, Entity, Meta, Reader, describe
from tidegate.migrate.judge import Facts, Hazard, judge

FACTS = Facts(
    rows={"parcels": 5_000_000, "offices": 12, "tidegate.dead_letter": 90_000, "counted_never": -1},
    types={("parcels", "weight"): "bigint", ("parcels", "note"): "text", ("offices", "rooms"): "bigint"},
    uniques=frozenset({"parcels_pkey", "parcels_code_key"}),
)
LOCK, STOP, LOSS = Hazard.LONG_LOCK, Hazard.STOP_FIRST, Hazard.DESTRUCTIVE

JUDGED: list[tuple[str, list[Hazard]]] = [
    # What is new has no writers.
    ("CREATE TABLE invoices (number TEXT NOT NULL, PRIMARY KEY (number))", []),
    ("CREATE INDEX invoices_x ON invoices (number)", []),
    ("ALTER TABLE invoices ADD COLUMN x TEXT NOT NULL", []),
    ("DROP TABLE invoices", []),
    # Columns.
    ("ALTER TABLE parcels ADD COLUMN colour TEXT", []),
    ("ALTER TABLE public.parcels ADD COLUMN IF NOT EXISTS colour TEXT", []),
    ('ALTER TABLE "parcels" ADD COLUMN "order" TEXT', []),
    ("ALTER TABLE parcels ADD COLUMN colour TEXT DEFAULT 'a;b' NOT NULL", []),
    ("ALTER TABLE parcels ADD COLUMN colour TEXT NOT NULL", [STOP]),
    ("ALTER TABLE parcels ADD COLUMN id UUID DEFAULT gen_random_uuid() NOT NULL", [LOCK]),
    ("ALTER TABLE offices ADD COLUMN id UUID DEFAULT gen_random_uuid() NOT NULL", []),
    ("ALTER TABLE parcels ADD COLUMN n INTEGER CHECK (n > 0)", [STOP]),
    ("ALTER TABLE parcels DROP COLUMN note", [LOSS, STOP]),
    ("ALTER TABLE parcels ADD COLUMN a TEXT, DROP COLUMN note", [LOSS, STOP]),
    ("ALTER TABLE parcels ADD COLUMN a NUMERIC(9, 2) DEFAULT 1.5, ADD COLUMN b TEXT", []),
    ("alter table parcels rename column note to remark", [STOP]),
    ("ALTER TABLE parcels RENAME TO parcel", [STOP]),
    ("ALTER TABLE parcels ALTER COLUMN note SET NOT NULL", [STOP, LOCK]),
    ("ALTER TABLE offices ALTER COLUMN rooms SET NOT NULL", [STOP]),
    ("ALTER TABLE parcels ALTER COLUMN note DROP NOT NULL", []),
    ("ALTER TABLE parcels ALTER COLUMN note SET DEFAULT 'x'", []),
    ("ALTER TABLE parcels ALTER COLUMN note DROP DEFAULT", [STOP]),
    # Types.
    ("ALTER TABLE parcels ALTER COLUMN weight TYPE NUMERIC", [LOCK]),
    ("ALTER TABLE offices ALTER COLUMN rooms TYPE NUMERIC", []),
    ("ALTER TABLE offices ALTER COLUMN rooms TYPE BIGINT", []),
    ("ALTER TABLE offices ALTER COLUMN rooms TYPE INTEGER USING rooms::integer", [LOSS, STOP]),
    ("ALTER TABLE parcels ALTER COLUMN note TYPE VARCHAR", []),
    ("ALTER TABLE offices ALTER COLUMN rooms TYPE NUMERIC(3)", [LOSS, STOP]),
    ("ALTER TABLE parcels ALTER COLUMN note TYPE BIGINT USING note::bigint", [LOSS, STOP, LOCK]),
    # Indexes and constraints.
    ("CREATE INDEX parcels_note ON parcels (note)", [LOCK]),
    ("CREATE INDEX ON parcels (note)", [LOCK]),
    ("CREATE INDEX CONCURRENTLY IF NOT EXISTS parcels_note ON parcels (note)", []),
    ("CREATE UNIQUE INDEX CONCURRENTLY parcels_note ON parcels (note)", [STOP]),
    ("CREATE INDEX counted_x ON counted_never (x)", [LOCK]),
    ("CREATE INDEX offices_x ON offices (x)", []),
    ("DROP INDEX parcels_note", []),
    ("DROP INDEX CONCURRENTLY IF EXISTS parcels_code_key", [STOP]),
    ("ALTER TABLE parcels ADD CONSTRAINT c CHECK (weight > 0)", [STOP, LOCK]),
    ("ALTER TABLE parcels ADD CONSTRAINT c CHECK (weight > 0) NOT VALID", [STOP]),
    ("ALTER TABLE parcels ADD CHECK (weight > 0) NOT VALID", [STOP]),
    ("ALTER TABLE parcels VALIDATE CONSTRAINT c", []),
    ("ALTER TABLE parcels ADD CONSTRAINT u UNIQUE (note)", [STOP, LOCK]),
    ("ALTER TABLE parcels ADD CONSTRAINT u UNIQUE USING INDEX i", [STOP]),
    ("ALTER TABLE parcels DROP CONSTRAINT c", []),
    ("ALTER TABLE parcels DROP CONSTRAINT parcels_code_key", [STOP]),
    # Rows.
    ("UPDATE parcels SET note = ''", [LOCK]),
    ("UPDATE offices SET rooms = 1", []),
    ("DELETE FROM parcels WHERE note IS NULL", [LOSS]),
    ("TRUNCATE offices", [LOSS]),
    ("WITH gone AS (DELETE FROM parcels RETURNING 1) SELECT count(*) FROM gone", [STOP]),
    ("INSERT INTO offices (number) VALUES ('1')", []),
    ("SELECT 1", []),
    # What must not pass by being strange.
    ("DROP TABLE parcels", [LOSS, STOP]),
    ("DROP SCHEMA tidegate CASCADE", [LOSS, STOP]),
    ("DO $$ BEGIN DELETE FROM parcels; END $$", [STOP]),
    ("SELECT 1; DROP TABLE parcels", [STOP]),
    ("/* harmless */ DROP TABLE parcels -- really", [LOSS, STOP]),
    ("ALTER TABLE parcels CLUSTER ON parcels_pkey", [STOP]),
    ("VACUUM FULL parcels", [STOP]),
]


@pytest.mark.parametrize(("statement", "hazards"), JUDGED, ids=[statement[:60] for statement, _ in JUDGED])
def test_each_statement_has_its_hazards(statement: str, hazards: list[Hazard]) -> None:
    found = judge(statement, FACTS)
    assert list(dict.fromkeys(finding.hazard for finding in found)) == hazards
    assert all(finding.why for finding in found)


@given(st.text(max_size=60))
def test_what_is_not_understood_is_never_safe(text: str) -> None:
    """A word that is no statement of PostgreSQL in front of anything."""
    assert judge(f"FROBNICATE {text}", FACTS)


@given(st.sampled_from([statement for statement, hazards in JUDGED if hazards]), st.sampled_from([" ", "\n\t", "  "]))
def test_spelling_hides_nothing(statement: str, space: str) -> None:
    spaced = space.join(statement.split(" "))
    if "$$" not in statement:
        assert [found.hazard for found in judge(spaced, FACTS)] == [found.hazard for found in judge(statement, FACTS)]


class Box(Entity):
    meta = Meta(collection="boxes", key="number", readers=(Reader(EVERYONE),))
    number: str
    pieces: int


BOX = describe(Box)
FITTING = [Column("boxes", name, kind) for name, kind in {"number": "text", "pieces": "bigint", **OWN}.items()]
MORE = Column("boxes", "more", "text")


def test_a_table_may_be_ahead_of_the_release_but_not_behind() -> None:
    wider = [column._replace(type="numeric") if column.name == "pieces" else column for column in FITTING]
    assert list(faults([BOX], FITTING, exactly=True)) == []
    assert list(faults([BOX], [*wider, MORE])) == []
    assert list(faults([BOX], [*wider, MORE], exactly=True)) == [
        "the column boxes.pieces is of type numeric instead of bigint",
        "the column boxes.more belongs to no field",
    ]


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ([], "the table boxes is missing"),
        ([column for column in FITTING if column.name != "pieces"], "the column boxes.pieces (bigint) is missing"),
        (
            [*FITTING[:1], Column("boxes", "pieces", "text"), *FITTING[2:]],
            "boxes.pieces is of type text instead of bigint",
        ),
        ([*FITTING, MORE._replace(is_required=True)], "boxes.more must be given, and this release does not know it"),
        ([*FITTING, MORE._replace(is_in_rule=True)], "boxes.more must be given, and this release does not know it"),
    ],
)
def test_what_cannot_be_written_is_named(stored: list[Column], words: str) -> None:
    [fault] = faults([BOX], stored)
    assert words in fault


def test_no_type_widens_to_itself_or_back() -> None:
    for one in TYPES.values():
        for other in TYPES.values():
            assert not (is_widened(one, other) and is_widened(other, one))
        assert not is_widened(one, one)
