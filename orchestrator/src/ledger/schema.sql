-- Layout 1 of the ledger. Times are microseconds since the Unix epoch (UTC), `subscriber` '' is anonymous traffic
-- (in `usage` ' NAME' that of a prefix with a name),
-- JSON columns hold the records of `engine::io` and `models::setting`.

-- The last batch applied of each boot of each agent. A batch is applied once by (agent, boot, sequence).
CREATE TABLE batches (
    agent      TEXT    NOT NULL,
    boot       BLOB    NOT NULL,
    sequence   INTEGER NOT NULL,
    start_us   INTEGER NOT NULL,
    end_us     INTEGER NOT NULL,
    applied_us INTEGER NOT NULL,
    PRIMARY KEY (agent, boot)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage (
    subscriber      TEXT    NOT NULL,
    class           TEXT    NOT NULL,
    direction       TEXT    NOT NULL,
    bytes           INTEGER NOT NULL,
    packets         INTEGER NOT NULL,
    dropped_bytes   INTEGER NOT NULL,
    dropped_packets INTEGER NOT NULL,
    PRIMARY KEY (subscriber, class, direction)
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    agent        TEXT    NOT NULL,
    session      TEXT    NOT NULL,
    subscriber   TEXT    NOT NULL,
    open         INTEGER NOT NULL,
    prefixes     TEXT    NOT NULL,
    keys         TEXT    NOT NULL,
    serving_plmn TEXT    NOT NULL,
    roaming      INTEGER NOT NULL,
    rat          TEXT    NOT NULL,
    time_zone    TEXT    NOT NULL,
    since_us     INTEGER NOT NULL,
    changed_us   INTEGER NOT NULL,
    PRIMARY KEY (agent, session)
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_of_subscriber ON sessions (subscriber);
CREATE INDEX sessions_closed ON sessions (changed_us) WHERE open = 0;

-- What was recognised, by app: never an address or a name that was asked for.
CREATE TABLE apps (
    subscriber TEXT    NOT NULL,
    app        TEXT    NOT NULL,
    class      TEXT    NOT NULL,
    via        TEXT    NOT NULL,
    flows      INTEGER NOT NULL,
    last_us    INTEGER NOT NULL,
    verdict_us INTEGER NOT NULL,
    PRIMARY KEY (subscriber, app)
) STRICT, WITHOUT ROWID;

CREATE TABLE engine (
    subscriber TEXT PRIMARY KEY,
    state      TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE decisions (
    id         TEXT PRIMARY KEY,
    subscriber TEXT    NOT NULL,
    at_us      INTEGER NOT NULL,
    moment     TEXT    NOT NULL,
    chosen     TEXT,
    trace      TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX decisions_of_subscriber ON decisions (subscriber, at_us);
CREATE INDEX decisions_by_time ON decisions (at_us);

-- A message has its decision's id. `sent_us` NULL and `error` NULL: to be sent.
CREATE TABLE messages (
    decision   TEXT PRIMARY KEY,
    subscriber TEXT    NOT NULL,
    action     TEXT    NOT NULL,
    at_us      INTEGER NOT NULL,
    say        TEXT    NOT NULL,
    sent_us    INTEGER,
    error      TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX messages_of_subscriber ON messages (subscriber, at_us);
CREATE INDEX messages_pending ON messages (at_us) WHERE sent_us IS NULL AND error IS NULL;

-- Links accepted. A row here is what makes the second tap of a link change nothing.
CREATE TABLE taps (
    decision TEXT PRIMARY KEY,
    at_us    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What is one for all: `stop`, the kill switch; `guard`, where the canary stands; `learned`, how actions fared.
CREATE TABLE switches (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
