-- Times are milliseconds since the Unix epoch. Lists and settings are JSON text.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- Counts changes to accounts, pools and keys, so that a running gateway notices them.
INSERT INTO meta (name, value) VALUES ('revision', '0');

CREATE TABLE accounts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    -- 'config' rows belong to the configuration file, 'cli' rows to the operator.
    origin TEXT NOT NULL CHECK (origin IN ('config', 'cli')),
    settings TEXT NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0,
    -- Why it takes no work until a person acts; NULL: it may.
    stop TEXT,
    created_at INTEGER NOT NULL,
    -- An operator vouched for it: what was learnt before no longer counts.
    resumed_at INTEGER,
    -- Set when it was removed; the row stays for the ledger.
    removed_at INTEGER
) STRICT;

-- Credentials have their own table and version, touched by one writer only.
CREATE TABLE credentials (
    account_id INTEGER PRIMARY KEY REFERENCES accounts (id),
    sealed BLOB NOT NULL,
    version INTEGER NOT NULL DEFAULT 1,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE quota_windows (
    account_id INTEGER NOT NULL REFERENCES accounts (id),
    -- '' is the ordinary limit.
    limit_name TEXT NOT NULL,
    length_s INTEGER NOT NULL,
    used_ppm INTEGER NOT NULL,
    resets_at INTEGER,
    observed_at INTEGER NOT NULL,
    PRIMARY KEY (account_id, limit_name, length_s)
) STRICT;

CREATE TABLE client_keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    -- SHA-256 of the key; the key itself is shown once and kept nowhere.
    digest BLOB NOT NULL UNIQUE,
    -- The first characters, for people to tell keys apart.
    hint TEXT NOT NULL,
    pools TEXT NOT NULL DEFAULT '[]',
    models TEXT NOT NULL DEFAULT '[]',
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT;

-- One row per request. ended_at IS NULL: it runs, or the process died; `interrupted` after a restart.
-- The id is a UUIDv7 in hexadecimal: its first 12 digits are the time, so the key's order is the order
-- of time, and a row is appended at the end of one tree.
CREATE TABLE requests (
    id TEXT PRIMARY KEY,
    started_at INTEGER NOT NULL,
    ended_at INTEGER,
    key_id INTEGER NOT NULL,
    surface TEXT NOT NULL,
    model TEXT NOT NULL,
    stream INTEGER NOT NULL,
    account_id INTEGER,
    status INTEGER,
    outcome TEXT,
    code TEXT,
    wait_ms INTEGER,
    head_ms INTEGER,
    first_ms INTEGER,
    total_ms INTEGER,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cache_read_tokens INTEGER,
    cache_write_tokens INTEGER,
    reasoning_tokens INTEGER,
    bytes INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX requests_running ON requests (id) WHERE ended_at IS NULL;

CREATE TABLE attempts (
    request_id TEXT NOT NULL,
    n INTEGER NOT NULL,
    account_id INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    status INTEGER,
    ms INTEGER NOT NULL,
    PRIMARY KEY (request_id, n)
) STRICT, WITHOUT ROWID;

-- Which account holds the state behind a response id.
CREATE TABLE response_owners (
    key_id INTEGER NOT NULL,
    response TEXT NOT NULL,
    account_id INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (key_id, response)
) STRICT;

CREATE INDEX response_owners_by_time ON response_owners (created_at);

-- How far the spool has been taken over; written in the same transaction as the rows.
CREATE TABLE spool_position (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    segment INTEGER NOT NULL,
    offset INTEGER NOT NULL
) STRICT;
