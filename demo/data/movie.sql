-- The films of the demo. Lists are empty where nothing is known, other columns NULL.
CREATE TABLE IF NOT EXISTS movie (
    id              bigint PRIMARY KEY,
    imdb_id         text NOT NULL,       -- not unique: two films occur twice
    title           text NOT NULL,
    year            int NOT NULL,
    released        date,                -- NULL where only the year is known
    rated           text,                -- for which audience: G, PG, PG-13, R…
    runtime_minutes int,
    genres          text[] NOT NULL,
    directors       text[] NOT NULL,
    writers         text[] NOT NULL,
    actors          text[] NOT NULL,
    languages       text[] NOT NULL,
    countries       text[] NOT NULL,
    studios         text[] NOT NULL,
    awards          text,                -- in words: 'Won 2 Oscars.'
    oscars          int NOT NULL,
    metacritic      int,                 -- 0 to 100
    critics_rating  numeric(3,1),        -- 0 to 10, the critics' mean
    critics_percent int,                 -- how many of them liked it
    critics_reviews int,                 -- how many there are
    box_office      numeric(14,2)        -- US dollars
);
