"""The SQL of `Store`; the stored windows have their own."""

from __future__ import annotations

ACCOUNT = "base_url = ? AND organization = ? AND project = ? AND credentials = ?"
FIND = f"SELECT number FROM conversations WHERE {ACCOUNT} AND conversation = ?"
FIND_LOCAL = f"SELECT number, conversation FROM conversations WHERE {ACCOUNT} AND local = ?"
ENTER = """
INSERT INTO conversations (base_url, organization, project, credentials, conversation)
VALUES (?, ?, ?, ?, ?)
"""
STATE = "SELECT doubt, paused FROM conversations WHERE number = ?"
OWNER = "SELECT owner, released FROM conversations WHERE number = ?"
SET_OWNER = """
UPDATE conversations SET owner = ?, released = 0, claims = claims + 1 WHERE number = ?
"""
MARK = "SELECT owner, claims FROM conversations WHERE number = ?"
RELEASE = "UPDATE conversations SET released = 1 WHERE number = ?"
SET_DOUBT = "UPDATE conversations SET doubt = ? WHERE number = ?"
SET_PAUSED = "UPDATE conversations SET paused = ? WHERE number = ?"
RENAME = "UPDATE conversations SET conversation = ?, local = ? WHERE number = ?"
MOVE_ITEMS = "UPDATE items SET conversation = ? WHERE conversation = ?"
MOVE_STATE = """
UPDATE conversations SET
    owner = COALESCE(owner, (SELECT owner FROM conversations WHERE number = :old)),
    released = released AND (SELECT released FROM conversations WHERE number = :old),
    doubt = COALESCE(doubt, (SELECT doubt FROM conversations WHERE number = :old)),
    paused = COALESCE(paused, (SELECT paused FROM conversations WHERE number = :old))
WHERE number = :new
"""
RELOCATE = """
UPDATE conversations SET base_url = ?, organization = ?, project = ?, credentials = ?,
    conversation = ?, local = ?
WHERE number = ?
"""
NAMESAKES = """
SELECT number, base_url, organization, project, credentials, conversations.conversation, COUNT(seq)
FROM conversations JOIN items ON items.conversation = number
WHERE base_url = :base_url AND organization = :organization AND project = :project
    AND credentials <> :credentials
    AND (conversations.conversation = :conversation OR local = :conversation)
GROUP BY number ORDER BY number
"""
LOCAL_NAME = "SELECT local FROM conversations WHERE number = ?"
DELETE = "DELETE FROM conversations WHERE number = ?"
# A local name stays as long as the file: whoever still has it must find the conversation.
DELETE_IF_EMPTY = """
DELETE FROM conversations
WHERE number = ? AND doubt IS NULL AND paused IS NULL AND local IS NULL
    AND window_written IS NULL AND NOT EXISTS (SELECT 1 FROM items WHERE conversation = number)
    AND NOT EXISTS (SELECT 1 FROM turns WHERE conversation = number)
"""
# Nobody has ever had it: one that comes anew stands where it stood.
DELETE_IF_UNUSED = f"{DELETE_IF_EMPTY} AND claims = 0"
ACCEPT = "INSERT INTO items (conversation, accepted_at, data) VALUES (?, ?, ?)"
ROWS = "SELECT seq, data, sealed, accepted_at FROM items"
ROWS_AFTER = f"{ROWS} WHERE conversation = ? AND seq > ? ORDER BY seq"
ROWS_SEALED = f"{ROWS} WHERE conversation = ? AND sealed = 1 ORDER BY seq"
ANY_SEALED = "SELECT EXISTS (SELECT 1 FROM items WHERE conversation = ? AND sealed = 1)"
NEWEST = "SELECT MAX(seq) FROM items WHERE conversation = ?"
PLACES = "SELECT seq FROM items WHERE conversation = ? ORDER BY seq"
# Rows come behind all others and go in front or at the end, and no place is given out again: with
# the same newest one and as many of them they are the same. The newest one of a window tells it.
VERSION = """
SELECT number, conversations.conversation, owner, released, claims,
    (SELECT COUNT(*) FROM items WHERE items.conversation = number),
    (SELECT MAX(seq) FROM items WHERE items.conversation = number),
    (SELECT MAX(seq) FROM window_items WHERE window_items.conversation = number)
FROM conversations WHERE number = ?
"""
ROW_NEWEST = f"{ROWS} WHERE conversation = ? ORDER BY seq DESC LIMIT 1"
SEAL = "UPDATE items SET sealed = 1 WHERE conversation = ? AND seq <= ? AND sealed = 0"
LANDED = "DELETE FROM items WHERE conversation = ? AND seq <= ? AND sealed = 1"
WITHDRAW = "DELETE FROM items WHERE seq = ?"
DROP = "DELETE FROM items WHERE conversation = ? AND sealed = 0"
DROP_ALL = "DELETE FROM items WHERE conversation = ?"
LINE_UP = "INSERT INTO turns (conversation, owner) VALUES (?, ?)"
IN_LINE = "SELECT conversation FROM turns WHERE ticket = ? AND owner = ?"
FIRST_IN_LINE = """
SELECT ticket, owner FROM turns WHERE conversation = ? ORDER BY ticket LIMIT 1
"""
STEP_OUT = "DELETE FROM turns WHERE ticket = ?"
IN_LINES = "SELECT DISTINCT owner FROM turns"
STEP_OUT_OF_ALL = "DELETE FROM turns WHERE owner = ?"
MOVE_LINE = "UPDATE turns SET conversation = ? WHERE conversation = ?"

# From item to item of another conversation, by the index: what else is kept of conversations in
# which nothing waits is not looked at.
WAITING = f"""
WITH RECURSIVE waiting (place) AS (
    SELECT MIN(conversation) FROM items
    UNION ALL
    SELECT (SELECT MIN(conversation) FROM items WHERE conversation > place)
    FROM waiting WHERE place IS NOT NULL
)
SELECT conversations.conversation, owner, released, claims,
    (SELECT MIN(seq) FROM items WHERE items.conversation = number)
FROM waiting CROSS JOIN conversations ON number = place
WHERE {ACCOUNT} AND paused IS NULL
"""
SUMMARIES = """
SELECT number, base_url, organization, project, credentials, conversations.conversation,
    COUNT(seq), COALESCE(SUM(LENGTH(data)), 0), COALESCE(SUM(sealed), 0), MIN(accepted_at),
    paused, CASE WHEN released THEN NULL ELSE owner END, window_size
FROM conversations LEFT JOIN items ON items.conversation = number
GROUP BY number
HAVING COUNT(seq) > 0 OR paused IS NOT NULL OR window_written IS NOT NULL
ORDER BY number
"""
