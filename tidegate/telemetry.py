"""Every log event and every metric of the house, by name, with how to read it.

Names are literals here and constants everywhere else, so a dashboard or an alarm can be checked against this
page. Log lines are JSON with `event`, `level`, `timestamp`, `module` and the fields named below. Metrics end in
their unit; counters end in `_total`. Each service appends its own section.
"""

from __future__ import annotations

import structlog
from prometheus_client import Counter, Gauge, Histogram
from structlog.typing import FilteringBoundLogger

# ---------------------------------------------------------------- process
PROCESS_STARTED = "process_started"  # once; fields of the caller
PROCESS_STOPPING = "process_stopping"  # signal=…: the first signal, draining begins
PROCESS_STOPPED = "process_stopped"  # exit_code=…: always the last line; 0 graceful, 1 ours, 70 a bug
PROCESS_DRAIN_CUT = (
    "process_drain_cut"  # the budget was spent or a second signal came; work in hand is redone elsewhere
)
PROCESS_FAILED = "process_failed"  # error=…: a Fatal; one line for each, a person must act
PROCESS_BUG = "process_bug"  # with `exception`, the traceback: a fault of ours

EVENT_LOOP_LAG = Gauge(
    "tidegate_event_loop_lag_seconds",
    "How late the last heartbeat was. Above 0.1 something blocks the loop; near the patience, leases are lost.",
)

# ---------------------------------------------------------------- leases
LEASE_CREATED = "lease_created"  # lease=…: a shard or partition seen for the first time
LEASE_TAKEN = "lease_taken"  # lease=…, counter=…, previous_owner=…: it was free or its owner was gone
LEASE_ASKED = "lease_asked"  # lease=…, owner=…: its live owner has more than its share, we less; it works on meanwhile
LEASE_WANTED = "lease_wanted"  # lease=…, by=…: we are asked to hand it over; its task finishes what it has in hand
LEASE_PUSHED = "lease_pushed"  # lease=…, to=…: we stop, and gave it to a live process, which begins within a second
LEASE_RECEIVED = "lease_received"  # lease=…, counter=…: a process that stops gave it to us, work begins at once
LEASE_HANDED_OVER = "lease_handed_over"  # lease=…, counter=…: the one we asked gave it to us, work begins at once
LEASE_STOLEN = (
    "lease_stolen"  # as lease_taken, but by force: its owner did not let go in time; work begins after its patience
)
LEASE_RELEASED = "lease_released"  # lease=…: given back in good order, to the one that asked or for anybody to take
LEASE_LOST = "lease_lost"  # lease=…, reason=…: taken by another (normal) or not renewed in time (look at latency)
LEASE_ENDED = "lease_ended"  # lease=…, children=…: the shard is finished
LEASE_DELETED = "lease_deleted"  # lease=…: finished, and all its children are under way
LEASE_RESTARTING = (
    "lease_restarting"  # lease=…, delay_s=…, error=…: its task failed for now; steady growth: look at the error
)
LEASE_WRITE_FAILED = (
    "lease_write_failed"  # lease=…, error=…: one renewal or release failed and is retried or left to expire
)
LEASE_PLAN_FAILED = "lease_plan_failed"  # error=…: the table or the shard list could not be read; held leases go on
LEASE_DRAIN_CUT = "lease_drain_cut"  # work was still in hand when the drain budget was spent; it is redone elsewhere

LEASES_HELD = Gauge("tidegate_leases_held", "Leases held by this process. The sum over the fleet = open shards.")
LEASES_TAKEN = Counter(
    "tidegate_leases_taken_total",
    "Leases taken, by way (take: free or expired, hand_over, push, steal: by force).",
    ["way"],
)
LEASES_GIVEN = Counter(
    "tidegate_leases_given_total",
    "Leases given up in good order, by way (hand_over: to the one that asked, push: we stop, free: to anybody).",
    ["way"],
)
LEASES_LOST = Counter(
    "tidegate_leases_lost_total", "Leases lost while held. More than deployments explain: look at renewals."
)
LEASE_RENEW_SECONDS = Histogram(
    "tidegate_lease_renew_seconds",
    "Duration of lease writes by the holder. Should stay far below the patience.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5),
)
LEASE_MARGIN_SECONDS = Histogram(
    "tidegate_lease_margin_seconds",
    "What was left of the patience when a renewal succeeded. Near 0: leases will be lost; look at latency and loop lag.",
    buckets=(0, 0.25, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 8),
)
LEASE_CONFLICTS = Counter(
    "tidegate_lease_conflicts_total",
    "Writes whose condition failed, by write: another was faster. Many takes: processes start or die together.",
    ["write"],
)
LEASE_READ_UNITS = Counter(
    "tidegate_lease_read_units_total",
    "DynamoDB read units spent on looking at the lease table. At most TIDEGATE_LEASES_READS_PER_S a second.",
)

