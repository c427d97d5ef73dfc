-- The tables of an outbox that a fleet shares, and its verbs.
--
-- Each verb is one function: one statement, one transaction, one round trip. Its first step
-- locks the conversation's row. So the places of items are in the order of the commits, and what
-- a verb compares cannot change before it writes. No verb locks the rows of two conversations, but
-- for `name` and `move`, which lock them in the order of their numbers: there is no deadlock.
--
-- Whether an owner lives is told by the engine's clock alone: the clocks of the workers need not
-- agree.
--
-- What is called often is in plpgsql, which keeps its plans as long as a session of the engine
-- lasts: a function in SQL is planned anew at each call.

CREATE SCHEMA IF NOT EXISTS cached_session;

CREATE TABLE cached_session.schema_version (version integer NOT NULL);

-- On which timeline the engine writes. It is another one after each promotion of a standby, which
-- may not have got what the engine before it had confirmed last. An engine that does not tell it
-- keeps what it has confirmed somewhere else than in its log.
DO $$
BEGIN
    PERFORM pg_is_in_recovery() OR pg_walfile_name(pg_current_wal_lsn()) = '';
    CREATE FUNCTION cached_session.timeline() RETURNS text LANGUAGE sql AS $body$
        SELECT CASE WHEN pg_is_in_recovery() THEN ''
            ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END
    $body$;
EXCEPTION WHEN feature_not_supported OR undefined_function OR insufficient_privilege THEN
    CREATE FUNCTION cached_session.timeline() RETURNS text LANGUAGE sql IMMUTABLE AS $body$
        SELECT ''
    $body$;
END $$;

-- One row for each opening of an outbox. Only its own process writes it.
CREATE TABLE cached_session.owners (
    token text PRIMARY KEY,
    -- Until when it keeps what it has claimed.
    until timestamptz NOT NULL,
    -- The number of its last call that must not be done twice, and what came of it: whoever lost
    -- the answer asks again, and one that comes late is not done.
    call bigint NOT NULL DEFAULT 0,
    places bigint[],
    item bytea,
    at double precision
) WITH (fillfactor = 50);

