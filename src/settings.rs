//! The settings `fanout.*`.
//!
//! All are read on the main thread only (pgrx checks it): what sender threads need is handed to them as values.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

static CAPTURE_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(4096);
static MAX_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(8);
static HEARTBEAT: GucSetting<i32> = GucSetting::<i32>::new(1000);
static READ_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(30_000);
static READ_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(512);
static BATCH_BYTES: GucSetting<i32> = GucSetting::<i32>::new(4096);
static BATCH_DOCUMENTS: GucSetting<i32> = GucSetting::<i32>::new(2000);
static PENDING_KEYS: GucSetting<i32> = GucSetting::<i32>::new(250_000);
static BACKLOG_KEYS: GucSetting<i32> = GucSetting::<i32>::new(10_000_000);
static SEGMENT_SIZE: GucSetting<i32> = GucSetting::<i32>::new(64 * 1024);
static BULK_LOAD: GucSetting<bool> = GucSetting::<bool>::new(false);
static DEAD_LETTERS: GucSetting<i32> = GucSetting::<i32>::new(100_000);
static PERIOD_INDICES: GucSetting<i32> = GucSetting::<i32>::new(200);
static OWNER_STALE: GucSetting<i32> = GucSetting::<i32>::new(60);
static CHECK_AGE: GucSetting<i32> = GucSetting::<i32>::new(60);