# ---------------------------------------------------------------- poller
POLLER_OPENED = (
    "poller_opened"  # source=…, epoch=…, keys=…, unsure=…: a source was taken; unsure rows are published again
)
POLLER_LOADED = "poller_loaded"  # source=…, keys=…: the first walk reached the tip, watermarks begin
POLLER_FAILED = (
    "poller_failed"  # source=…, attempt=…, wait_s=…, error=…: back office or AWS not answering; normal at night
)
POLLER_REFUSED = (
    "poller_refused"  # the same fields: it refuses us (401, 403, 404, …); mend it there or in the source's declaration
)
POLLER_CLOCK_AHEAD = (
    "poller_clock_ahead"  # source=…, ahead_s=…: once; watermarks go by our own clock until it is right. Mend its clock
)
POLLER_CLOCK_RIGHT = "poller_clock_right"  # source=…: the back office's clock is believed again
POLLER_SWEPT = "poller_swept"  # source=…, seconds=…, rows=…, nominated=…, deleted=…, drift=…: a full walk is complete
POLLER_REVISIONS_FELL = "poller_revisions_fell"  # source=…, bound=…, newest=…: a backup? polls go on from the newest
POLLER_DOUBT = (
    "poller_doubt"  # source=…: rows may have slipped a walk; watermarks wait for a sweep that proves otherwise
)
POLLER_REREAD_IGNORED = (
    "poller_reread_ignored"  # source=…, reason=…: a keyed re-read that proves nothing and deletes nothing; check Reread
)
POLLER_DELETIONS_STOPPED = (
    "poller_deletions_stopped"  # source=…, gone=…, limit=… (0: an empty walk): see `sources sweep --help`
)
POLLER_QUARANTINED = "poller_quarantined"  # source=…, rows=…: rows that could not be translated; the worker files them
POLLER_SIGNALS_UNSEEN = (
    "poller_signals_unseen"  # source=…, error=…: the source table cannot be read or written; polling goes on
)
POLLER_PAUSED = "poller_paused"  # source=…, by=…, reason=…: `tidegate sources pause`; its data ages until it is resumed
POLLER_RESUMED = "poller_resumed"  # source=…, by=…: `tidegate sources resume`
POLLER_ERRAND_OVER = (
    "poller_errand_over"  # source=…, verb=…, standing=…, rows=…, published=…, note=…: what a person asked for ended
)
POLLER_SHAPE_DRIFT = (
    "poller_shape_drift"  # source=…, field=…, drift=…: once for each; see the source's `drift` for what follows
)
POLLER_FILE_TAKEN = "poller_file_taken"  # source=…, file=…, rows=…: a dropped file was looked at and will be published
POLLER_FILE_DONE = (
    "poller_file_done"  # source=…, file=…, fate=…, rows=…, faults=…: all of it is on the stream, or older
)
POLLER_FILE_REFUSED = (
    "poller_file_refused"  # source=…, file=…, reason=…: nothing of it was published; drop it again, mended
)
POLLER_SHARDS_CHANGED = "poller_shards_changed"  # open=…: a reshard was noticed; watermarks go to the new shards

