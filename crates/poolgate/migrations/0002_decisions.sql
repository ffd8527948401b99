-- Why requests went where they went: lines of "id decisions-as-JSON", compressed together as they
-- were taken over from the spool, found by the time at which their requests ended.
CREATE TABLE decisions (
    first_end INTEGER NOT NULL,
    last_end INTEGER NOT NULL,
    lines BLOB NOT NULL
) STRICT;

CREATE INDEX decisions_by_time ON decisions (last_end);