/// Defines the settings. Called when the library is loaded.
pub fn define() {
    let int = |name, setting, short, long, min, max, context, flags| {
        GucRegistry::define_int_guc(name, short, long, setting, min, max, context, flags);
    };
    int(
        c"fanout.capture_memory",
        &CAPTURE_MEMORY,
        c"Memory for the keys that one transaction changed, before they go to the journal early.",
        c"One subtransaction level may hold so much in the writing backend.",
        64,
        1_048_576,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    int(
        c"fanout.max_workers",
        &MAX_WORKERS,
        c"How many databases are served by a worker at the same time.",
        c"Each takes one of max_worker_processes. Databases beyond the limit wait, and fanout.status says so.",
        1,
        64,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    int(
        c"fanout.heartbeat",
        &HEARTBEAT,
        c"How long an idle worker sleeps at most.",
        c"Commits wake it at once; only what COMMIT PREPARED makes visible waits for the heartbeat.",
        50,
        60_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    int(
        c"fanout.read_timeout",
        &READ_TIMEOUT,
        c"Longest time that the worker reads rows in one statement, and so the longest that DDL waits for it.",
        c"A statement that takes longer is cancelled, and its rows are read again later.",
        100,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    int(
        c"fanout.read_memory",
        &READ_MEMORY,
        c"Memory that the worker may take while it reads rows in one statement.",
        c"A statement that takes more is cancelled, and fewer rows are read; a row that takes more alone is a dead letter.",
        16,
        1_048_576,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    int(
        c"fanout.batch_bytes",
        &BATCH_BYTES,
        c"Size of a batch at which it is sent.",
        c"Batches form by themselves: what came in while others were on their way is the next one. This is only the bound.",
        16,
        65_536,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    int(
        c"fanout.batch_documents",
        &BATCH_DOCUMENTS,
        c"Number of documents in a batch at which it is sent.",
        c"Also the number of rows that the worker reads in one statement.",
        1,
        100_000,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    int(
        c"fanout.pending_keys",
        &PENDING_KEYS,
        c"How many unacknowledged keys of one sync the worker holds in memory.",
        c"What comes beyond goes to the table fanout.pending, up to fanout.backlog_keys.",
        1000,
        100_000_000,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    int(
        c"fanout.backlog_keys",
        &BACKLOG_KEYS,
        c"How many unacknowledged keys of one sync are kept at all.",
        c"Past it they are dropped, and the sync is reconciled once its target answers again. A warning is logged at 80 %.",
        1000,
        1_000_000_000,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    int(
        c"fanout.segment_size",
        &SEGMENT_SIZE,
        c"Size of a journal segment at which the next one is written.",
        c"A segment is truncated when all in it is acknowledged or stored in fanout.pending.",
        64,
        16_777_216,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    int(
        c"fanout.owner_stale",
        &OWNER_STALE,
        c"How long another owner must be silent before its target may be claimed.",
        c"A target says in its control document which sync of which database feeds it, and where that runs; a live owner gives way to fanout.adopt() only.",
        5,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    int(
        c"fanout.dead_letters",
        &DEAD_LETTERS,
        c"How many dead letters of one sync are kept.",
        c"Past it the oldest are forgotten, which is logged, as it is at 80 %.",
        100,
        10_000_000,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    int(
        c"fanout.period_indices",
        &PERIOD_INDICES,
        c"How many indices a sync with one index a period may have.",
        c"A row that needs one more blocks the sync.",
        1,
        10_000,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    int(
        c"fanout.check_age",
        &CHECK_AGE,
        c"Age at which fanout.check() names what is under way.",
        c"Changes that are not delivered, prepared transactions, and transactions that hold the journal.",
        0,
        86_400,
        GucContext::Userset,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_bool_guc(
        c"fanout.bulk_load",
        c"Notes no keys: each sync whose table is written to is reconciled after the commit.",
        c"For loads that change most of a table. Nothing is lost; GRANT SET ON PARAMETER lets others than superusers use it.",
        &BULK_LOAD,
        GucContext::Suset,
        GucFlags::empty(),
    );
    // SAFETY: the prefix is a C string; called while the library is loaded, after its settings are defined.
    unsafe {
        pgrx::pg_sys::MarkGUCPrefixReserved(c"fanout".as_ptr());
    }
}

/// Bytes that one subtransaction level may hold.
pub fn capture_memory() -> usize {
    CAPTURE_MEMORY.get() as usize * 1024
}

/// Databases served at the same time.
pub fn max_workers() -> usize {
    MAX_WORKERS.get() as usize
}

/// Longest sleep of an idle worker, in milliseconds.
pub fn heartbeat_ms() -> i64 {
    HEARTBEAT.get().into()
}

/// Longest statement of the worker, in milliseconds.
pub fn read_timeout_ms() -> i32 {
    READ_TIMEOUT.get()
}

/// Bytes that one statement of the worker may take.
pub fn read_memory() -> u64 {
    READ_MEMORY.get() as u64 * 1024 * 1024
}

/// Bytes at which a batch is sent.
pub fn batch_bytes() -> usize {
    BATCH_BYTES.get() as usize * 1024
}

/// Documents at which a batch is sent.
pub fn batch_documents() -> usize {
    BATCH_DOCUMENTS.get() as usize
}

/// Addresses of one sync in memory.
pub fn pending_keys() -> usize {
    PENDING_KEYS.get() as usize
}

/// Addresses of one sync in memory and in fanout.pending.
pub fn backlog_keys() -> usize {
    BACKLOG_KEYS.get() as usize
}

/// Blocks at which a segment is left for the next.
pub fn segment_blocks() -> u32 {
    (SEGMENT_SIZE.get() as u64 * 1024 / u64::from(pgrx::pg_sys::BLCKSZ)).max(2) as u32
}

/// True if writes note no keys, but that all is to be reconciled.
pub fn bulk_load() -> bool {
    BULK_LOAD.get()
}

/// Dead letters of a sync that are kept.
pub fn dead_letters() -> usize {
    DEAD_LETTERS.get() as usize
}

/// Indices of a sync with one a period.
pub fn period_indices() -> usize {
    PERIOD_INDICES.get() as usize
}

/// How long another owner must be silent before its target may be claimed.
pub fn owner_stale() -> std::time::Duration {
    std::time::Duration::from_secs(OWNER_STALE.get() as u64)
}

/// Seconds after which fanout.check() names what is under way.
pub fn check_age() -> i64 {
    CHECK_AGE.get().into()
}
