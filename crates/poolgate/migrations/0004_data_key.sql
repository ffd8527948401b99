-- The key that seals every secret, itself sealed by the master key. There is one row, made at the first
-- start; until then meta's 'master_key' has the fingerprint of a key that sealed secrets directly.
CREATE TABLE data_key (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    sealed BLOB NOT NULL,
    -- The master key's fingerprint.
    master_key TEXT NOT NULL
) STRICT;
