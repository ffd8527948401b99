-- What one key may ask for at most; NULL: any number.
ALTER TABLE client_keys ADD COLUMN concurrency INTEGER CHECK (concurrency > 0);
ALTER TABLE client_keys ADD COLUMN requests_per_minute INTEGER CHECK (requests_per_minute > 0);
