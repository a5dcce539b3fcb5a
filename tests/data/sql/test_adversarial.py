"""What somebody would try who wants more of the rows than row-wise text: refused, or harmless.

Every statement goes the way that a practitioner's does: through both parsers, into a locked DuckDB,
in a child with little time and memory. Harmless means that rows run alone give what they give
together, that no file's content comes back, and that it is over soon.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taciturn.data.sql import sandbox
from taciturn.data.sql.framing import LIMIT_S, read_message
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.problems import ProblemError
from taciturn.wire.datasets import ColumnView

CANARY = "canary-3f9c1d"
SECRET = "SECRET-OF-ROW-TWO"

COLUMNS = tuple(
    ColumnView(name=name, type=kind)
    for name, kind in (
        ("id", "string"),
        ("note", "string"),
        ("context", "string"),
        ("n", "int64"),
        ("turns", "list<element: struct<who: string, what: string>>"),
    )
)
ROWS = (
    {"id": "1_1", "note": "aaaa", "context": '{"k": [1, 2]}', "n": 3,
     "turns": [{"who": "a", "what": "b"}]},
    {"id": "2_1", "note": SECRET, "context": '{"k": 5}', "n": 4, "turns": []},
    {"id": "3_1", "note": None, "context": None, "n": None, "turns": None},
)  # fmt: skip

FILES = """
read_csv('CANARY')
read_csv_auto('CANARY')
read_text('CANARY')
read_blob('CANARY')
read_json('CANARY')
read_json_auto('CANARY')
read_ndjson('CANARY')
read_parquet('CANARY')
parquet_scan('CANARY')
parquet_metadata('CANARY')
parquet_schema('CANARY')
sniff_csv('CANARY')
glob('/etc/*')
(SELECT content FROM read_text('CANARY'))
(FROM read_text('CANARY'))
(TABLE 'CANARY')
note FROM 'CANARY'
note, (SELECT * FROM 'CANARY')
note; COPY (SELECT 1) TO 'CANARY'
note; COPY rows_of_this_batch TO '/tmp/out.csv'
note; ATTACH 'CANARY' AS a
note; INSTALL httpfs
note; LOAD httpfs
note; EXPORT DATABASE '/tmp/x'
note; IMPORT DATABASE '/tmp/x'
note; CREATE TABLE t AS SELECT 1
note; CREATE MACRO m(x) AS x
note; SET enable_external_access = true
note; RESET lock_configuration
note; PRAGMA database_list
note; PREPARE p AS SELECT 1
note; EXECUTE p
note; CALL pragma_version()
note; USE memory
note; CHECKPOINT
note; DETACH memory
note; DROP TABLE rows_of_this_batch
note; INSERT INTO rows_of_this_batch VALUES (1)
note; CREATE SECRET s (TYPE s3)
read_text('https://example.com/x')
read_parquet('s3://bucket/x.parquet')
sqlite_scan('CANARY', 't')
postgres_scan('host=localhost', 'public', 't')
iceberg_scan('CANARY')
delta_scan('CANARY')
write_blob('CANARY', note)
load_aws_credentials()
getenv('PATH')
current_setting('temp_directory')
set_config('threads', '4')
getvariable('x')
which_secret('s3://x', 's3')
duckdb_secrets()
"""

CATALOGUE = """
(SELECT count(*) FROM information_schema.tables)
(SELECT sql FROM sqlite_master LIMIT 1)
(SELECT path FROM pragma_database_list() LIMIT 1)
(SELECT value FROM duckdb_settings() LIMIT 1)
(SELECT tags FROM duckdb_memory() LIMIT 1)
duckdb_functions()
duckdb_tables()
duckdb_temporary_files()
pg_catalog.pg_get_viewdef(1)
pragma_table_info('rows_of_this_batch')
current_database()
current_schema()
current_schemas(true)
current_user
session_user
version()
pg_typeof(note)
typeof(note)
in_search_path('memory', 'main')
txid_current()
current_query()
icu_sort_key(note, 'de')
query('SELECT 1')
query_table('rows_of_this_batch')
json_execute_serialized_sql('{}')
json_serialize_plan('SELECT 1')
json_serialize_sql('SELECT 1')
checkpoint()
force_checkpoint()
add_parquet_key('k', 'v')
"""

OTHER_ROWS = """
count(*)
count(DISTINCT note)
sum(n)
string_agg(note, ',')
group_concat(note)
listagg(note)
array_agg(note)
list(note)
first(note)
last(note)
any_value(note)
arg_max(note, n)
max_by(note, n)
min(note)
max(note)
mode(note)
median(n)
quantile_cont(n, 0.5)
approx_count_distinct(note)
histogram(note)
entropy(note)
bit_xor(n)
avg(n) OVER ()
lag(note) OVER ()
lead(note, 1) OVER (ORDER BY id)
first_value(note) OVER ()
nth_value(note, 2) OVER ()
row_number() OVER ()
rank() OVER (ORDER BY note)
ntile(2) OVER (ORDER BY id)
sum(n) OVER w WINDOW w AS ()
max(note) FILTER (WHERE n > 1)
(SELECT max(note) FROM rows_of_this_batch)
(SELECT note FROM rows_of_this_batch WHERE id = '2_1')
(VALUES (1))
EXISTS (SELECT 1 FROM rows_of_this_batch WHERE n = 4)
n IN (SELECT n + 1 FROM rows_of_this_batch)
n > ALL (SELECT n FROM rows_of_this_batch)
n = ANY (SELECT n FROM rows_of_this_batch)
ARRAY(SELECT note FROM rows_of_this_batch)
note FROM rows_of_this_batch AS b, rows_of_this_batch
note FROM rows_of_this_batch POSITIONAL JOIN rows_of_this_batch AS b
note FROM rows_of_this_batch, LATERAL (SELECT 1)
note FROM rows_of_this_batch USING SAMPLE 1
note UNION ALL SELECT note
note EXCEPT SELECT 'a'
note INTERSECT SELECT note
note WHERE n = 4
note GROUP BY ALL
note HAVING n > 1
note QUALIFY row_number() OVER () = 1
note ORDER BY n
note LIMIT 1
note OFFSET 1
DISTINCT note
DISTINCT ON (n) note
note) FROM rows_of_this_batch UNION SELECT (note
note INTO x
TOP 1 note
WITH x AS (SELECT 1) SELECT note
SELECT note
FROM rows_of_this_batch
PIVOT rows_of_this_batch ON n
UNPIVOT rows_of_this_batch ON n
SUMMARIZE rows_of_this_batch
DESCRIBE rows_of_this_batch
unnest(turns)
unnest([1, 2, 3])
unnest(range(1000000000))
generate_series(1, 1000000000)
range(1000000000)
generate_subscripts(turns, 1)
flatten([turns])
explode(turns)
rowid
rows_of_this_batch
rows_of_this_batch.note
__privacy_unit__
COLUMNS(*)
COLUMNS('n.*')
COLUMNS(c -> c LIKE 'n%')
*COLUMNS(*)
* EXCLUDE (id)
* REPLACE (upper(note) AS note)
* RENAME (note AS x)
* LIKE 'n%'
*, *
rows_of_this_batch.*
struct_pack(*COLUMNS(*))
unpack(note)
#2
$1
?
:name
grouping(note)
list_aggregate([n], 'sum')
list_sum([n])
list_sort([note])
list_reduce([n], lambda x, y: x + y)
[x FOR x IN turns]
list_transform(turns, lambda t: (SELECT max(note) FROM rows_of_this_batch))
list_transform(turns, lambda t: max(note))
CASE WHEN (SELECT count(*) FROM rows_of_this_batch) > 2 THEN note END
coalesce(max(note), '')
lower(DISTINCT note)
lower(note ORDER BY n)
lower(note) FILTER (WHERE true)
lower(note) OVER ()
"""

CHANCE = """
random()
setseed(0.5)
uuid()
gen_random_uuid()
uuidv7()
now()
today()
current_date
current_time
current_timestamp
localtimestamp
get_current_timestamp()
transaction_timestamp()
age(DATE '2020-01-01')
nextval('s')
currval('s')
list_transform(turns, lambda t: random())
'now'::TIMESTAMP || random()
hash(note)
error(note)
error('row: ' || note)
sleep_ms(100000)
pg_sleep(100)
write_log(note)
"""

BOMBS = """
repeat(note, 1000000000)
lpad(note, 1000000000, 'x')
rpad(note, 1000000000, 'x')
printf('%999999999d', n)
format('{:999999999}', n)
list_resize([1], 1000000000, 1)
array_fill(1, 1000000000)
list_value(1) || range(1000000000)
bar(n, 0, 10, 1000000000)
to_base(n, 2, 1000000000)
list_transform(range(1000000000), lambda x: x)
generate_series(1, 100000000)[1]
list_cosine_similarity([n], [n])
levenshtein(note, note)
damerau_levenshtein(note, note)
jaccard(note, note)
array_cross_product([1, 2, 3], [1, 2, 3])
factorial(1000000)
space(1000000000)
string_agg(repeat(note, 100000), '')
"""

TRICKS = """
/* note */ count(*)
note /* */; /* */ SELECT 1
note;;
;note
''; DROP TABLE x; --
"note"; SELECT 1
$$note$$; SELECT 1
'\u2019; SELECT 1
coun\u0442(*)
\uff53um(n)
main.sum(n)
system.main.sum(n)
memory.main.lower(note)
"sum"(n)
SuM(n)
lower (count(*))
upper(note
note AS "a", count(*) AS "b"
note AS rows_of_this_batch, (SELECT 1)
lambda x: x
(lambda x: x)(note)
note := 1
note IS NOT NULL AND EXISTS (FROM rows_of_this_batch)
try(error(note))
CAST((SELECT note) AS VARCHAR)
note::x.y
note COLLATE de
note AT TIME ZONE (SELECT 'UTC')
INTERVAL (count(*)) DAY
{'a': sum(n)}
[sum(n)]
MAP {'a': note}
struct_insert({'a': 1}, b := 2)
row(note, n)
list_transform(turns, t -> t.who)
note.upper().count()
turns.list_sort()
"""

HARMLESS = [
    "*",
    "id",
    "ALL note",
    "note -- ; SELECT 1",
    "-- nothing\nid",
    "id /* a comment */",
    "'; DROP TABLE x; --' AS text",
    '"note" AS "select"',
    "$$it's$$ || note AS text",
    "e'\\x41' AS a",
    "'canary' || note",
    "regexp_matches(note, '(a+)+$')",
    "regexp_replace(note, '(.*)(.*)(.*)', '\\1\\1\\1', 'g')",
    "regexp_full_match(note, '(a|a)*b')",
    "CAST('9' AS DECIMAL(38, 0))",
    "CAST(n AS HUGEINT) * 1000000",
    "TRY_CAST(note AS DATE)",
    "TRY(CAST(note AS INT))",
    "1e308 * 10",
    "n / 0",
    "n % 0",
    "pow(10.0, 400)",
    "ln(n)",
    "chr(8238) || note",
    "concat_ws(note, id, id, id)",
    "replace(note, 'a', 'bbbb')",
    "translate(note, 'a', 'b')",
    "string_split(note, '')",
    "list_concat(string_split(note, ''), string_split(note, ''))",
    "list_transform([1, 2], lambda x: list_transform([x], lambda y: note))",
    "list_filter(turns, lambda t: t.who = id)",
    "turns[1:1000000000]",
    "note[1:1000000000]",
    "substring(note, -5, 100)",
    "left(note, 9223372036854775807)",
    "json_extract(context, '$.k[#-1]')",
    "json_extract_string(context, '$..k')",
    "to_json({'id': id, 'context': context})",
    "CASE n WHEN 3 THEN note END",
    "coalesce(note, id, 'none')",
    "id AS a, a || '!' AS b, b || a AS c",
    "DATE '2020-01-01' + INTERVAL 1 DAY",
    "strftime(DATE '2020-01-01', '%A')",
    "note LIKE '%%%%%%%%%%%%%%%%%%%%%%a%%%%%%%%%%b'",
    "note SIMILAR TO '(a|b)*'",
    "context ->> '$.k'",
    "sha256(note)",
    "if(n > 3, note, id)",
    "n BETWEEN 1 AND 3 OR note IS NULL",
    "greatest(id, note)",
]

DEEP = {
    "parentheses": "(" * 4000 + "id" + ")" * 4000,
    "unclosed": "(" * 2000,
    "brackets": "[" * 2000 + "id" + "]" * 2000,
    "structs": "{'a':" * 1000 + "1" + "}" * 1000,
    "cases": "CASE WHEN n = 1 THEN " * 400 + "id" + " END" * 400,
    "nots": "NOT " * 2400 + "n = 1",
    "minuses": "- " * 4000 + "n",
    "concatenated": "||".join(["id"] * 2400),
    "lambdas": "list_transform([1], lambda x: " * 300 + "1" + ")" * 300,
    "casts": "id" + "::VARCHAR" * 1000,
    "aliases": "note AS a0, " + ", ".join(f"a{i} || a{i} AS a{i + 1}" for i in range(40)),
    "list aliases": "turns AS a0, "
    + ", ".join(f"list_concat(a{i}, a{i}) AS a{i + 1}" for i in range(40)),
    "quotes": "'" * 9999,
    "comments": "/*" * 4000 + "id",
    "commas": ",".join(["id"] * 3000),
    "a long name": '"' + "n" * 9000 + '"',
    "a long string as a name": "'" + "n" * 9000 + "' || id",
    "nested types": "CAST(id AS " + "STRUCT(a " * 500 + "INT" + ")" * 500 + ")",
    "large types": "CAST(NULL AS DECIMAL(1000, 3))",
    "long lists": "[" + ",".join(["note"] * 1900) + "] AS a",
    "invalid repetition": "regexp_matches(note, '((a{1,1000}){1,1000}){1,1000}')",
}


def multiplied() -> dict[str, str]:
    """Texts that grow by a power of their length."""
    replaced, quoted, split = "note", "note", "note"
    for _ in range(7):
        replaced = f"replace({replaced}, 'a', {replaced})"
    for _ in range(12):
        quoted = f"replace({quoted}, 'a', 'aaaaaaaaaaaaaaaaaaaaaaaa')"
        split = f"list_concat({split if '(' in split else '[note]'}, [note, note])"
    return {"replaced": replaced, "replaced by much": quoted, "concatenated lists": split}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


REFUSED = [*map(str, lines(FILES + CATALOGUE + OTHER_ROWS + CHANCE + BOMBS + TRICKS))]


@pytest.fixture(scope="module")
def trials() -> Iterator[SqlSandbox]:
    opened = SqlSandbox(at_once=1)
    yield opened
    opened.close()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary.csv"
    path.write_text(f"a\n{CANARY}\n")
    return path


def attempt(trials: SqlSandbox, text: str, rows: Any = ROWS) -> Any:
    """Columns and rows, or the words of the refusal; in time either way."""
    started = time.monotonic()
    try:
        found = trials.run(text, COLUMNS, rows)
    except ProblemError as error:
        if error.code != "invalid":
            raise
        return error.detail
    finally:
        assert time.monotonic() - started < LIMIT_S + 2
    return found


def alone_as_together(trials: SqlSandbox, text: str, found: Any) -> bool:
    """The row-wise property: one row's result does not depend on other rows."""
    apart = [attempt(trials, text, (row,)) for row in ROWS]
    return [row for each in apart for row in each.rows] == list(found.rows)


def test_there_are_more_than_enough() -> None:
    everything = [*REFUSED, *HARMLESS, *DEEP, *multiplied()]
    assert len(set(everything)) == len(everything)
    assert len(REFUSED) >= 200


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_row_wise_is_refused(trials: SqlSandbox, canary: Path, text: str) -> None:
    written = text.replace("CANARY", str(canary))
    found = attempt(trials, written)
    assert isinstance(found, str), found
    said = found.replace(repr(written), "")
    assert CANARY not in said
    assert SECRET not in said
    assert canary.read_text() == f"a\n{CANARY}\n"
    assert [path.name for path in canary.parent.iterdir()] == [canary.name]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_passes_is_row_wise(trials: SqlSandbox, text: str) -> None:
    found = attempt(trials, text)
    if not isinstance(found, str):
        assert len(found.rows) == len(ROWS)
        assert alone_as_together(trials, text, found)


@pytest.mark.parametrize("name", [*DEEP, *multiplied()])
def test_what_is_large_or_deep_ends_soon(trials: SqlSandbox, name: str) -> None:
    text = {**DEEP, **multiplied()}[name]
    found = attempt(trials, text[:10_000])
    if not isinstance(found, str):
        assert alone_as_together(trials, text[:10_000], found)


def test_the_process_still_answers_after_all_that(trials: SqlSandbox) -> None:
    assert [row["id"] for row in attempt(trials, "id").rows] == ["1_1", "2_1", "3_1"]


def test_errors_on_a_row_do_not_quote_it(trials: SqlSandbox) -> None:
    found = attempt(trials, "CAST(note AS INT)")
    assert "failed on a row" in found
    assert SECRET not in found


def test_a_trial_that_runs_on_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LIMIT_S", 0.3)
    monkeypatch.setattr(sandbox, "answered", lambda request: time.sleep(60))
    started = time.monotonic()
    answer = sandbox._in_child(b"{}")
    assert b"ran for more than" in answer
    assert time.monotonic() - started < 2


def test_a_trial_that_takes_too_much_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "answered", lambda request: bytes(2 << 30))
    assert b"too much memory" in sandbox._in_child(b"{}")


def test_a_trial_writes_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "out"
    monkeypatch.setattr(sandbox, "answered", lambda request: path.write_text("x") and {})
    sandbox._in_child(b"{}")
    assert not path.exists() or path.read_text() == ""


def test_what_is_made_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "answered", lambda request: {"a": "x" * (9 << 20)})
    assert b"make it smaller" in sandbox._in_child(b"{}")


def test_the_limits_are_the_childs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr(sandbox, "answered", lambda _: resource.getrlimit(resource.RLIMIT_CPU))
    assert json.loads(sandbox._in_child(b"{}")[4:]) == [5, 5]
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_the_process_knows_no_secret_of_the_gateway(
    trials: SqlSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACITURN_LEDGER_KEY", CANARY)
    opened = SqlSandbox(at_once=1)
    attempt(opened, "id")
    nursery = opened._idle.get()
    assert nursery._process is not None
    environment = Path(f"/proc/{nursery._process.pid}/environ").read_bytes()
    opened._idle.put(nursery)
    opened.close()
    assert CANARY.encode() not in environment


def test_a_process_that_was_killed_is_started_again(trials: SqlSandbox) -> None:
    attempt(trials, "id")
    nursery = trials._idle.get()
    assert nursery._process is not None
    nursery._process.kill()
    trials._idle.put(nursery)
    assert len(attempt(trials, "id").rows) == len(ROWS)


def test_a_message_that_is_too_large_is_not_read() -> None:
    with pytest.raises(ValueError, match="bytes"):
        read_message(lambda size: b"\xff" * size)
