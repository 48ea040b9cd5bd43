"""An outbox table that a PL/pgSQL trigger fills, and a polling reader with the official client of OpenSearch."""

from common import DATABASE, Http, psql
from rivals import INDEX, URL, Setting, contest, python

TRIGGER = """
CREATE TABLE outbox (id bigserial PRIMARY KEY, key text NOT NULL, document jsonb);
CREATE FUNCTION to_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO outbox (key) VALUES (OLD.id::text);
    ELSE
        INSERT INTO outbox (key, document) VALUES (NEW.id::text, to_jsonb(NEW));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER to_outbox AFTER INSERT OR UPDATE OR DELETE ON theirs FOR EACH ROW EXECUTE FUNCTION to_outbox();
"""


class Outbox:
    name = "outbox"
    load_goal = ">= 1"
    settings = {"polling every 100 ms": Setting("0.1", "<= 1"), "polling every 5 ms": Setting("0.005", "<= 1")}

    def prepare(self):
        psql(TRIGGER)
        self.reset()

    def start(self, first, pause):
        return python("outbox_reader.py", DATABASE, URL, INDEX, pause, "fill" if first else "follow")

    def reset(self):
        engine = Http(URL)
        engine.ask("DELETE", f"/{INDEX}")
        engine.ask("PUT", f"/{INDEX}", psql("SELECT fanout.mapping('plain')"))
        psql("TRUNCATE outbox")


def measure(size):
    return contest(size, Outbox())