CREATE TABLE cached_session.conversations (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    base_url text NOT NULL,
    organization text NOT NULL,
    project text NOT NULL,
    credentials text NOT NULL,
    conversation text NOT NULL,
    local text,
    owner text,
    released boolean NOT NULL DEFAULT false,
    claims bigint NOT NULL DEFAULT 0,
    -- How many calls have come to it that may have changed something, here or in the tables below.
    changes bigint NOT NULL DEFAULT 0,
    doubt bytea,
    paused text,
    window_complete boolean NOT NULL DEFAULT false,
    window_unverified integer NOT NULL DEFAULT 0,
    window_size bigint NOT NULL DEFAULT 0,
    window_kept boolean NOT NULL DEFAULT false,
    -- On which timeline it was written.
    timeline text NOT NULL DEFAULT cached_session.timeline(),
    -- Whether what waits may be on the server, and what is kept may lack something: a standby was
    -- promoted, and nobody has asked the server since.
    doubtful boolean NOT NULL DEFAULT false,
    -- When anything of it was changed last, by the engine's clock.
    touched timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (base_url, organization, project, conversation, credentials)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX conversations_by_local ON cached_session.conversations
    (base_url, organization, project, local, credentials) WHERE local IS NOT NULL;
CREATE INDEX conversations_by_owner ON cached_session.conversations (owner) WHERE NOT released;
CREATE INDEX conversations_by_touched ON cached_session.conversations (touched);

CREATE TABLE cached_session.items (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversation bigint NOT NULL REFERENCES cached_session.conversations ON DELETE CASCADE,
    sealed boolean NOT NULL DEFAULT false,
    accepted_at double precision NOT NULL,
    data bytea NOT NULL
);
CREATE INDEX items_by_conversation ON cached_session.items (conversation, seq);

CREATE TABLE cached_session.window_items (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversation bigint NOT NULL REFERENCES cached_session.conversations ON DELETE CASCADE,
    id text NOT NULL,
    data bytea NOT NULL
);
CREATE INDEX window_items_by_conversation ON cached_session.window_items (conversation, seq);

-- The lines of those who want a conversation for a whole run.
CREATE TABLE cached_session.turns (
    ticket bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversation bigint NOT NULL REFERENCES cached_session.conversations ON DELETE CASCADE,
    owner text NOT NULL
);
CREATE INDEX turns_by_conversation ON cached_session.turns (conversation, ticket);
CREATE INDEX turns_by_owner ON cached_session.turns (owner);

-- How often `expire` has removed conversations: who knew nothing of one that has come and gone since
-- is to notice.
CREATE TABLE cached_session.expirations (so_far bigint NOT NULL);

-- An address is an array: base URL, organization, project, credentials, conversation.

-- CS004: who waits for a row in this transaction does not see what was written meanwhile.
CREATE FUNCTION cached_session.check_isolation() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE EXCEPTION 'this transaction is isolated too much' USING ERRCODE = 'CS004';
    END IF;
END $$;

-- The number of a conversation's record, or null; its row is locked from now on.
--
-- more: by how much `changes` is raised: 0 for a call that changes nothing, or nothing but what a
-- version has beside it, such as the owner (see `versions`).
CREATE FUNCTION cached_session.find(a text[], more integer DEFAULT 1) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    found_number bigint;
    written_on text;
BEGIN
    PERFORM cached_session.check_isolation();
    UPDATE cached_session.conversations SET changes = changes + more
    WHERE base_url = a[1] AND organization = a[2] AND project = a[3]
        AND conversation = a[5] AND credentials = a[4]
    RETURNING number, timeline INTO found_number, written_on;
    IF found_number IS NULL THEN
        -- A local name leads to the conversation that was made of it.
        UPDATE cached_session.conversations SET changes = changes + more
        WHERE base_url = a[1] AND organization = a[2] AND project = a[3]
            AND local = a[5] AND credentials = a[4]
        RETURNING number, timeline INTO found_number, written_on;
    END IF;
    IF written_on <> cached_session.timeline() THEN
        -- What is forgotten may be that a batch was sealed, or has landed. All that waits is looked
        -- for on the server before it is sent, and nobody goes by what was known of it before: it
        -- has more claims from now on than may have been forgotten.
        UPDATE cached_session.items SET sealed = true
        WHERE conversation = found_number AND NOT sealed;
        UPDATE cached_session.conversations
        SET timeline = cached_session.timeline(), doubtful = true, claims = claims + (1::bigint << 32)
        WHERE number = found_number;
    END IF;
    RETURN found_number;
END $$;

-- The same, and nothing is locked.
CREATE FUNCTION cached_session.look_up(a text[]) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    found_number bigint;
BEGIN
    SELECT number INTO found_number FROM cached_session.conversations
    WHERE base_url = a[1] AND organization = a[2] AND project = a[3]
        AND conversation = a[5] AND credentials = a[4];
    IF found_number IS NULL THEN
        SELECT number INTO found_number FROM cached_session.conversations
        WHERE base_url = a[1] AND organization = a[2] AND project = a[3]
            AND local = a[5] AND credentials = a[4];
    END IF;
    RETURN found_number;
END $$;

-- Of a record that is made where there is none; as `find`.
CREATE FUNCTION cached_session.enter(a text[], more integer DEFAULT 1) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    found_number bigint := cached_session.find(a, more);
BEGIN
    WHILE found_number IS NULL LOOP
        INSERT INTO cached_session.conversations
            (base_url, organization, project, credentials, conversation)
        VALUES (a[1], a[2], a[3], a[4], a[5])
        ON CONFLICT DO NOTHING
        RETURNING number INTO found_number;
        -- Somebody else has made it just now.
        found_number := coalesce(found_number, cached_session.find(a, more));
    END LOOP;
    RETURN found_number;
END $$;

CREATE FUNCTION cached_session.lives(token_of text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM cached_session.owners
        WHERE token = token_of AND until > clock_timestamp()
    );
END $$;

-- Whether an owner lives, for one who is about to take what it has. Where it does not, its row is
-- written: a renewal that has looked at it before waits, looks again, and finds it run out. One
-- whose row is just being written lives. Nobody waits here, so nobody can wait in a circle.
CREATE FUNCTION cached_session.lives_on(token_of text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM cached_session.owners
    WHERE token = token_of AND until <= clock_timestamp() FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN EXISTS (SELECT FROM cached_session.owners WHERE token = token_of);
    END IF;
    UPDATE cached_session.owners SET until = until WHERE token = token_of;
    RETURN false;
END $$;

-- Whether a living owner other than `me` has a conversation.
CREATE FUNCTION cached_session.elsewhere(me text, n bigint) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN coalesce((
        SELECT owner IS NOT NULL AND owner <> me AND NOT released AND cached_session.lives(owner)
        FROM cached_session.conversations WHERE number = n
    ), false);
END $$;

-- Extends a lease. True: it had run out, or never begun, and nothing was held under it.
-- CS002: it had run out, and something was held: see `begin_lease`.
CREATE FUNCTION cached_session.renew(me text, lease double precision) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE cached_session.owners SET until = clock_timestamp() + make_interval(secs => lease)
    WHERE token = me AND until > clock_timestamp();
    IF FOUND THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM cached_session.conversations WHERE owner = me AND NOT released) THEN
        RAISE EXCEPTION 'the lease of % has run out', me USING ERRCODE = 'CS002';
    END IF;
    INSERT INTO cached_session.owners AS o (token, until)
    VALUES (me, clock_timestamp() + make_interval(secs => lease))
    ON CONFLICT (token) DO UPDATE SET until = excluded.until;
    RETURN true;
END $$;

-- Begins a lease anew, of one who holds nothing from now on: others may have had it.
CREATE FUNCTION cached_session.begin_lease(me text, lease double precision) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE cached_session.conversations SET released = true WHERE owner = me AND NOT released;
    INSERT INTO cached_session.owners AS o (token, until)
    VALUES (me, clock_timestamp() + make_interval(secs => lease))
    ON CONFLICT (token) DO UPDATE SET until = excluded.until;
    RETURN true;
END $$;

-- Ends an owner: what it held is anybody's, and its places in the lines are gone. Its row stays
-- for a while: a call of it that is still on its way comes too late.
CREATE FUNCTION cached_session.end_lease(me text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM cached_session.turns WHERE owner = me;
    INSERT INTO cached_session.owners AS o (token, until, call)
    VALUES (me, clock_timestamp(), 9223372036854775807)
    ON CONFLICT (token) DO UPDATE SET until = excluded.until, call = excluded.call,
        places = NULL, item = NULL;
END $$;

-- Claims a conversation for `me`, whose lease is extended; false: a living owner has it.
CREATE FUNCTION cached_session.claim(me text, n bigint, lease double precision, OUT mine boolean,
    OUT lapsed boolean) LANGUAGE plpgsql AS $$
DECLARE
    c cached_session.conversations;
BEGIN
    lapsed := cached_session.renew(me, lease);
    SELECT * INTO c FROM cached_session.conversations WHERE number = n;
    mine := c.owner IS NULL OR c.owner = me OR c.released
        OR NOT cached_session.lives_on(c.owner);
    IF mine THEN
        UPDATE cached_session.conversations
        SET owner = me, released = false, claims = claims + 1, touched = clock_timestamp()
        WHERE number = n AND (owner IS DISTINCT FROM me OR released);
    END IF;
END $$;

-- Whether a call is new; false: it was done, and what came of it is in `owners`.
-- CS003: a newer one of the same owner was done.
CREATE FUNCTION cached_session.is_new(me text, number_of bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    done bigint;
BEGIN
    SELECT call INTO done FROM cached_session.owners WHERE token = me;
    IF done > number_of THEN
        RAISE EXCEPTION 'call % comes too late', number_of USING ERRCODE = 'CS003';
    END IF;
    RETURN done IS DISTINCT FROM number_of;
END $$;

-- Notes what came of a call; CS003 as in `is_new`, of one that was done meanwhile.
CREATE FUNCTION cached_session.done(me text, number_of bigint, places_of bigint[],
    item_of bytea DEFAULT NULL, at_of double precision DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE cached_session.owners
    SET call = number_of, places = places_of, item = item_of, at = at_of
    WHERE token = me AND call < number_of;
    IF FOUND THEN
        RETURN;
    END IF;
    INSERT INTO cached_session.owners AS o (token, until, call, places, item, at)
    VALUES (me, clock_timestamp(), number_of, places_of, item_of, at_of)
    ON CONFLICT (token) DO UPDATE SET call = excluded.call, places = excluded.places,
        item = excluded.item, at = excluded.at
    WHERE o.call < excluded.call;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'call % comes too late', number_of USING ERRCODE = 'CS003';
    END IF;
END $$;

-- CS003: a newer call of the same owner was done than the one that this call comes behind.
CREATE FUNCTION cached_session.check_in_time(me text, number_of bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM cached_session.owners WHERE token = me AND call > number_of;
    IF FOUND THEN
        RAISE EXCEPTION 'a call behind % comes too late', number_of USING ERRCODE = 'CS003';
    END IF;
END $$;

-- CS001: a turn is over.
CREATE FUNCTION cached_session.check_turn(me text, ticket_of bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF ticket_of IS NULL THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM cached_session.turns WHERE ticket = ticket_of AND owner = me) THEN
        RAISE EXCEPTION 'the turn is over' USING ERRCODE = 'CS001';
    END IF;
END $$;

-- Rows of items, as four arrays, oldest first.
CREATE FUNCTION cached_session.rows_after(n bigint, after bigint,
    OUT seqs bigint[], OUT items bytea[], OUT sealed bigint, OUT ats double precision[])
LANGUAGE plpgsql STABLE AS $$
BEGIN
    SELECT array_agg(i.seq ORDER BY i.seq), array_agg(i.data ORDER BY i.seq),
        count(*) FILTER (WHERE i.sealed), array_agg(i.accepted_at ORDER BY i.seq)
    INTO seqs, items, sealed, ats
    FROM cached_session.items i
    WHERE i.conversation = n AND i.seq > after;
END $$;

-- The newest item of what is kept of a conversation.
CREATE FUNCTION cached_session.window_newest(n bigint, OUT newest_seq bigint, OUT newest_id text)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    SELECT seq, id INTO newest_seq, newest_id FROM cached_session.window_items
    WHERE conversation = n ORDER BY seq DESC LIMIT 1;
END $$;

CREATE FUNCTION cached_session.forget_window(n bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM cached_session.window_items WHERE conversation = n;
    UPDATE cached_session.conversations
    SET window_kept = false, window_complete = false, window_unverified = 0, window_size = 0,
        touched = clock_timestamp()
    WHERE number = n;
END $$;

-- Keeps the newest part of a conversation, unless another process may have kept a newer one.
--
-- same: nobody else has had the conversation since the writer read it.
-- how: 'forget'; 'all': the items are all of it; 'more': they come behind what is kept, if its
-- newest item is still (seq, id).
-- Returns 'kept', 'passed over', or 'all': all of it has to be sent, what is kept is another one.
CREATE FUNCTION cached_session.keep(me text, n bigint, same boolean, how text, ids text[],
    items bytea[], complete boolean, unverified integer, seq_of bigint, id_of text, listed boolean,
    max_bytes bigint) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    owns boolean;
    forgot boolean;
    newest record;
    ours boolean;
    size bigint;
    oldest bigint;
BEGIN
    SELECT owner IS NOT DISTINCT FROM me, doubtful INTO owns, forgot
    FROM cached_session.conversations WHERE number = n;
    IF how = 'forget' THEN
        -- What is kept where an engine has forgotten something tells what stood before that.
        IF NOT owns OR forgot AND NOT same THEN
            RETURN 'passed over';
        END IF;
        PERFORM cached_session.forget_window(n);
        RETURN 'kept';
    END IF;
    IF NOT same THEN
        -- Whoever has had it since, or a standby that was promoted, may know of other items; those
        -- that landed and whose rows are not removed would be shown twice, or taken for an anchor.
        RETURN 'passed over';
    END IF;
    SELECT * INTO newest FROM cached_session.window_newest(n);
    ours := newest.newest_seq IS NOT DISTINCT FROM seq_of
        AND newest.newest_id IS NOT DISTINCT FROM id_of;
    IF NOT owns THEN
        -- Whoever has claimed it since may have changed what is on the server.
        IF cached_session.elsewhere(me, n) OR NOT (ours OR listed) THEN
            RETURN 'passed over';
        END IF;
        -- A batch may have landed that nobody has looked for: the next process would show both,
        -- what was kept and what waits.
        IF EXISTS (SELECT FROM cached_session.items WHERE conversation = n AND sealed) THEN
            RETURN 'passed over';
        END IF;
        -- One that is not known to the writer may have been kept since the server was asked.
        IF NOT (ours OR newest.newest_seq IS NULL OR newest.newest_id = ANY (ids)) THEN
            RETURN CASE how WHEN 'more' THEN 'all' ELSE 'passed over' END;
        END IF;
    ELSIF NOT (ours OR newest.newest_seq IS NULL OR listed) THEN
        -- A reader has listed it, and perhaps what is not known to the writer.
        RETURN 'passed over';
    END IF;
    IF how = 'more' AND NOT ours THEN
        RETURN 'all';
    END IF;
    IF how = 'all' THEN
        IF complete IS NOT DISTINCT FROM (
            SELECT c.window_complete FROM cached_session.conversations c
            WHERE c.number = n AND c.window_kept
        ) AND ids IS NOT DISTINCT FROM (
            SELECT coalesce(array_agg(w.id ORDER BY w.seq), '{}')
            FROM cached_session.window_items w WHERE w.conversation = n
        ) THEN
            -- It is kept already. Whoever has kept it would take it for something new.
            UPDATE cached_session.conversations
            SET window_unverified = unverified, touched = clock_timestamp() WHERE number = n;
            RETURN 'kept';
        END IF;
        PERFORM cached_session.forget_window(n);
    END IF;
    INSERT INTO cached_session.window_items (conversation, id, data)
    SELECT n, t.id, t.data FROM unnest(ids, items) WITH ORDINALITY AS t (id, data, place)
    ORDER BY t.place;
    UPDATE cached_session.conversations
    SET window_kept = window_kept OR complete OR cardinality(ids) > 0,
        window_complete = CASE how WHEN 'all' THEN complete ELSE window_complete END,
        window_unverified = unverified,
        window_size = window_size + (
            SELECT coalesce(sum(octet_length(t.id) + octet_length(t.data)), 0)
            FROM unnest(ids, items) AS t (id, data)
        ),
        touched = clock_timestamp()
    WHERE number = n
    RETURNING window_size INTO size;
    IF size > max_bytes THEN
        -- The oldest ones go, until the rest fits.
        SELECT max(w.seq) INTO oldest FROM (
            SELECT seq, sum(octet_length(id) + octet_length(data)) OVER (ORDER BY seq DESC) AS above
            FROM cached_session.window_items WHERE conversation = n
        ) AS w WHERE w.above > max_bytes;
        DELETE FROM cached_session.window_items WHERE conversation = n AND seq <= oldest;
        SELECT coalesce(sum(octet_length(id) + octet_length(data)), 0) INTO size
        FROM cached_session.window_items WHERE conversation = n;
        UPDATE cached_session.conversations
        SET window_size = size, window_complete = false WHERE number = n;
        IF size = 0 THEN
            -- Not even the newest item fits: nothing is known.
            PERFORM cached_session.forget_window(n);
        END IF;
    END IF;
    RETURN 'kept';
END $$;

-- Removes rows that have landed, and keeps a window that has them in their place.
CREATE FUNCTION cached_session.landed(me text, n bigint, through bigint, same boolean, how text,
    ids text[], items bytea[], complete boolean, unverified integer, seq_of bigint, id_of text,
    listed boolean, max_bytes bigint, OUT kept text, OUT newest_seq bigint, OUT newest_id text)
LANGUAGE plpgsql AS $$
DECLARE
    gone boolean;
BEGIN
    DELETE FROM cached_session.items i
    WHERE i.conversation = n AND i.seq <= through AND i.sealed;
    gone := FOUND;
    IF how IS NOT NULL THEN
        kept := cached_session.keep(me, n, same, how, ids, items, complete, unverified, seq_of,
            id_of, listed, max_bytes);
    END IF;
    IF gone AND kept IS DISTINCT FROM 'kept' THEN
        -- Whoever reads both together would miss them.
        PERFORM cached_session.forget_window(n);
    END IF;
    SELECT * INTO newest_seq, newest_id FROM cached_session.window_newest(n);
END $$;

-- What differs from an earlier one if anything of a conversation has changed since; see `find`. A
-- standby that was promoted has forgotten changes, and counts them once more: it differs by its
-- timeline until somebody writes, and by its claims then.
CREATE VIEW cached_session.versions AS
SELECT c.number, c.base_url, c.organization, c.project, c.conversation, c.credentials,
    ROW(c.number, c.changes, c.claims, c.owner, c.released, c.timeline,
        cached_session.timeline())::text AS version
FROM cached_session.conversations c;

CREATE FUNCTION cached_session.version(n bigint) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN coalesce((SELECT v.version FROM cached_session.versions v WHERE v.number = n),
        (SELECT so_far::text FROM cached_session.expirations));
END $$;

-- The number in an epoch: of the record, if anybody ever had it. What is not there yet, or nobody
-- has had, is the same to all, as long as nothing was removed.
CREATE FUNCTION cached_session.epoch(n bigint, claims bigint) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN claims > 0 THEN n ELSE -(SELECT so_far FROM cached_session.expirations) END
$$;

-- Whether nobody has had a conversation since an epoch.
CREATE FUNCTION cached_session.same(n bigint, epoch_number bigint, epoch_claims bigint)
RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE
    so_far bigint := coalesce(
        (SELECT c.claims FROM cached_session.conversations c WHERE c.number = n), 0
    );
BEGIN
    RETURN (epoch_number, epoch_claims)
        IS NOT DISTINCT FROM (cached_session.epoch(n, so_far), so_far);
END $$;

-- The verbs.

-- first: it was never read there, and what other accounts have of it is told, in four arrays.
CREATE FUNCTION cached_session.open(me text, number_of bigint, a text[], epoch_number bigint,
    epoch_claims bigint, seen bigint, wants boolean, lease double precision, first boolean,
    OUT conversation text, OUT before_number bigint, OUT before_owner text, OUT before_claims bigint,
    OUT now_number bigint, OUT now_claims bigint, OUT held boolean, OUT mine boolean,
    OUT anew boolean, OUT lapsed boolean, OUT doubt bytea, OUT paused text,
    OUT seqs bigint[], OUT items bytea[], OUT sealed bigint, OUT ats double precision[],
    OUT window_kept boolean, OUT window_complete boolean, OUT window_unverified integer,
    OUT window_ids text[], OUT window_items bytea[], OUT newest_seq bigint, OUT newest_id text,
    OUT version text, OUT places bigint[], OUT doubtful boolean, OUT other_numbers bigint[],
    OUT other_credentials text[], OUT other_conversations text[], OUT other_counts bigint[])
LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.find(a, 0);
    c cached_session.conversations;
    nothing boolean;
BEGIN
    PERFORM cached_session.check_in_time(me, number_of);
    SELECT * INTO c FROM cached_session.conversations WHERE number = n;
    conversation := coalesce(c.conversation, a[5]);
    before_number := coalesce(n, 0);
    before_owner := CASE WHEN n IS NULL THEN me ELSE c.owner END;
    before_claims := coalesce(c.claims, 0);
    now_number := cached_session.epoch(n, before_claims);
    now_claims := before_claims;
    anew := (epoch_number, epoch_claims) IS DISTINCT FROM (now_number, now_claims);
    SELECT * INTO seqs, items, sealed, ats
    FROM cached_session.rows_after(n, CASE WHEN anew THEN 0 ELSE seen END);
    nothing := c.doubt IS NULL
        AND NOT EXISTS (SELECT FROM cached_session.items i WHERE i.conversation = n);
    mine := NOT cached_session.elsewhere(me, n);
    held := mine AND (wants OR NOT nothing);
    lapsed := false;
    IF held THEN
        IF NOT wants AND (c.released OR c.owner IS DISTINCT FROM me) AND (c.paused IS NOT NULL
            OR NOT EXISTS (SELECT FROM cached_session.items i WHERE i.conversation = n)) THEN
            -- Nothing is sent here: whoever decides about it, or looks after what is in doubt,
            -- must find it free. It is known by the claim that it was looked at.
            held := false;
        ELSIF n IS NULL THEN
            n := cached_session.enter(a, 0);
        END IF;
        SELECT claimed.mine, claimed.lapsed INTO mine, lapsed
        FROM cached_session.claim(me, n, lease) AS claimed;
        IF mine AND NOT held THEN
            UPDATE cached_session.conversations SET released = true WHERE number = n;
        END IF;
        held := held AND mine;
    END IF;
    IF n IS NOT NULL THEN
        SELECT cached_session.epoch(n, claims), claims INTO now_number, now_claims
        FROM cached_session.conversations WHERE number = n;
    END IF;
    IF NOT mine THEN
        now_number := NULL;
        now_claims := NULL;
    END IF;
    doubt := c.doubt;
    doubtful := coalesce(c.doubtful, false);
    paused := c.paused;
    version := cached_session.version(n);
    SELECT array_agg(i.seq ORDER BY i.seq) INTO places
    FROM cached_session.items i WHERE i.conversation = n;
    IF anew THEN
        window_kept := coalesce(c.window_kept, false);
        window_complete := c.window_complete;
        window_unverified := c.window_unverified;
        SELECT array_agg(w.id ORDER BY w.seq), array_agg(w.data ORDER BY w.seq)
        INTO window_ids, window_items FROM cached_session.window_items w WHERE w.conversation = n;
        SELECT * INTO newest_seq, newest_id FROM cached_session.window_newest(n);
    END IF;
    IF first THEN
        SELECT array_agg(o.number ORDER BY o.number), array_agg(o.credentials ORDER BY o.number),
            array_agg(o.name ORDER BY o.number), array_agg(o.many ORDER BY o.number)
        INTO other_numbers, other_credentials, other_conversations, other_counts
        FROM (
            SELECT x.number, x.credentials, x.conversation AS name, count(*) AS many
            FROM cached_session.conversations x
            JOIN cached_session.items i ON i.conversation = x.number
            WHERE x.base_url = a[1] AND x.organization = a[2] AND x.project = a[3]
                AND x.credentials <> a[4] AND (x.conversation = a[5] OR x.local = a[5])
            GROUP BY x.number
        ) AS o;
    END IF;
END $$;

-- What there is, and is not known yet; nothing is locked, claimed or written.
CREATE FUNCTION cached_session.changes(me text, a text[], epoch_number bigint,
    epoch_claims bigint, seen bigint, known_newest bigint, known_id text,
    OUT conversation text, OUT now_number bigint, OUT now_owner text,
    OUT now_epoch bigint, OUT now_claims bigint, OUT held boolean, OUT mine boolean, OUT anew boolean, OUT doubt bytea,
    OUT paused text, OUT seqs bigint[], OUT items bytea[], OUT sealed bigint,
    OUT ats double precision[], OUT window_kept boolean, OUT window_complete boolean,
    OUT window_unverified integer, OUT window_ids text[], OUT window_items bytea[],
    OUT newest_seq bigint, OUT newest_id text, OUT version text, OUT places bigint[],
    OUT continued boolean, OUT doubtful boolean)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    c cached_session.conversations;
    n bigint := cached_session.look_up(a);
BEGIN
    SELECT * INTO c FROM cached_session.conversations x WHERE x.number = n;
    version := cached_session.version(n);
    conversation := coalesce(c.conversation, a[5]);
    mine := NOT cached_session.elsewhere(me, n);
    held := coalesce(c.owner = me AND NOT c.released, false);
    now_owner := CASE WHEN n IS NULL THEN me ELSE c.owner END;
    now_claims := coalesce(c.claims, 0);
    now_number := coalesce(n, 0);
    now_epoch := cached_session.epoch(n, now_claims);
    doubtful := coalesce(c.doubtful OR c.timeline <> cached_session.timeline(), false);
    anew := NOT mine OR (epoch_number, epoch_claims) IS DISTINCT FROM (now_epoch, now_claims)
        OR coalesce(c.timeline <> cached_session.timeline(), false);
    SELECT * INTO seqs, items, sealed, ats
    FROM cached_session.rows_after(n, CASE WHEN anew THEN 0 ELSE seen END);
    SELECT array_agg(i.seq ORDER BY i.seq) INTO places
    FROM cached_session.items i WHERE i.conversation = n;
    doubt := c.doubt;
    paused := c.paused;
    window_kept := coalesce(c.window_kept, false);
    window_complete := c.window_complete;
    window_unverified := c.window_unverified;
    continued := known_newest IS NOT NULL AND EXISTS (
        SELECT FROM cached_session.window_items w
        WHERE w.conversation = n AND w.seq = known_newest AND w.id = known_id
    );
    SELECT array_agg(w.id ORDER BY w.seq), array_agg(w.data ORDER BY w.seq)
    INTO window_ids, window_items FROM cached_session.window_items w
    WHERE w.conversation = n AND (NOT continued OR w.seq > known_newest);
    SELECT * INTO newest_seq, newest_id FROM cached_session.window_newest(n);
END $$;

-- The same as one value, of which bytes and fractions can be read, however the engine is set.
CREATE FUNCTION cached_session.changes_as_json(me text, a text[], epoch_number bigint,
    epoch_claims bigint, seen bigint, known_newest bigint, known_id text) RETURNS json
LANGUAGE sql STABLE SET bytea_output = 'hex' SET extra_float_digits = 1 AS $$
    SELECT row_to_json(c)
    FROM cached_session.changes(
        me, a, epoch_number, epoch_claims, seen, known_newest, known_id
    ) AS c
$$;

-- What has changed since a version, all of it of one moment; null, where nothing has. That comes
-- at every read: one value is had in less time than the many columns of nothing, and one statement
-- in less than two.
CREATE FUNCTION cached_session.validate(me text, a text[], epoch_number bigint,
    epoch_claims bigint, known text, seen bigint, known_newest bigint, known_id text) RETURNS json
LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM FROM cached_session.versions v
    WHERE v.base_url = a[1] AND v.organization = a[2] AND v.project = a[3]
        AND v.conversation = a[5] AND v.credentials = a[4] AND v.version = known;
    -- By a local name, or where there is nothing, it is looked for again.
    IF FOUND OR cached_session.version(cached_session.look_up(a)) = known THEN
        RETURN NULL;
    END IF;
    RETURN cached_session.changes_as_json(
        me, a, epoch_number, epoch_claims, seen, known_newest, known_id
    );
END $$;

-- Nothing is locked: a lock would be written to the disk, for each new session.
CREATE FUNCTION cached_session.mailbox(a text[], after bigint,
    OUT doubt bytea, OUT paused text,
    OUT seqs bigint[], OUT items bytea[], OUT sealed bigint, OUT ats double precision[])
LANGUAGE plpgsql STABLE AS $$
DECLARE
    n bigint := cached_session.look_up(a);
BEGIN
    SELECT c.doubt, c.paused INTO doubt, paused
    FROM cached_session.conversations c WHERE c.number = n;
    SELECT * INTO seqs, items, sealed, ats FROM cached_session.rows_after(n, after);
END $$;

CREATE FUNCTION cached_session.accept(me text, number_of bigint, a text[], seen bigint,
    items_of bytea[], at_of double precision, ticket_of bigint,
    OUT places bigint[],
    OUT seqs bigint[], OUT items bytea[], OUT sealed bigint, OUT ats double precision[])
LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.enter(a);
BEGIN
    IF cached_session.is_new(me, number_of) THEN
        PERFORM cached_session.check_turn(me, ticket_of);
        WITH new AS (
            INSERT INTO cached_session.items (conversation, accepted_at, data)
            SELECT n, at_of, t.data FROM unnest(items_of) WITH ORDINALITY AS t (data, place)
            ORDER BY t.place
            RETURNING seq
        )
        SELECT array_agg(seq ORDER BY seq) INTO places FROM new;
        PERFORM cached_session.done(me, number_of, places);
    ELSE
        SELECT o.places INTO places FROM cached_session.owners o WHERE o.token = me;
    END IF;
    -- Mostly there are none, which is had in less time than four arrays of nothing.
    PERFORM FROM cached_session.items i
    WHERE i.conversation = n AND i.seq > seen AND i.seq < places[1] LIMIT 1;
    IF FOUND THEN
        SELECT array_agg(i.seq ORDER BY i.seq), array_agg(i.data ORDER BY i.seq),
            count(*) FILTER (WHERE i.sealed), array_agg(i.accepted_at ORDER BY i.seq)
        INTO seqs, items, sealed, ats
        FROM cached_session.items i
        WHERE i.conversation = n AND i.seq > seen AND i.seq < places[1];
    END IF;
END $$;

-- state: 'sealed'; 'changed': somebody else has had it since; 'elsewhere': a living owner has it.
CREATE FUNCTION cached_session.seal(me text, number_of bigint, a text[], epoch_number bigint, epoch_claims bigint,
    seen bigint, through bigint, landed bigint, doubt_of bytea, lease double precision,
    how text, ids text[], window_of bytea[], complete boolean, unverified integer,
    seq_of bigint, id_of text, listed boolean, max_bytes bigint,
    OUT state text, OUT lapsed boolean, OUT kept text, OUT newest_seq bigint, OUT newest_id text,
    OUT now_number bigint, OUT now_claims bigint,
    OUT seqs bigint[], OUT items bytea[], OUT sealed bigint, OUT ats double precision[],
    OUT newer_seqs bigint[], OUT newer_items bytea[], OUT newer_sealed bigint,
    OUT newer_ats double precision[])
LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.enter(a);
    mine boolean;
BEGIN
    PERFORM cached_session.check_in_time(me, number_of);
    SELECT cached_session.epoch(n, claims), claims INTO now_number, now_claims
    FROM cached_session.conversations WHERE number = n;
    IF (epoch_number, epoch_claims) IS DISTINCT FROM (now_number, now_claims) THEN
        state := 'changed';
        RETURN;
    END IF;
    SELECT * INTO mine, lapsed FROM cached_session.claim(me, n, lease);
    IF NOT mine THEN
        state := 'elsewhere';
        RETURN;
    END IF;
    state := 'sealed';
    SELECT * INTO kept, newest_seq, newest_id FROM cached_session.landed(me, n, landed, true, how,
        ids, window_of, complete, unverified, seq_of, id_of, listed, max_bytes);
    UPDATE cached_session.items i SET sealed = true
    WHERE i.conversation = n AND i.seq <= through AND NOT i.sealed;
    UPDATE cached_session.conversations
    SET doubt = doubt_of, doubtful = false, touched = clock_timestamp()
    WHERE number = n
    RETURNING number, claims INTO now_number, now_claims;
    -- After a promotion more is sealed behind it.
    SELECT array_agg(i.seq ORDER BY i.seq), array_agg(i.data ORDER BY i.seq), count(*),
        array_agg(i.accepted_at ORDER BY i.seq)
    INTO seqs, items, sealed, ats
    FROM cached_session.items i WHERE i.conversation = n AND i.sealed AND i.seq <= through;
    SELECT * INTO newer_seqs, newer_items, newer_sealed, newer_ats
    FROM cached_session.rows_after(n, seen);
END $$;

CREATE FUNCTION cached_session.note(me text, number_of bigint, a text[], epoch_number bigint, epoch_claims bigint,
    seen bigint, landed bigint, doubt_of bytea, undoubted boolean, release boolean,
    how text, ids text[], window_of bytea[], complete boolean, unverified integer,
    seq_of bigint, id_of text, listed boolean, max_bytes bigint,
    OUT same boolean, OUT mine boolean, OUT kept text, OUT newest_seq bigint, OUT newest_id text,
    OUT now_number bigint, OUT now_owner text, OUT now_epoch bigint, OUT now_claims bigint,
    OUT seqs bigint[], OUT items bytea[], OUT sealed bigint, OUT ats double precision[])
LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.find(a);
    c cached_session.conversations;
BEGIN
    PERFORM cached_session.check_in_time(me, number_of);
    IF n IS NULL AND (how IS NOT NULL OR doubt_of IS NOT NULL) THEN
        n := cached_session.enter(a);
    END IF;
    SELECT * INTO c FROM cached_session.conversations WHERE number = n;
    now_claims := coalesce(c.claims, 0);
    now_epoch := cached_session.epoch(n, now_claims);
    same := (epoch_number, epoch_claims) IS NOT DISTINCT FROM (now_epoch, now_claims);
    -- Whoever has it since goes by the doubt that was noted with the rows. Without these, it would
    -- take what has landed for copies that came late.
    SELECT * INTO kept, newest_seq, newest_id FROM cached_session.landed(me, n,
        CASE WHEN same THEN landed ELSE 0 END, same, how,
        ids, window_of, complete, unverified, seq_of, id_of, listed, max_bytes);
    -- What another process has noted since is newer than what is known to this one.
    mine := same AND c.owner IS NOT DISTINCT FROM me;
    UPDATE cached_session.conversations SET
        doubt = CASE WHEN mine AND (doubt_of IS NOT NULL OR undoubted) THEN doubt_of ELSE doubt END,
        doubtful = doubtful AND NOT (mine AND (doubt_of IS NOT NULL OR undoubted)),
        released = released OR (release AND owner IS NOT DISTINCT FROM me),
        touched = clock_timestamp()
    WHERE number = n;
    SELECT * INTO seqs, items, sealed, ats FROM cached_session.rows_after(n, seen);
    now_number := coalesce(n, 0);
    now_owner := CASE WHEN n IS NULL THEN me ELSE c.owner END;
END $$;

-- Keeps a window that had to be sent whole.
CREATE FUNCTION cached_session.keep_all(me text, number_of bigint, a text[],
    epoch_number bigint, epoch_claims bigint, ids text[], items bytea[], complete boolean,
    unverified integer, seq_of bigint, id_of text, listed boolean, max_bytes bigint,
    OUT kept text, OUT newest_seq bigint, OUT newest_id text)
LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.find(a);
BEGIN
    PERFORM cached_session.check_in_time(me, number_of);
    kept := cached_session.keep(me, n, cached_session.same(n, epoch_number, epoch_claims), 'all',
        ids, items, complete, unverified, seq_of, id_of, listed, max_bytes);
    SELECT * INTO newest_seq, newest_id FROM cached_session.window_newest(n);
END $$;

-- seqs and so on: rows behind what was seen, of which there may be none any more; null: there were
-- none, and the newest item was taken back, if it may be.
CREATE FUNCTION cached_session.withdraw(me text, number_of bigint, a text[], seen bigint,
    ticket_of bigint, OUT seq bigint, OUT item bytea, OUT at double precision,
    OUT seqs bigint[], OUT items bytea[], OUT sealed bigint, OUT ats double precision[])
LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.find(a);
    newest cached_session.items;
    taken bigint[];
BEGIN
    IF cached_session.is_new(me, number_of) THEN
        PERFORM cached_session.check_turn(me, ticket_of);
        SELECT * INTO newest FROM cached_session.items i WHERE i.conversation = n
        ORDER BY i.seq DESC LIMIT 1;
        IF newest.seq > seen THEN
            -- Not null: who repeats this is to hear that there were some.
            taken := '{}';
        ELSIF NOT newest.sealed THEN
            DELETE FROM cached_session.items i WHERE i.seq = newest.seq;
            taken := ARRAY[newest.seq];
            item := newest.data;
            at := newest.accepted_at;
        END IF;
        PERFORM cached_session.done(me, number_of, taken, item, at);
    ELSE
        SELECT o.places, o.item, o.at INTO taken, item, at
        FROM cached_session.owners o WHERE o.token = me;
    END IF;
    seq := taken[1];
    IF taken = '{}' THEN
        SELECT * INTO seqs, items, sealed, ats FROM cached_session.rows_after(n, seen);
        seqs := coalesce(seqs, '{}');
    END IF;
END $$;

-- seqs: null, where all of it was to go, and somebody else has had it since, who may be sending it.
CREATE FUNCTION cached_session.drop(me text, number_of bigint, a text[], epoch_number bigint,
    epoch_claims bigint, all_of boolean, landed bigint, ticket_of bigint, OUT seqs bigint[])
LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.find(a);
BEGIN
    IF NOT cached_session.is_new(me, number_of) THEN
        SELECT o.places INTO seqs FROM cached_session.owners o WHERE o.token = me;
        RETURN;
    END IF;
    PERFORM cached_session.check_turn(me, ticket_of);
    IF all_of AND NOT cached_session.same(n, epoch_number, epoch_claims) THEN
        PERFORM cached_session.done(me, number_of, NULL);
        RETURN;
    END IF;
    IF all_of THEN
        DELETE FROM cached_session.items i
        WHERE i.conversation = n AND i.seq <= landed AND i.sealed;
        UPDATE cached_session.conversations
        SET paused = NULL, doubt = NULL, touched = clock_timestamp() WHERE number = n;
    END IF;
    WITH gone AS (
        DELETE FROM cached_session.items i WHERE i.conversation = n AND (all_of OR NOT i.sealed)
        RETURNING i.seq
    )
    SELECT coalesce(array_agg(gone.seq ORDER BY gone.seq), '{}') INTO seqs FROM gone;
    PERFORM cached_session.done(me, number_of, seqs);
END $$;

CREATE FUNCTION cached_session.forget(a text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM cached_session.forget_window(cached_session.find(a));
END $$;

-- False: somebody else has had it since, and knows better.
CREATE FUNCTION cached_session.pause(me text, number_of bigint, a text[], epoch_number bigint,
    epoch_claims bigint, reason text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.enter(a);
BEGIN
    PERFORM cached_session.check_in_time(me, number_of);
    IF NOT cached_session.same(n, epoch_number, epoch_claims) THEN
        RETURN false;
    END IF;
    UPDATE cached_session.conversations SET paused = reason, touched = clock_timestamp()
    WHERE number = n;
    RETURN true;
END $$;

CREATE FUNCTION cached_session.resume(a text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.find(a);
BEGIN
    UPDATE cached_session.conversations SET paused = NULL, touched = clock_timestamp()
    WHERE number = n;
END $$;

CREATE FUNCTION cached_session.release(me text, number_of bigint, a text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.find(a);
BEGIN
    PERFORM cached_session.check_in_time(me, number_of);
    UPDATE cached_session.conversations SET released = true, touched = clock_timestamp()
    WHERE number = n AND owner = me;
END $$;

-- Gives the items of one record, and what else it says, to another one, and removes it. They come
-- behind: whoever has read the other one hears of no item in front of what it has seen. Its owner
-- stays its owner: nobody else becomes that without a claim.
CREATE FUNCTION cached_session.merge(n bigint, other bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    old cached_session.conversations;
BEGIN
    WITH old_items AS (DELETE FROM cached_session.items WHERE conversation = n RETURNING *)
    INSERT INTO cached_session.items (conversation, sealed, accepted_at, data)
    SELECT other, i.sealed, i.accepted_at, i.data FROM old_items i ORDER BY i.seq;
    UPDATE cached_session.turns SET conversation = other WHERE conversation = n;
    SELECT * INTO old FROM cached_session.conversations WHERE number = n;
    DELETE FROM cached_session.conversations WHERE number = n;
    UPDATE cached_session.conversations SET
        doubt = coalesce(doubt, old.doubt), paused = coalesce(paused, old.paused),
        doubtful = doubtful OR old.doubtful,
        touched = clock_timestamp()
    WHERE number = other;
END $$;

-- Locks two records in the order of their numbers.
CREATE FUNCTION cached_session.lock_both(a text[], b text[], OUT one bigint, OUT other bigint)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM cached_session.check_isolation();
    PERFORM number FROM cached_session.conversations c
    WHERE (c.base_url, c.organization, c.project, c.credentials)
            IN ((a[1], a[2], a[3], a[4]), (b[1], b[2], b[3], b[4]))
        AND (c.conversation IN (a[5], b[5]) OR c.local IN (a[5], b[5]))
    ORDER BY number FOR UPDATE;
    one := cached_session.find(a);
    other := cached_session.find(b);
END $$;

CREATE FUNCTION cached_session.name(a text[], new_name text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
    other bigint;
    known text;
BEGIN
    SELECT * INTO n, other FROM cached_session.lock_both(a, a[1:4] || new_name);
    SELECT conversation INTO known FROM cached_session.conversations
    WHERE number = n AND local = a[5];
    IF known IS NOT NULL THEN
        -- A conversation was made of it before.
        RETURN known;
    END IF;
    n := coalesce(n, cached_session.enter(a));
    IF other IS NOT NULL THEN
        -- Somebody knew of the conversation before this was recorded.
        PERFORM cached_session.merge(n, other);
        n := other;
    END IF;
    UPDATE cached_session.conversations
    SET conversation = new_name, local = a[5], touched = clock_timestamp() WHERE number = n;
    RETURN new_name;
END $$;

-- The id of the conversation that was made of a local name, or what was asked for.
CREATE FUNCTION cached_session.known_as(a text[]) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce((
        SELECT conversation FROM cached_session.conversations
        WHERE base_url = a[1] AND organization = a[2] AND project = a[3]
            AND credentials = a[4] AND local = a[5]
    ), a[5])
$$;

CREATE FUNCTION cached_session.look(me text, a text[], OUT elsewhere boolean, OUT waits boolean,
    OUT paused text, OUT doubted boolean) LANGUAGE sql STABLE AS $$
    SELECT cached_session.elsewhere(me, c.number),
        EXISTS (SELECT FROM cached_session.items i WHERE i.conversation = c.number),
        c.paused, c.doubt IS NOT NULL
    FROM cached_session.conversations c
    WHERE c.base_url = a[1] AND c.organization = a[2] AND c.project = a[3]
        AND c.credentials = a[4] AND (c.conversation = a[5] OR c.local = a[5])
$$;

CREATE FUNCTION cached_session.line_up(me text, number_of bigint, a text[], taken bigint,
    lease double precision, OUT ticket_of bigint, OUT first boolean, OUT lapsed boolean)
LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.enter(a, 0);
    front record;
BEGIN
    lapsed := cached_session.renew(me, lease);
    IF NOT cached_session.is_new(me, number_of) THEN
        SELECT o.places[1] INTO ticket_of FROM cached_session.owners o WHERE o.token = me;
    ELSE
        SELECT t.ticket INTO ticket_of FROM cached_session.turns t
        WHERE t.ticket = taken AND t.owner = me;
        IF ticket_of IS NULL THEN
            INSERT INTO cached_session.turns (conversation, owner) VALUES (n, me)
            RETURNING ticket INTO ticket_of;
        END IF;
        PERFORM cached_session.done(me, number_of, ARRAY[ticket_of]);
    END IF;
    LOOP
        SELECT t.ticket, t.owner INTO front FROM cached_session.turns t
        WHERE t.conversation = n ORDER BY t.ticket LIMIT 1;
        -- There may be nobody left, if the caller's own place was passed by before it asked again.
        EXIT WHEN front.ticket IS NULL OR front.owner = me
            OR cached_session.lives_on(front.owner);
        DELETE FROM cached_session.turns t WHERE t.ticket = front.ticket;
    END LOOP;
    first := coalesce(front.ticket = ticket_of, false);
END $$;

CREATE FUNCTION cached_session.has_turn(me text, ticket_of bigint) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM cached_session.turns WHERE ticket = ticket_of AND owner = me)
$$;

CREATE FUNCTION cached_session.step_out(me text, ticket_of bigint) RETURNS void
LANGUAGE sql AS $$
    DELETE FROM cached_session.turns WHERE ticket = ticket_of AND owner = me
$$;

-- What waits of an account, is not paused and not sent by `me`; the oldest first.
CREATE FUNCTION cached_session.waiting(me text, a text[])
RETURNS TABLE (conversation text, claims bigint, oldest bigint, free boolean)
LANGUAGE sql STABLE AS $$
    SELECT c.conversation, c.claims, min(i.seq),
        c.owner IS NULL OR c.released OR NOT cached_session.lives(c.owner)
    FROM cached_session.items i JOIN cached_session.conversations c ON c.number = i.conversation
    WHERE c.base_url = a[1] AND c.organization = a[2] AND c.project = a[3] AND c.credentials = a[4]
        AND c.paused IS NULL AND (c.owner IS DISTINCT FROM me OR c.released)
    GROUP BY c.number ORDER BY c.number
$$;

CREATE FUNCTION cached_session.summaries()
RETURNS TABLE (number bigint, base_url text, organization text, project text, credentials text,
    conversation text, items bigint, size bigint, sealed bigint, oldest double precision,
    paused text, owned boolean, window_size bigint)
LANGUAGE sql STABLE AS $$
    SELECT c.number, c.base_url, c.organization, c.project, c.credentials, c.conversation,
        count(i.seq), coalesce(sum(octet_length(i.data)), 0)::bigint,
        count(i.seq) FILTER (WHERE i.sealed), min(i.accepted_at), c.paused,
        NOT c.released AND c.owner IS NOT NULL AND cached_session.lives(c.owner), c.window_size
    FROM cached_session.conversations c
    LEFT JOIN cached_session.items i ON i.conversation = c.number
    GROUP BY c.number
    HAVING count(i.seq) > 0 OR c.paused IS NOT NULL OR c.window_kept OR c.doubt IS NOT NULL
    ORDER BY c.number
$$;

-- How many items were removed; null: a living owner sends them, and nothing is changed.
CREATE FUNCTION cached_session.discard(me text, number_of bigint, a text[],
    lease double precision, OUT removed bigint, OUT lapsed boolean) LANGUAGE plpgsql AS $$
DECLARE
    n bigint := cached_session.enter(a);
    mine boolean;
BEGIN
    IF NOT cached_session.is_new(me, number_of) THEN
        SELECT o.places[1] INTO removed FROM cached_session.owners o WHERE o.token = me;
        RETURN;
    END IF;
    SELECT claimed.mine, claimed.lapsed INTO mine, lapsed
    FROM cached_session.claim(me, n, lease) AS claimed;
    IF NOT mine THEN
        PERFORM cached_session.done(me, number_of, NULL);
        RETURN;
    END IF;
    WITH gone AS (
        DELETE FROM cached_session.items i WHERE i.conversation = n RETURNING 1
    )
    SELECT count(*) INTO removed FROM gone;
    UPDATE cached_session.conversations
    SET paused = NULL, doubt = NULL, released = true, touched = clock_timestamp()
    WHERE number = n;
    PERFORM cached_session.done(me, number_of, ARRAY[removed]);
END $$;

-- 'moved'; 'owned': a living owner has one of the two; 'both': both have a backlog, whose
-- number follows; 'nothing'.
CREATE FUNCTION cached_session.move(me text, a text[], b text[], lease double precision,
    OUT state text, OUT there bigint, OUT lapsed boolean) LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
    mine boolean := true;
    theirs boolean := true;
    local_name text;
BEGIN
    SELECT one, other INTO n, there FROM cached_session.lock_both(a, b);
    IF n IS NULL OR n = there THEN
        state := 'nothing';
        RETURN;
    END IF;
    SELECT claimed.mine, claimed.lapsed INTO mine, lapsed
    FROM cached_session.claim(me, n, lease) AS claimed;
    IF mine AND there IS NOT NULL THEN
        SELECT claimed.mine INTO theirs FROM cached_session.claim(me, there, lease) AS claimed;
    END IF;
    IF NOT (mine AND theirs) THEN
        state := 'owned';
        IF mine THEN
            UPDATE cached_session.conversations SET released = true WHERE number = n;
        END IF;
        RETURN;
    END IF;
    state := 'moved';
    IF there IS NULL THEN
        PERFORM cached_session.forget_window(n);
        SELECT local INTO local_name FROM cached_session.conversations WHERE number = n;
        IF EXISTS (
            SELECT FROM cached_session.conversations c WHERE c.base_url = b[1]
                AND c.organization = b[2] AND c.project = b[3] AND c.credentials = b[4]
                AND c.local = local_name
        ) THEN
            local_name := NULL;
        END IF;
        UPDATE cached_session.conversations SET base_url = b[1], organization = b[2],
            project = b[3], credentials = b[4], conversation = b[5], local = local_name,
            released = true, touched = clock_timestamp()
        WHERE number = n;
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM cached_session.items WHERE conversation = there) OR (
        SELECT count(*) FROM cached_session.conversations
        WHERE number IN (n, there) AND doubt IS NOT NULL
    ) = 2 THEN
        state := 'both';
        UPDATE cached_session.conversations SET released = true WHERE number IN (n, there);
        RETURN;
    END IF;
    PERFORM cached_session.merge(n, there);
    UPDATE cached_session.conversations SET released = true WHERE number = there;
END $$;

-- Removes what is kept of conversations that nobody has touched for so many seconds, and of
-- which nothing waits; at most so many of them. So it does what is left of owners, after a day.
CREATE FUNCTION cached_session.expire(seconds double precision, at_most integer)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    old bigint[];
    gone bigint;
BEGIN
    -- What an owner has called a day ago is on its way no more.
    DELETE FROM cached_session.owners
    WHERE token IN (
        SELECT token FROM cached_session.owners
        WHERE until < clock_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED
    );
    -- Their places in lines in which nobody has come behind them.
    DELETE FROM cached_session.turns
    WHERE ticket IN (
        SELECT ticket FROM cached_session.turns t
        WHERE NOT EXISTS (SELECT FROM cached_session.owners o WHERE o.token = t.owner)
        FOR UPDATE SKIP LOCKED
    );
    SELECT array_agg(o.number) INTO old FROM (
        SELECT c.number FROM cached_session.conversations c
        WHERE c.touched < clock_timestamp() - make_interval(secs => seconds)
            AND c.doubt IS NULL AND c.paused IS NULL
            AND (c.owner IS NULL OR c.released OR NOT cached_session.lives(c.owner))
            AND NOT EXISTS (SELECT FROM cached_session.items i WHERE i.conversation = c.number)
            AND NOT EXISTS (SELECT FROM cached_session.turns t WHERE t.conversation = c.number)
        ORDER BY c.touched LIMIT at_most FOR UPDATE SKIP LOCKED
    ) AS o;
    -- Looked at again, now that nobody else comes to them: what was accepted until then would go
    -- with its conversation.
    DELETE FROM cached_session.conversations c
    WHERE c.number = ANY (old)
        AND NOT EXISTS (SELECT FROM cached_session.items i WHERE i.conversation = c.number)
        AND NOT EXISTS (SELECT FROM cached_session.turns t WHERE t.conversation = c.number);
    GET DIAGNOSTICS gone = ROW_COUNT;
    IF gone > 0 THEN
        UPDATE cached_session.expirations SET so_far = so_far + 1;
    END IF;
    RETURN gone;
END $$;

INSERT INTO cached_session.expirations VALUES (0);
INSERT INTO cached_session.schema_version VALUES (1);
