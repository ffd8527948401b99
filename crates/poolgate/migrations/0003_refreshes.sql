-- What is known of renewing an account's sign-in, as long as it is: a row is written before the issuer
-- is asked, and deleted once the new tokens are kept.
CREATE TABLE refreshes (
    account_id INTEGER PRIMARY KEY REFERENCES accounts (id),
    -- SHA-256 of the tokens it is about: with others it means nothing.
    content BLOB NOT NULL,
    -- 'asked': no answer is known, 'failed': not before `until`, 'blocked': 429 without a time,
    -- 'refused': for good, with the issuer's code.
    state TEXT NOT NULL CHECK (state IN ('asked', 'failed', 'blocked', 'refused')),
    code TEXT NOT NULL DEFAULT '',
    -- How often it was asked without an answer.
    tries INTEGER NOT NULL DEFAULT 0,
    -- When it was last asked; for 'failed' when it may be again.
    at INTEGER NOT NULL
) STRICT;