POLLER_ROWS = Counter("tidegate_poller_rows_total", "Rows the back office showed.", ["source"])
POLLER_UNCHANGED = Counter("tidegate_poller_unchanged_total", "Of them, rows known already.", ["source"])
POLLER_PUBLISHED = Counter(
    "tidegate_poller_published_total",
    "Records acknowledged by Kinesis, by cause (live, backfill, sweep, retranslate, quarantine).",
    ["source", "cause"],
)
POLLER_DUPLICATES = Counter(
    "tidegate_poller_duplicates_total",
    "Rows left out because the same answer shows their key in a newer version. Should not grow.",
    ["source"],
)
POLLER_REFUSALS = Counter(
    "tidegate_poller_refusals_total",
    "Requests that the back office refused (401, 403, 404, …). Alarm on growth: its data ages until a person acts.",
    ["source"],
)
POLLER_QUARANTINES = Counter(
    "tidegate_poller_quarantined_total", "Rows filed as they are. Should not grow.", ["source"]
)
POLLER_DELETIONS = Counter("tidegate_poller_deletions_total", "Rows found gone and published so.", ["source"])
POLLER_DRIFT = Counter(
    "tidegate_poller_drift_total",
    "What only a sweep found, by kind. deleted: normal. changed, missed: the back office moves rows without their time "
    "or revision, or commits later than the source's overlap_s.",
    ["source", "kind"],
)
POLLER_REREADS = Counter("tidegate_poller_reread_keys_total", "Keys asked for by name.", ["source"])
POLLER_REQUEST_SECONDS = Histogram(
    "tidegate_poller_request_seconds",
    "Duration of a request to the back office, by status (HTTP code, or timeout, refused, …).",
    ["source", "status"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
POLLER_WATERMARK_SECONDS = Gauge(
    "tidegate_poller_watermark_seconds",
    "The last watermark, in seconds since 1970; age = now - it. Age grows while the back office is down.",
    ["source"],
)
POLLER_CURSOR_SECONDS = Gauge(
    "tidegate_poller_cursor_seconds",
    "Time of the newest state the cursor vouches for, in seconds since 1970 by the back office's clock.",
    ["source"],
)
POLLER_KEYS = Gauge("tidegate_poller_keys", "Keys in the index.", ["source"])
POLLER_PUBLISH_RETRIES = Counter(
    "tidegate_poller_publish_retries_total",
    "Records sent again. Throttles are normal life; steady growth: more shards.",
)
POLLER_FILES = Counter(
    "tidegate_poller_files_total",
    "Dropped files, by fate (done, refused, superseded). Alarm on refused: what it would have changed is missing.",
    ["source", "fate"],
)
POLLER_SHAPE_DRIFTS = Counter(
    "tidegate_poller_shape_drifts_total",
    "Fields that are new, missing, or hold something else than before, each once. Alarm: look before rows are missing.",
    ["source", "kind"],
)
POLLER_ARCHIVED = Counter("tidegate_poller_archived_rows_total", "Raw rows put into the archive.", ["source"])
POLLER_BUDGET_WAITED = Counter(
    "tidegate_poller_budget_waited_seconds_total",
    "Time that calls waited for their shards' write budgets. Steady growth: more shards, or aggregation.",
)
POLLER_MISPLACED = Counter(
    "tidegate_poller_misplaced_total",
    "Aggregated records sent again because a reshard had moved their key to another shard. Grows with reshards only.",
)
POLLER_CLAIMS = Counter(
    "tidegate_poller_claims_total", "Events too large for the stream, carried by reference. Each costs an S3 object."
)
POLLER_BREAKER_OPENED = (
    "poller_breaker_opened"  # office=…, error=…: it failed so often in a row that it is left alone; one request tries
)
POLLER_BREAKER_CLOSED = "poller_breaker_closed"  # office=…: it answers again
POLLER_BUDGET_BLIND = "poller_budget_blind"  # office=…, error=…: the shared budget's table is away; slots run out
POLLER_CLOCK_SKEW = Gauge(
    "tidegate_poller_clock_skew_seconds",
    "The back office's clock minus ours, by its Date header. Changes are asked for by its clock, so any constant is fine.",
    ["source"],
)
POLLER_TURN_WAITED = Counter(
    "tidegate_poller_turn_waited_seconds_total",
    "Time that requests waited for the back office's shared budget. Growing by seconds each second: it is the bottleneck.",
    ["office"],
)
POLLER_BREAKER_OPEN = Gauge(
    "tidegate_poller_breaker_open", "1 while a back office is left alone after failures in a row.", ["office"]
)
POLLER_DELETIONS_HELD = Gauge(
    "tidegate_poller_deletions_held",
    "1 while a sweep found more rows gone than the limit, or no row at all: no watermarks until a person acts. Alarm.",
    ["source"],
)

Logger = FilteringBoundLogger


def get_logger(name: str) -> Logger:
    """The logger of one module: `log.info(LEASE_TAKEN, lease=key)`. `lifecycle` decides where lines go."""
    logger: Logger = structlog.get_logger(module=name)
    return logger


# The worker.

WORKER_STARTED = "worker_started"  # stream=…, bubble=…, health_port=…
WORKER_WAITS = "worker_waits"  # error=…: the lease table or the database cannot be used yet; tried again until it can
SHARD_OPENED = (
    "shard_opened"  # shard=…, start=…, lease=…: reading begins; start before lease: the database is catching up
)
SHARD_ENDED = "shard_ended"  # shard=…, children=[…]: read to its last record, children may start
SHARD_ENDED_BEFORE = (
    "shard_ended_before"  # shard=…: the database saw its end, a lost lease did not; it ends there now, without reading
)
READ_FAILED = "read_failed"  # shard=…, tried=…, error=…: one read was throttled or broke off and is tried again
STREAM_GAP = (
    "stream_gap"  # shard=…, gap=…: records may be LOST, trimmed before they were read; resync, then resolve its letter
)
WRITE_FAILED = "write_failed"  # shard=…, doing=…, error=…: the database is away; reading waits, nothing is lost
RECORDS_REJECTED = (
    "records_rejected"  # shard=…, count=…: filed in tidegate.dead_letter; their sources are incomplete meanwhile
)
CLAIM_MISSING = (
    "claim_missing"  # name=…, error=…: a record kept in S3 is gone; its reference is filed. Check the lifecycle
)
DATABASE_BEHIND = (
    "database_behind"  # shards=…: their leases ended, but this (restored?) database did not see it; resync sources
)
FENCE_REPLACED = (
    "fence_replaced"  # shard=…, stored=…, mine=…: the lease table was made anew; expected after a restore only
)

RECORDS_READ = Counter("tidegate_records_read_total", "User records read, aggregates taken apart.")
BYTES_READ = Counter("tidegate_bytes_read_total", "Payload bytes read from Kinesis.")
RECORDS_OUTSIDE = Counter(
    "tidegate_records_outside_total",
    "Records read outside their shard's hash range: aggregated before a reshard. Kept.",
)
MILLIS_BEHIND = Gauge(
    "tidegate_millis_behind_latest",
    "Distance from the tip of the shard, as Kinesis says. Growing: add workers.",
    ["shard"],
)
READS_RETRIED = Counter(
    "tidegate_reads_retried_total",
    "Reads tried again, by AWS error code. ProvisionedThroughputExceededException: throttled, others read the shard too.",
    ["code"],
)
ITERATORS_EXPIRED = Counter(
    "tidegate_iterators_expired_total", "Shard iterators older than 5 minutes: the database kept the reader waiting."
)
RESUBSCRIPTIONS = Counter(
    "tidegate_resubscriptions_total",
    "Fan-out: subscriptions renewed. One for each shard and five minutes; more: connections break, or two workers differ.",
)
READ_MEMORY_BYTES = Gauge(
    "tidegate_read_memory_bytes",
    "Payload read and not yet written, with what is expected of reads under way. At the bound: the database is slow.",
)
GAPS = Counter("tidegate_gaps_total", "Times that a checkpoint was trimmed from the stream. Alarm on any; then resync.")
BATCH_SECONDS = Histogram(
    "tidegate_batch_seconds",
    "From a closed batch to its commit, retries included.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 15, 60),
)
BATCH_RECORDS = Histogram(
    "tidegate_batch_records",
    "Records in a batch, watermarks included. Small while at the tip; at the limit while catching up.",
    buckets=(1, 5, 20, 100, 500, 1_000, 2_000, 5_000, 20_000, 100_000),
)
RECORDS_WRITTEN = Counter(
    "tidegate_records_written_total",
    "Changes and rejected records by outcome: applied, unchanged, stale, coalesced, rejected, parked. Alarm on rejected.",
    ["outcome"],
)
WRITES_RETRIED = Counter(
    "tidegate_writes_retried_total", "Database transactions tried again. Steady growth: look at it."
)

# Strict order: changes that wait behind a dead letter of their key.

RECORDS_PARKED = (
    "records_parked"  # shard=…, count=…: filed whole behind a dead letter of their key, for a person to close
)
DRAIN_HELD_UP = "drain_held_up"  # entity=…, count=…: a parked change failed in its turn; it is open, the rest waits on
DRAIN_FAILED = "drain_failed"  # error=…: tried again; what waits is safe

PARKED_OPEN = Gauge(
    "tidegate_parked_open",
    "Changes that wait behind a dead letter of their key. Alarm when not 0 for long; take the fleet's maximum.",
    ["entity"],
)
PARKED_OLDEST_SECONDS = Gauge(
    "tidegate_parked_oldest_seconds", "How long the first of them has waited, 0 when none does.", ["entity"]
)
PARKED_DRAINED = Counter(
    "tidegate_parked_drained_total",
    "Changes that were parked and tried in their turn, by outcome: applied, unchanged, stale, rejected.",
    ["outcome"],
)

# Open dead letters.

LETTERS_NOT_COUNTED = "letters_not_counted"  # error=…: the metrics keep their last values; asked again within a minute

LETTERS_OPEN = Gauge(
    "tidegate_dead_letters_open",
    "Dead letters that nobody has closed, without parked ones; their sources' answers are incomplete. Take the maximum.",
)
LETTERS_OLDEST_SECONDS = Gauge(
    "tidegate_dead_letters_oldest_seconds", "Age of the oldest of them, 0 when there is none. Alarm above a day."
)

# The worker's outbox.

OUTBOX_CHANGE_FAILED = (
    "outbox_change_failed"  # destination=…, id=…, error=…: one attempt; the change waits and is tried again
)
OUTBOX_CHANGE_DEAD = (
    "outbox_change_dead"  # destination=…, id=…, error=…: refused, or tried for too long; waits for a person
)
OUTBOX_DATABASE_AWAY = "outbox_database_away"  # doing=…, error=…: tried again; at worst a change is sent twice

OUTBOX_QUEUED = Counter("tidegate_outbox_queued_total", "Applied changes that a destination wants.", ["destination"])
OUTBOX_SENT = Counter("tidegate_outbox_sent_total", "Changes that the receiver accepted.", ["destination"])
OUTBOX_RETRIED = Counter(
    "tidegate_outbox_retried_total", "Attempts that failed and will be repeated. Steady growth: ask the receiver.",
    ["destination"],
)  # fmt: skip
OUTBOX_DEAD = Counter(
    "tidegate_outbox_dead_total", "Changes given up: refused, or tried for too long.", ["destination"]
)  # fmt: skip
OUTBOX_DEAD_OPEN = Gauge(
    "tidegate_outbox_dead_open", "Changes given up that nobody has dealt with. Alarm on any; take the fleet's maximum.",
    ["destination"],
)  # fmt: skip
OUTBOX_OLDEST_SECONDS = Gauge(
    "tidegate_outbox_oldest_seconds",
    "Age of the change that has waited longest, 0 when none does. Growing: the receiver is away, or too slow.",
    ["destination"],
)
OUTBOX_SEND_SECONDS = Histogram(
    "tidegate_outbox_send_seconds",
    "Duration of one attempt, failed ones included.",
    ["destination"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


def forget_shard(shard: str) -> None:
    """Drop the gauges of a shard that this process no longer reads, or they would show their last value for ever."""
    MILLIS_BEHIND.remove(shard)


# Housekeeping: old tombstones and resolved dead letters.

HOUSEKEEPING_DONE = "housekeeping_done"  # dead_letter=…, <entity>=… (its tombstones): how many a round deleted
HOUSEKEEPING_FAILED = "housekeeping_failed"  # error=…: a round broke off; the next one goes on. Steady: look at it
TOMBSTONES_STAY = "tombstones_stay"  # why=…: none are deleted; reckon with the stream's retention in the settings

HOUSEKEEPING_DELETED = Counter(
    "tidegate_housekeeping_deleted_total",
    "Rows deleted by age, by what (tombstone, dead_letter, departure, inbound).",
    ["what"],
)
HOUSEKEEPING_SECONDS = Histogram(
    "tidegate_housekeeping_seconds",
    "One step, a transaction. Near the statement time-out: lower TIDEGATE_RETENTION_STEP_ROWS.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5),
)
TOMBSTONES_KEPT = Gauge(
    "tidegate_tombstones_kept",
    "1 while the stream keeps records longer than the retention settings reckon with: tombstones pile up. Raise them.",
)

STREAM_RETENTION_SECONDS = Gauge(
    "tidegate_stream_retention_seconds",
    "How long the stream keeps records, as it says itself; until it was asked, what the retention settings reckon with.",
)

# The worker's watch over its database.

DATABASE_LOST = "database_lost"  # error=…: away, or read-only; nothing is lost, reading stops until it is back
DATABASE_BACK = "database_back"  # it takes writes again

DATABASE_UP = Gauge(
    "tidegate_database_up", "1 while the database takes writes, as /readyz says. Alarm on 0 for minutes."
)


# The API as a service (`python -m api`). In Lambda, their log lines are what there is: api/log.py.

API_STARTED = "api_started"  # bubble=…, port=…, health_port=…: it listens; /readyz says whether the database answers

API_REQUESTS = Counter("tidegate_api_requests_total", "Requests and streams that ended, by status.", ["status"])
API_SECONDS = Histogram(
    "tidegate_api_request_seconds",
    "Duration of a request; of a stream, from its beginning to its end.",
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
API_STREAMS = Gauge("tidegate_api_streams", "Streams of server-sent events that are open.")
